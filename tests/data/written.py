"""Sets that the tests write: folders of images, and NumPy files."""

import numpy as np
from PIL import Image

from soseleto_jax.data.get_task import data_config

CLASSES = ("cat", "dog", "owl")


def write_images(root, count, seed, shape=(6, 5, 3), suffix=".png"):
  """`count` images of each class, and what they hold, ordered by class and name."""
  x = np.random.default_rng(seed).integers(0, 256, (len(CLASSES) * count, *shape), np.uint8)
  for number, image in enumerate(x):
    folder = root / CLASSES[number // count]
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.squeeze()).save(folder / f"{number:03}{suffix}")
  return x


def write_arrays(root, **columns):
  root.mkdir(parents=True, exist_ok=True)
  for name, column in columns.items():
    np.save(root / f"{name}.npy", column)


def config_of(dataset, source, target, feed="auto", **both):
  config = data_config()
  config.feed = feed
  for side, path in ((config.source, source), (config.target, target)):
    side.update(dataset=dataset, path=str(path), **both)
  config.target.examples_per_class = 2
  return config
