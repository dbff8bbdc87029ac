"""What becomes of a batch's pixels on the device before a step sees them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from soseleto_jax.core.suggest import did_you_mean
from soseleto_jax.data.normalization import Normalization
from soseleto_jax.data.task import Task

SIDES = ("source", "target")


@dataclasses.dataclass(frozen=True)
class Preparation:
  """Augmentation, if there is one, then normalisation.

  Attributes:
    normalization: of the pixels.
    augment: `(key, x [B, H, W, C]) -> x`, see `soseleto_jax.feed.augmentation.apply_per_example`; None: no change.
  """

  normalization: Normalization
  augment: Any = None

  def __call__(self, batch: Mapping[str, Any], key: jax.Array) -> dict[str, Any]:
    """Prepares a batch.

    Args:
      batch: "x" `[B, ...]` as stored, "index" int32 `[B]`, and what else the step is to see.
      key: for augmentation; with the index of an example it decides, so the split over devices changes nothing.

    Returns:
      The batch with "x" float32 `[B, ...]`.
    """
    x = batch["x"]
    if self.augment is not None:
      from soseleto_jax.feed.augmentation import apply_per_example  # dm-pix, for those who augment

      x = apply_per_example(self.augment, key, batch["index"], x)
    return {**batch, "x": self.normalization.apply(x)}


def make_preparations(task: Task, named: ConfigDict, given: Mapping[str, Any] | None = None) -> dict[str, Preparation]:
  """Returns the preparation of "source" and "target".

  Args:
    task: says how pixels are normalised.
    named: `config.augment`, names of augmentations for each side.
    given: functions that take their place, for one side or both.

  Raises:
    ValueError: an augmentation that does not exist or does not fit the data, or a side that does not exist.
  """
  given = {} if given is None else given
  for side in given:
    if side not in SIDES:
      raise ValueError(f"augment[{side!r}]: the sides are {', '.join(SIDES)}{did_you_mean(side, SIDES)}")
  normalizations = {"source": task.source_normalization, "target": task.target_normalization}
  augments = {side: given[side] if side in given else _named(side, named[side], task) for side in SIDES}
  return {side: Preparation(normalizations[side], augments[side]) for side in SIDES}


def _named(side, names, task):
  if not names:
    return None
  from soseleto_jax.feed.augmentation import make_augmentation

  x = getattr(task, side)["x"]
  try:
    augment = make_augmentation(names)
    jax.eval_shape(augment, jax.random.key(0), jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype))
  except ValueError as error:
    raise ValueError(f"config.augment.{side}: {error}") from error
  return augment
