"""The user's own source, target and test sets, as folders or as examples in memory, made into a task."""

import dataclasses
import functools
import logging
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from soseleto_jax.data import checks, classes, files, folders, lazy, pairs, reading, selection, sides
from soseleto_jax.data.normalization import Normalization, fit_normalization
from soseleto_jax.data.selection import Subset
from soseleto_jax.data.task import Task, assemble

_LOGGER = logging.getLogger(__name__)

PER_CHANNEL = functools.partial(fit_normalization, "channel")

Given = Any  # a folder's path, or a pair (x, labels)


@dataclasses.dataclass(frozen=True)
class Listing:
  """What is known of a folder before its examples are read.

  Attributes:
    kind: "folder", of images, or "arrays", of NumPy files.
    counts: examples of each class.
    shape: of one example; `(0, 0, 3)` of images.
    shorter_side: of images, in pixels; 0 of arrays.
  """

  kind: str
  counts: tuple[int, ...]
  shape: tuple[int, ...]
  shorter_side: int = 0


def is_folder(given: Given) -> bool:
  """Whether a set is given as a folder's path."""
  return isinstance(given, (str, os.PathLike))


def kind_of(path: str | os.PathLike, split: str = "train") -> str:
  """Returns "arrays" for a folder with x.npy, else "folder"."""
  return "arrays" if (folders.split_folder(os.fspath(path), split) / "x.npy").exists() else "folder"


def listing(path: str | os.PathLike, split: str = "train") -> Listing:
  """Looks at a folder: names, and the heads of some files.

  Raises:
    ValueError: a folder that is not there, or holds no examples.
  """
  path = os.fspath(path)
  if kind_of(path, split) == "arrays":
    found = files.load_arrays(path, split)
    return Listing("arrays", _counts(found["label"]), tuple(found["x"].shape[1:]))
  root = folders.split_folder(path, split)
  _, names, label = folders.list_images(root)
  return Listing("folder", _counts(label), (0, 0, 3), folders.shorter_side(root, names))


def target_counts(target: Given) -> tuple[int, ...]:
  """Returns how many examples of each class a target has."""
  if is_folder(target):
    return listing(target).counts
  return _counts(pairs.read("target", *_pair("target", target)).examples["label"])


def has_split(path: str | os.PathLike, split: str) -> bool:
  """Whether a folder has one of another split, beside one called "train"."""
  root = folders.split_folder(os.fspath(path), "train")
  return root.name == "train" and (root.parent / split).is_dir()


def make_task(
  source: Given,
  target: Given,
  test: Given | None,
  validation: Given | None,
  config: ConfigDict,
  seed: int,
  *,
  true_label: Any = None,
  fit: Callable[[Any], Normalization] = PER_CHANNEL,
) -> Task:
  """Returns the task of sets as a user gives them.

  Source images of a folder that are also in target, test or validation are left out. Examples in memory all stay, so
  that weights are in their order; where they are in the test set too, a warning says so.

  Args:
    source: a folder's path, or (x, labels).
    target: likewise.
    test: likewise, or None: the target folder's `test`, or `config.target.num_test` examples of the target, or none.
    validation: likewise.
    config: the block of `soseleto_jax.data.get_task.data_config`, whose `path`, `dataset` and splits are not read.
    seed: of the draws.
    true_label: the right labels of the source, if known, for analysis.
    fit: the normalisation of a set's `x`.

  Raises:
    ValueError: sets that cannot be used.
  """
  checks.choice("config.data.feed", config.feed, lazy.FEEDS)
  read = _reader(config)
  source_set = read("source", source, "train", true_label)
  pool = read("target", target, "train")
  held_out = [
    _held_out(read, name, given, target, config) for name, given in (("test", test), ("validation", validation))
  ]
  pool, held_out = classes.of_one_side(pool, held_out)
  if config.shared_classes:
    source_set, pool, held_out = classes.share(source_set, pool, held_out, config.drop_unshared)
  drawn = sides.draw_target(pool, held_out, config.target, seed)
  source_set = _apart(source_set, [part for part in drawn if part is not None], is_folder(source))
  given = {"source": source, "target": target}
  names = [os.fspath(part) if is_folder(part) else f"{side} in memory" for side, part in given.items()]
  return assemble(
    source_set,
    *drawn,
    shared_classes=config.shared_classes,
    fit=lambda side, x: fit(x),
    name=" -> ".join(dict.fromkeys(names)) if any(map(is_folder, given.values())) else "arrays",
  )


def _reader(config) -> Callable[..., Subset]:
  most_bytes = lazy.memory_limit(config.feed, 1)

  def read(name, given, split, true_label=None):
    side = config["source" if name == "source" else "target"]
    if is_folder(given):
      path, kind = os.fspath(given), kind_of(given, split)
      look = ("grayscale", "size", "aspect", "background") if kind == "folder" else ()
      options = {field: side[field] for field in look} | dict(on_unreadable=config.on_unreadable, most_bytes=most_bytes)
      with checks.prefix(f"{name}: "):
        return reading.read(reading.Split(kind, split, path, **options))
    return pairs.read(name, *_pair(name, given), true_label)

  return read


def _pair(name, given):
  if isinstance(given, (tuple, list)) and len(given) == 2:
    return given
  raise ValueError(
    f"{name} is {type(given).__name__}; give a folder, or a pair (x, labels), such as (df.drop(columns='y'), df['y'])"
  )


def _held_out(read, name, given, target, config):
  if given is not None:
    return read(name, given, "train")
  if is_folder(target) and has_split(target, name) and not config.target[f"num_{name}"]:
    return read(name, target, name)
  return None


def _apart(source, others, leave_out):
  if leave_out:
    return source.without(*others)
  _, *rest = others
  same = np.zeros(len(source), bool)
  for part in rest:
    if not lazy.is_lazy(source.examples["x"]):
      same |= selection.same_images(source.examples["x"], part.examples["x"])
  if same.any():
    rows = ", ".join(map(str, np.flatnonzero(same)[:5]))
    _LOGGER.warning(
      "%d source examples are in the test or validation set too, such as %s: its accuracy will be too good",
      same.sum(),
      rows,
    )
  return source


def _counts(label):
  return tuple(np.bincount(np.asarray(label)).tolist())
