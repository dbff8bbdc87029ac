"""Sets that live on the devices: batches are gathered there by index."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from soseleto_jax.data.transforms import Normalization


@dataclasses.dataclass(frozen=True)
class Assembly:
  """How a batch is made of a set's rows, on the device."""

  normalization: Normalization
  flip: bool = False  # mirror each image with probability 1/2

  def __call__(self, arrays: Mapping[str, Any], index: jax.Array, mask: jax.Array, key: jax.Array) -> dict[str, Any]:
    """Gathers a batch.

    Args:
      arrays: "x" `[N, ...]` and "label" `[N]`.
      index: int32 `[B]`.
      mask: bool `[B]`.
      key: for augmentation; with the index of an example it decides, so the split over devices changes nothing.

    Returns:
      "x" float32 `[B, ...]`, "label", "index", "mask".
    """
    x = self.normalization.apply(arrays["x"][index])
    if self.flip:
      keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(index)
      flipped = jax.vmap(jax.random.bernoulli)(keys)
      x = jnp.where(flipped.reshape(-1, *[1] * (x.ndim - 1)), jnp.flip(x, axis=2), x)
    return {"x": x, "label": arrays["label"][index], "index": index, "mask": mask}
