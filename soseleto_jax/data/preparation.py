"""What becomes of a batch's pixels on the device before a step sees them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from soseleto_jax.data.transforms import Normalization


@dataclasses.dataclass(frozen=True)
class Preparation:
  """Normalisation and flips."""

  normalization: Normalization
  flip: bool = False  # mirror each image with probability 1/2

  def __call__(self, batch: Mapping[str, Any], key: jax.Array) -> dict[str, Any]:
    """Prepares a batch.

    Args:
      batch: "x" `[B, ...]` as stored, "index" int32 `[B]`, and what else the step is to see.
      key: for augmentation; with the index of an example it decides, so the split over devices changes nothing.

    Returns:
      The batch with "x" float32 `[B, ...]`.
    """
    x = self.normalization.apply(batch["x"])
    if self.flip:
      keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(batch["index"])
      flipped = jax.vmap(jax.random.bernoulli)(keys)
      x = jnp.where(flipped.reshape(-1, *[1] * (x.ndim - 1)), jnp.flip(x, axis=2), x)
    return {**batch, "x": x}
