"""Image sets of `tensorflow_datasets`, read through `tfds.data_source` (no TensorFlow needed)."""

import concurrent.futures
import importlib.util
import math
import os
import pathlib

import numpy as np

from soseleto_jax import storage
from soseleto_jax.core.suggest import did_you_mean
from soseleto_jax.data import bucket_copies, checks, lazy
from soseleto_jax.data.images import MODES, Images, Look

# Examples decoded by one task of the thread pool; Pillow decodes outside Python's lock.
_CHUNK = 512

_NO_TFDS = ("digits", "synthetic", "folder", "arrays")  # other names of config.data.source.dataset


def load(
  name: str,
  split: str,
  data_dir: str | None = None,
  *,
  label_key: str = "label",
  grayscale: bool = False,
  size: int = 0,
  most_bytes: float = math.inf,
  prepare: bool = True,
) -> dict:
  """Reads a split of a TFDS image set.

  A set that is not in the folder is downloaded and prepared, which needs TensorFlow and a network.

  Args:
    name: TFDS name, with configuration and version if wanted: `"cifar10"`, `"emnist/letters"`.
    split: `"train"`, or any TFDS expression such as `"train[:80%]"`.
    data_dir: where the sets are, a folder or `gs://bucket/folder`, from where the set is copied; None:
      `$TFDS_DATA_DIR`, or `~/tensorflow_datasets`.
    label_key: the column that holds the labels.
    grayscale: whether to convert images to one channel (luma).
    size: height and width to resize images to, in pixels; 0 keeps theirs.
    most_bytes: images that take more in memory stay on disk.
    prepare: whether a set that is not there is downloaded and prepared.

  Returns:
    A dict of `x` uint8 `[N, H, W, C]`, an array or `Images`, `label` int32 `[N]` and `class_names` tuple of str. Where
    `label_key` names another column with the classes of the column `label`, or with as many numbers for names (human
    or noisy labels, as in `cifar10_n`), the column `label` is `true_label` int32 `[N]`.

  Raises:
    ValueError: for an unknown set, split or column, a set without uint8 images and class labels,
      or images of unequal size where `size` is 0.
    RuntimeError: where the set is not there and cannot be prepared.
    ImportError: where Pillow is missing.
  """
  if importlib.util.find_spec("PIL") is None:
    raise ImportError(f"reading the images of {name!r} needs Pillow: pip install pillow")
  data_dir = data_dir or os.environ.get("TFDS_DATA_DIR")
  data_dir = os.fspath(storage.as_path(data_dir)) if data_dir else None
  builder = _prepared_builder(name, data_dir, prepare)
  image_key, channels = _image_feature(builder)
  columns, class_names = _label_columns(builder, label_key)
  source = _data_source(builder, split, image_key)
  images = Images(
    lambda rows: [example[image_key] for example in source.__getitems__(rows)],
    lambda row: f"image {row} of {name!r}",
    len(source),
    Look("L" if grayscale else MODES[channels], size),
  )
  in_memory = lazy.num_bytes(images) <= most_bytes
  x, labels = _read(source, images, image_key, columns, in_memory)
  return {"x": x, "class_names": class_names, **labels}


def _label_columns(builder, label_key: str) -> tuple[dict[str, str], tuple[str, ...]]:
  """Returns which column of the set is "label", and which "true_label" if it is there; and the classes' names."""
  class_names = _class_names(builder, label_key)
  right_names = _names_or_none(builder, "label")
  if label_key != "label" and right_names and checks.names_match(class_names, right_names):
    return {"label": label_key, "true_label": "label"}, right_names
  return {"label": label_key}, class_names


def _read(source, images: Images, image_key: str, columns: dict[str, str], in_memory: bool):
  """Reads the labels of all examples, and their images too where these go to memory."""
  x = np.empty(images.shape, np.uint8) if in_memory else images
  labels = {column: np.empty(len(source), np.int32) for column in columns}

  def read(start):
    rows = range(start, min(start + _CHUNK, len(source)))
    for row, example in zip(rows, source.__getitems__(list(rows)), strict=True):
      if in_memory:
        x[row] = images.decode(example[image_key], row)
      for column, key in columns.items():
        labels[column][row] = example[key]

  with concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
    for _ in pool.map(read, range(0, len(source), _CHUNK)):
      pass  # an exception of a thread is raised here
  return x, labels


def _prepared_builder(name: str, data_dir: str | None, prepare: bool):
  """The set's builder, after preparing the set where it is not there yet."""
  import tensorflow_datasets as tfds  # takes a second, here and below, which other sets need not wait

  folder = data_dir or tfds.core.constants.DATA_DIR
  in_bucket = storage.is_bucket(folder)
  try:
    with storage.os_errors(pathlib.PurePath(folder)):
      builder = tfds.builder(name, data_dir=data_dir)
      if in_bucket and builder.is_prepared():
        return tfds.builder_from_directory(str(bucket_copies.local(builder.data_dir)))
  except tfds.core.DatasetNotFoundError as error:
    known = [*_NO_TFDS, *tfds.list_builders(with_community_datasets=False)]
    hint = did_you_mean(name, known) or "; there are for instance 'digits', 'synthetic', 'cifar10' and 'mnist'"
    raise ValueError(f"no data set {name!r} in TFDS or in {folder}{hint}") from error
  except ImportError as error:
    raise RuntimeError(_how_to_get(name, folder, str(error))) from error
  except (ValueError, AssertionError) as error:
    raise ValueError(f"data set {name!r} cannot be opened: {error}") from error
  if builder.is_prepared():
    return builder
  if in_bucket:
    raise RuntimeError(_how_to_get(name, folder, "and a bucket is only read from"))
  if not prepare:
    raise RuntimeError(_how_to_get(name, folder, "and was not to be prepared"))
  if importlib.util.find_spec("tensorflow") is None:
    # Said before TFDS downloads everything only to find it cannot write it.
    cause = "preparing it needs TensorFlow, which is not installed"
    raise RuntimeError(_how_to_get(name, folder, cause))
  try:
    builder.download_and_prepare(file_format="array_record")
  except Exception as error:  # whatever stops a download: the network, the disk, a missing package
    cause = f"{type(error).__name__}: {error}"
    raise RuntimeError(_how_to_get(name, folder, cause)) from error
  return builder


def _how_to_get(name: str, folder: str, cause: str) -> str:
  return (
    f"the data set {name!r} is not ready in {folder} ({cause}). Two ways to get it: install "
    "soseleto_jax[tensorflow] and run again with a network, which downloads and prepares it; or "
    f"prepare it elsewhere with `tfds build {name} --file_format=array_record`, and point "
    "--config.data.data_dir or TFDS_DATA_DIR at the folder that holds it"
  )


def _data_source(builder, split: str, image_key: str):
  import tensorflow_datasets as tfds

  try:
    source = builder.as_data_source(split, decoders={image_key: tfds.decode.SkipDecoding()})
  except NotImplementedError as error:
    cause = "it is there, but not as ArrayRecord"
    raise RuntimeError(_how_to_get(builder.name, str(builder.data_dir), cause)) from error
  except (ValueError, KeyError, AssertionError) as error:
    raise ValueError(
      f"split={split!r} cannot be read from {builder.name!r}, whose splits are "
      f"{', '.join(builder.info.splits)} (or slices of them, such as 'train[:80%]'): {error}"
    ) from error
  return source


def _image_feature(builder) -> tuple[str, int]:
  """The name and number of channels of the set's one image."""
  import tensorflow_datasets as tfds

  features = builder.info.features
  keys = [k for k, f in features.items() if isinstance(f, tfds.features.Image)]
  key = "image" if "image" in keys else keys[0] if len(keys) == 1 else None
  if key is None:
    raise ValueError(f"{builder.name!r} is not a set of single images: its columns are {', '.join(features)}")
  channels = features[key].shape[-1]
  if features[key].np_dtype != np.uint8 or channels not in MODES:
    raise ValueError(
      f"the images of {builder.name!r} are {features[key].np_dtype} with {channels} channels; "
      "only uint8 images with 1, 3 or 4 channels are read"
    )
  return key, channels


def _class_names(builder, label_key: str) -> tuple[str, ...]:
  names = _names_or_none(builder, label_key)
  if names is None:
    labels = [k for k in builder.info.features if _names_or_none(builder, k) is not None]
    raise ValueError(
      f"label_key={label_key!r} is no column of class labels of {builder.name!r}; it has {', '.join(labels) or 'none'}"
    )
  return names


def _names_or_none(builder, key: str) -> tuple[str, ...] | None:
  import tensorflow_datasets as tfds

  feature = dict(builder.info.features).get(key)
  return tuple(feature.names) if isinstance(feature, tfds.features.ClassLabel) else None
