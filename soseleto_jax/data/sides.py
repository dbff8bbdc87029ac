"""Reads and draws the two sides, source and target, of the task that a config describes."""

import dataclasses
from collections.abc import Callable

import ml_collections
import numpy as np

from soseleto_jax.data import checks, digits, draws, files, lazy, noise, normalization, selection, tfds
from soseleto_jax.data.selection import Subset

_FILES = ("folder", "arrays")


def check_config(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError for fields of `config.data` that are wrong whatever the data."""
  checks.choice("config.data.feed", config.feed, lazy.FEEDS)
  for side in ("source", "target"):
    if not config.get(side) or not config[side].get("dataset"):
      raise ValueError(
        f"config.data.{side}.dataset is missing; name a data set: 'digits', 'synthetic', one of TFDS, "
        "or 'folder' or 'arrays' for your own"
      )
    dataset, path = config[side].dataset, config[side].path
    if bool(path) != (dataset in _FILES):
      raise ValueError(
        f"config.data.{side}.path={path!r} but dataset={dataset!r}; a path is what 'folder' and 'arrays' "
        "need, and they alone"
      )
  source, target = config.source, config.target
  sizes = {f"source.{field}": source[field] for field in ("num_examples", "size")}
  for field in ("num_examples", "examples_per_class", "num_validation", "size"):
    sizes[f"target.{field}"] = target[field]
  for field, value in sizes.items():
    if value < 0:
      raise ValueError(f"config.data.{field}={value} is negative; give 0 or more")
  if "synthetic" in (source.dataset, target.dataset):
    return
  if bool(target.num_examples) == bool(target.examples_per_class):
    raise ValueError(
      f"config.data.target.num_examples={target.num_examples} and "
      f"config.data.target.examples_per_class={target.examples_per_class}; give one of the two"
    )
  if target.split == target.test_split:
    raise ValueError(f"config.data.target.test_split={target.test_split!r} is also target.split; test on another")
  allowed = [("channel", (), ())]
  allowed.append((source.normalization, tuple(source.mean), tuple(source.std)))
  given = (target.normalization, tuple(target.mean), tuple(target.std))
  if config.shared_classes and given not in allowed:
    raise ValueError(
      f"config.data.target.normalization={target.normalization!r} but with shared_classes the "
      "target uses the source's; set config.data.source.normalization alone"
    )


def read(
  dataset: str,
  split: str,
  label_key: str,
  grayscale: bool,
  size: int,
  path: str,
  *,
  data_dir: str | None,
  most_bytes: float,
) -> Subset:
  """Reads a split of a data set: `digits`, `folder`, `arrays` or one of TFDS; larger ones than a limit stay on disk."""
  if dataset in ("digits", *_FILES):
    checks.choice("label_key", label_key, ("label",))
  if dataset == "digits":
    examples = digits.load(split)
    if size:
      examples["x"] = normalization.resize(examples["x"], size)
  elif dataset == "folder":
    examples = files.load_folder(path, split, grayscale=grayscale, size=size)
  elif dataset == "arrays":
    if grayscale or size:
      raise ValueError(f"grayscale={grayscale}, size={size}: x.npy is taken as it is; leave both out")
    examples = files.load_arrays(path, split)
  else:
    examples = tfds.load(
      dataset,
      split,
      data_dir,
      label_key=label_key,
      grayscale=grayscale,
      size=size,
      most_bytes=most_bytes,
    )
  if lazy.num_bytes(examples["x"]) <= most_bytes:
    examples["x"] = lazy.load(examples["x"])
  class_names = examples.pop("class_names")
  examples["row"] = np.arange(len(examples["label"]), dtype=np.int32)
  return Subset(examples, class_names, path or dataset, split)


def choose(read: Callable[..., Subset], side: ml_collections.ConfigDict, split: str, field: str) -> Subset:
  """Reads a split for a side of the config, and keeps the side's classes."""
  with checks.prefix(f"config.data.{field}: "):
    subset = read(side.dataset, split, side.label_key, side.grayscale, side.size, side.path)
  return subset.take_classes(side.classes, f"config.data.{field.split('.')[0]}")


def draw_target(pool: Subset, side: ml_collections.ConfigDict, seed: int) -> tuple[Subset, Subset | None]:
  """Draws the target and, if asked for, a validation set beside it, both balanced by class."""
  labels, num_classes = pool.examples["label"], len(pool.class_names)
  if side.examples_per_class:
    field = f"config.data.target.examples_per_class={side.examples_per_class}"
    counts = np.full(num_classes, side.examples_per_class)
  else:
    field = f"config.data.target.num_examples={side.num_examples}"
    counts = selection.per_class_counts(side.num_examples, num_classes, seed, "target")
  if counts.min() < 1:
    raise ValueError(f"{field} leaves some of the {num_classes} classes without any; ask for more")
  index = selection.balanced(labels, counts, seed, "target", field)
  if not side.num_validation:
    return pool.take(index), None
  rest = np.delete(np.arange(len(pool)), index)
  field = f"config.data.target.num_validation={side.num_validation}"
  counts = selection.per_class_counts(side.num_validation, num_classes, seed, "validation")
  held_out = rest[selection.balanced(labels[rest], counts, seed, "validation", field)]
  return pool.take(index), pool.take(held_out)


def read_target(
  read: Callable[..., Subset], side: ml_collections.ConfigDict, seed: int
) -> tuple[Subset, Subset, Subset | None, Subset]:
  """Reads the target's splits: the pool beside the test set, and drawn from it the target, validation; the test set."""
  pool = choose(read, side, side.split, "target")
  test = choose(read, side, side.test_split, "target.test_split")
  pool = pool.without(test)
  return pool, *draw_target(pool, side, seed), test


def draw_source(pool: Subset, side: ml_collections.ConfigDict, seed: int) -> Subset:
  """Draws the source set from what target and validation left, and gives it its label noise."""
  if not len(pool) or side.num_examples > len(pool):
    raise ValueError(
      f"config.data.source.num_examples={side.num_examples} but only {len(pool)} images are left "
      "after target and validation; ask for fewer, there or here"
    )
  source = pool
  if side.num_examples:
    order = draws.permutation(len(pool), seed, "select", "source")
    source = pool.leave_out(np.isin(np.arange(len(pool)), order[side.num_examples :]), "beyond num_examples")
  label = source.examples["label"]
  with checks.prefix("config.data.source."):
    noisy = noise.corrupt(
      label,
      len(pool.class_names),
      side.noise,
      side.noise_rate,
      seed,
      side.noise_matrix,
      pairs=side.noise_pairs,
      x=source.examples["x"],
      num_images=side.noise_images,
    )
  if side.noise == "none":
    return source
  known = {"true_label": source.examples.get("true_label", label)}
  return dataclasses.replace(source, examples=source.examples | {"label": noisy} | known)
