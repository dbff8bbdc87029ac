"""Tiny TFDS image sets, written by the tests themselves without TensorFlow."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image


def png(image):
  file = io.BytesIO()
  Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
  return file.getvalue()


def write_set(data_dir, name, splits, class_names=("zero", "one", "two"), noisy=None, noisy_names=None):
  """Writes a TFDS set in ArrayRecord; splits maps names to (images, labels)."""
  channels = next(iter(splits.values()))[0][0].shape[-1]
  features = {
    "image": tfds.features.Image(shape=(None, None, channels)),
    "label": tfds.features.ClassLabel(names=class_names),
  }
  if noisy is not None:
    features["human"] = tfds.features.ClassLabel(names=noisy_names or class_names)

  class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
      return {split: self._generate_examples(*pair) for split, pair in splits.items()}

    def _generate_examples(self, images, labels):
      for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        example = {"image": png(image), "label": int(label)}
        if noisy is not None:
          example["human"] = int(noisy[number])
        yield number, example

  Tiny.name = name
  Tiny(data_dir=data_dir).download_and_prepare(file_format="array_record")


def random_set(n, seed, shape=(6, 5, 3), num_classes=3):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (n, *shape), np.uint8), np.arange(n) % num_classes


@pytest.fixture(name="write_set", scope="session")
def write_set_fixture():
  return write_set


@pytest.fixture(name="random_set", scope="session")
def random_set_fixture():
  return random_set


@pytest.fixture(name="png", scope="session")
def png_fixture():
  return png


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory):
  """A folder with `tiny` (train 60, test 15; 6x5 RGB) and `tiny_n`, the same with human labels."""
  data_dir = tmp_path_factory.mktemp("tfds")
  train, test = random_set(60, 0), random_set(15, 1)
  write_set(data_dir, "tiny", {"train": train, "test": test})
  write_set(data_dir, "tiny_n", {"train": train}, noisy=(train[1] + (np.arange(60) < 24)) % 3)
  return data_dir
