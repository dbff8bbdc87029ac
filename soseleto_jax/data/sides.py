"""Reads and draws the two sides, source and target, of the task that a config describes."""

import dataclasses
import functools
import logging
from collections.abc import Sequence

import ml_collections
import numpy as np

from soseleto_jax.data import checks, classes, draws, folders, lazy, noise, selection
from soseleto_jax.data.images import ASPECTS, colour
from soseleto_jax.data.reading import Read, Split
from soseleto_jax.data.selection import Subset

_FILES = ("folder", "arrays")
_OF_A_SIDE = (
  "dataset", "path", "label_key", "grayscale", "size", "isolate", "deskew", "aspect", "background",
)  # fmt: skip
_LOGGER = logging.getLogger(__name__)


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
  for field in ("num_examples", "examples_per_class", "num_validation", "num_test", "size"):
    sizes[f"target.{field}"] = target[field]
  for field, value in sizes.items():
    if value < 0:
      raise ValueError(f"config.data.{field}={value} is negative; give 0 or more")
  if "synthetic" in (source.dataset, target.dataset):
    return
  whole = not (target.num_examples or target.examples_per_class)
  one_set = all(source[field] == target[field] for field in ("dataset", "path", "split"))
  if (target.num_examples and target.examples_per_class) or (whole and one_set):
    raise ValueError(
      f"config.data.target.num_examples={target.num_examples} and "
      f"config.data.target.examples_per_class={target.examples_per_class}; give one of the two"
      + (", since without either the target is all of its split, which is the source's too" if whole else "")
    )
  for name in ("test", "validation"):
    split, count = target[f"{name}_split"], target[f"num_{name}"]
    if split == target.split:
      raise ValueError(f"config.data.target.{name}_split={split!r} is also target.split; {name} on another")
    if split and count:
      raise ValueError(
        f"config.data.target.{name}_split={split!r} and config.data.target.num_{name}={count}; give one of the two, "
        f"with {name}_split='' to draw from target.split"
      )
  _check_pictures(config)
  allowed = [("channel", (), ())]
  allowed.append((source.normalization, tuple(source.mean), tuple(source.std)))
  given = (target.normalization, tuple(target.mean), tuple(target.std))
  if config.shared_classes and given not in allowed:
    raise ValueError(
      f"config.data.target.normalization={target.normalization!r} but with shared_classes the "
      "target uses the source's; set config.data.source.normalization alone"
    )


def _check_pictures(config: ml_collections.ConfigDict) -> None:
  checks.choice("config.data.on_unreadable", config.on_unreadable, folders.ON_UNREADABLE)
  for side in ("source", "target"):
    with checks.prefix(f"config.data.{side}."):
      checks.choice("aspect", config[side].aspect, ASPECTS)
      colour(config[side].background)


def read_source(read: Read, config: ml_collections.ConfigDict, num_processes: int = 1) -> Subset:
  """Reads the source's split, and keeps the side's classes."""
  pool = _read_side(read, config, num_processes, "source")
  return pool.take_classes(config.source.classes, "config.data.source")


def read_target(
  read: Read, config: ml_collections.ConfigDict, num_processes: int = 1
) -> tuple[Subset, list[Subset | None]]:
  """Reads the target's splits: what target and more are drawn from, the test set and the validation set, if any.

  They have one list of classes, by name, of which the side's are kept.
  """
  of_target = functools.partial(_read_side, read, config, num_processes, "target")
  held_out = [of_target(field) if config.target[field] else None for field in ("test_split", "validation_split")]
  pool, held_out = classes.of_one_side(of_target(), held_out)
  kept = config.target.classes
  pool = pool.take_classes(kept, "config.data.target")
  held_out = [None if part is None else part.take_classes(kept, "config.data.target") for part in held_out]
  return pool.without(*(part for part in held_out if part is not None)), held_out


def _read_side(read, config, num_processes, name, field="split"):
  side = config[name]
  split = Split(
    split=side[field],
    **{same: side[same] for same in _OF_A_SIDE},
    on_unreadable=config.on_unreadable,
    data_dir=config.data_dir,
    most_bytes=lazy.memory_limit(config.feed, num_processes),
  )
  with checks.prefix(f"config.data.{name if field == 'split' else f'{name}.{field}'}: "):
    return read(split)


def draw_target(
  pool: Subset, held_out: Sequence[Subset | None], side: ml_collections.ConfigDict, seed: int
) -> tuple[Subset, Subset | None, Subset | None]:
  """Draws the target, and test and validation sets beside it where they are asked for, balanced by class.

  Args:
    pool: what to draw from, and
    held_out: test and validation set, as `read_target` returned them.
    side: the target's.
    seed: of the experiment.

  Returns:
    Target, test, validation. Without `num_examples` and `examples_per_class` the target is all that the others leave.
  """
  test, validation = held_out
  if not (side.num_examples or side.examples_per_class):
    if side.num_test:
      test, pool = _set_apart(pool, "test", side.num_test, seed)
    if side.num_validation:
      validation, pool = _set_apart(pool, "validation", side.num_validation, seed)
    return pool, test, validation
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
  rest = pool.take(np.delete(np.arange(len(pool)), index))
  drawn = {"test": test, "validation": validation}
  for name in ("validation", "test"):
    if wanted := side[f"num_{name}"]:
      counts = selection.per_class_counts(wanted, num_classes, seed, name)
      field = f"config.data.target.num_{name}={wanted}"
      chosen = selection.balanced(rest.examples["label"], counts, seed, name, field)
      drawn[name], rest = rest.take(chosen), rest.take(np.delete(np.arange(len(rest)), chosen))
  return pool.take(index), drawn["test"], drawn["validation"]


def _set_apart(pool: Subset, name: str, wanted: int, seed: int) -> tuple[Subset, Subset]:
  """Draws examples from a set, as evenly over its classes as it allows, and leaves one of each; returns both parts."""
  labels = pool.examples["label"]
  available = np.maximum(np.bincount(labels, minlength=len(pool.class_names)) - 1, 0)
  field = f"config.data.target.num_{name}={wanted}"
  if wanted > available.sum():
    raise ValueError(f"{field} but the target has {len(pool)} examples, and one of each class stays; ask for fewer")
  index = selection.balanced(labels, selection.even_counts(wanted, available), seed, name, field)
  return pool.take(index), pool.take(np.delete(np.arange(len(pool)), index))


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
    if side.noise_rate:
      _LOGGER.warning(
        "config.data.source.noise_rate=%g changes no label, since noise='none'; name a kind of noise, such as "
        "'symmetric'", side.noise_rate,
      )  # fmt: skip
    return source
  known = {"true_label": source.examples.get("true_label", label)}
  return dataclasses.replace(source, examples=source.examples | {"label": noisy} | known)
