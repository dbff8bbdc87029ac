"""Reads a split of a data set, wherever that lies."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from soseleto_jax.data import checks, digits, files, folders, lazy, normalization, tfds, writing
from soseleto_jax.data.images import Look
from soseleto_jax.data.selection import Examples, Subset


@dataclasses.dataclass(frozen=True)
class Split:
  """What to read, and how; fields that are not described are those of `get_task.data_config`.

  Attributes:
    dataset: "digits", "folder", "arrays" or one of TFDS.
    most_bytes: sets that are larger stay on disk.
  """

  dataset: str
  split: str
  path: str = ""
  label_key: str = "label"
  grayscale: bool = False
  size: int = 0
  isolate: bool = False
  deskew: bool = False
  aspect: str = "crop"
  background: str = "white"
  on_unreadable: str = "stop"
  data_dir: str | None = None
  most_bytes: float = math.inf

  @property
  def read_size(self) -> int:
    """The size to read images at."""
    return writing.size_to_read(self.size, self.isolate)


Read = Callable[[Split], Subset]


def read(split: Split) -> Subset:
  """Reads a split.

  Raises:
    ValueError: what is there cannot be read, or not as it is to be.
    RuntimeError: where a data set of TFDS is not there and cannot be prepared.
  """
  if split.dataset in _READERS:
    checks.choice("label_key", split.label_key, ("label",))
  examples = _READERS.get(split.dataset, _read_tfds)(split)
  if lazy.num_bytes(examples["x"]) <= split.most_bytes:
    examples["x"] = lazy.load(examples["x"])
  examples["x"] = writing.made_alike(examples["x"], split.size, isolate=split.isolate, deskew=split.deskew)
  class_names, left_out = examples.pop("class_names"), examples.pop("left_out", {})
  meanings = examples.pop("meanings", None)
  examples.setdefault("row", np.arange(len(examples["label"]), dtype=np.int32))
  return Subset(examples, class_names, split.path or split.dataset, split.split, left_out, meanings)


def _read_digits(split: Split) -> Examples:
  examples = digits.load(split.split)
  if split.read_size:
    examples["x"] = normalization.resize(examples["x"], split.read_size)
  return examples


def _read_folder(split: Split) -> Examples:
  look = Look("L" if split.grayscale else "RGB", split.read_size, split.aspect, split.background, photo=True)
  options: dict[str, Any] = dict(on_unreadable=split.on_unreadable, most_bytes=split.most_bytes)
  examples = folders.load_folder(split.path, split.split, look, **options)
  return examples | {"meanings": {name: name for name in examples["class_names"]}}


def _read_arrays(split: Split) -> Examples:
  if split.grayscale or split.read_size:
    raise ValueError(f"grayscale={split.grayscale}, size={split.size}: x.npy is taken as it is; leave both out")
  return files.load_arrays(split.path, split.split)


def _read_tfds(split: Split) -> Examples:
  return tfds.load(
    split.dataset,
    split.split,
    split.data_dir,
    label_key=split.label_key,
    grayscale=split.grayscale,
    size=split.read_size,
    most_bytes=split.most_bytes,
  )


_READERS = {"digits": _read_digits, "folder": _read_folder, "arrays": _read_arrays}
