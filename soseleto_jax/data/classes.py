"""Which class of one set is which of another: by their names."""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np

from soseleto_jax.data import checks, labels
from soseleto_jax.data.selection import Subset

_LOGGER = logging.getLogger(__name__)

HeldOut = Sequence[Subset | None]  # test and validation sets


def of_one_side(target: Subset, held_out: HeldOut) -> tuple[Subset, list[Subset | None]]:
  """Gives target, test and validation one list of classes: those of all of them."""
  names = target.class_names
  for part in held_out:
    if part is not None:
      names = labels.union(names, labels.same_spelling(part.class_names, names))
  return _in(target, names), [None if part is None else _in(part, names) for part in held_out]


def share(
  source: Subset, target: Subset, held_out: HeldOut, drop_unshared: bool
) -> tuple[Subset, Subset, list[Subset | None]]:
  """Numbers the classes of target, test and validation as the source does.

  Where one side has the numbers 0..K-1 and the other K names, they are in the same order already.

  Args:
    source: the source.
    target: the target, and
    held_out: test and validation sets, all with one list of classes.
    drop_unshared: leaves out the examples of classes that only one side has.

  Raises:
    ValueError: classes that only one side has, by name.
  """
  if checks.names_match(source.class_names, target.class_names):
    return source, target, list(held_out)
  targets = [_spelled(part, source.class_names) for part in (target, *held_out) if part is not None]
  names = targets[0].class_names
  common = tuple(name for name in source.class_names if name in names)
  if set(source.class_names) != set(names) and not (drop_unshared and len(common) > 1):
    raise ValueError(_unshared(source, targets, common))
  kept_source, kept_target = source.in_classes(common), targets[0].in_classes(common)
  kept = [None if part is None else _spelled(part, source.class_names).in_classes(common) for part in held_out]
  counts = [len(source) - len(kept_source)]
  counts.append(sum(map(len, targets)) - len(kept_target) - sum(len(part) for part in kept if part is not None))
  for side, count in zip(("source", "target"), counts, strict=True):
    if count:
      _LOGGER.warning("left %d examples of %s out: only it has their classes (drop_unshared)", count, side)
  return kept_source, kept_target, kept


def _in(subset, names):
  return _spelled(subset, names).in_classes(names)


def _spelled(subset, names):
  spelled = labels.same_spelling(subset.class_names, names)
  called = subset.called()
  meanings = None if called is None else dict(zip(spelled, called, strict=True))
  return dataclasses.replace(subset, class_names=spelled, meanings=meanings)


def _unshared(source, targets, common):
  names = targets[0].class_names
  parts = []
  for side, own, others in (("source", source.class_names, names), ("target", names, source.class_names)):
    alone = [name for name in own if name not in others]
    if alone:
      subsets = [source] if side == "source" else targets
      count = sum(int(np.isin(part.examples["label"], [own.index(name) for name in alone]).sum()) for part in subsets)
      parts.append(f"{checks.listed(alone)} in the {side} alone ({count} examples)")
  cure = "give both sides the same classes, or set config.data.drop_unshared=True to leave these examples out"
  if len(common) < 2:
    cure = (
      f"the two have {len(common)} of their classes in common: give both the same names, or, where they are to "
      "differ (transfer), set config.data.shared_classes=False"
    )
  return f"classes that only one side has: {' and '.join(parts)}; {cure}"
