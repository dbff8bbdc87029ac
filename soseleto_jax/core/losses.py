"""What a loss function is, and the batch that it is called with."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from soseleto_jax.core.axis import AxisName

Batch = Mapping[str, Any]
BoundLoss = Callable[[Any], tuple[jax.Array, Any]]  # params -> (losses [B], new model_state)


class LossFn(Protocol):
  """One loss per example.

  Called as `loss_fn(params, batch, rng)` it returns float32 `[B]`, never averaged. In a train state with a
  `model_state` it is called as `loss_fn(params, batch, rng, model_state)` and returns `([B], new_model_state)`. What
  else it needs (a model, a label smoothing) it closes over; arrays go into `params`, `batch` or `model_state`, since a
  jitted function makes constants of arrays that it closes over.

  Row j of the loss must depend on row j of the batch alone, or its gradient is not an example's own. BatchNorm in
  training mode breaks that: `contraction="jvp"` then differentiates the coupled losses, and "vmap_grad" refuses.
  """

  def __call__(self, params: Any, batch: Any, rng: jax.Array, *model_state: Any) -> Any: ...


def batch_size_of(batch: Any) -> int:
  """Returns B, the common leading axis of a batch's leaves."""
  sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(batch)}
  if len(sizes) != 1 or () in sizes:
    shapes = jax.tree.map(lambda leaf: leaf.shape, batch)
    raise ValueError(f"batch with shapes {shapes}: every array needs the same leading axis, one row per example")
  return sizes.pop()[0]


def mask_of(batch: Batch) -> jax.Array:
  """Returns the batch's "mask", bool `[B]`: all True where it has none.

  Raises:
    ValueError: a mask of another dtype, whose values would weigh, or another shape.
  """
  size = batch_size_of(batch)
  if "mask" not in batch:
    return jnp.ones(size, bool)
  mask = batch["mask"]
  if mask.dtype != bool or mask.shape != (size,):
    raise ValueError(f"batch['mask'] has dtype {mask.dtype}, shape {mask.shape}: it is bool ({size},)")
  return mask


def check_losses(losses: jax.Array, batch_size: int, name: str) -> None:
  """Raises ValueError unless `losses` is `[batch_size]`."""
  if losses.shape != (batch_size,):
    raise ValueError(
      f"{name} returned shape {losses.shape} for a batch of {batch_size}: return one loss per example, "
      f"shape ({batch_size},), not their mean or sum"
    )


@dataclasses.dataclass(frozen=True)
class Examples:
  """A batch, or a device's share of one, with all that its losses are called with beside the parameters.

  Attributes:
    batch: what a train step was given.
    mask: bool `[B]`, False for rows that count for nothing.
    rng: key of the losses.
    model_state: what they read, or None.
    axis_name: the axis that the batch is split over, or None.
  """

  batch: Batch
  mask: jax.Array
  rng: jax.Array
  model_state: Any
  axis_name: AxisName

  def bind(self, loss_fn: LossFn, name: str) -> BoundLoss:
    """Returns the loss of these examples, see `bind`."""
    return bind(loss_fn, self.batch, self.rng, self.model_state, name)


def bind(loss_fn: LossFn, batch: Batch, rng: jax.Array, model_state: Any, name: str) -> BoundLoss:
  """Returns the loss of one batch, `params -> (losses [B], new model_state)`, with a model state or without.

  Raises:
    ValueError: when called, for losses that are not one per example; `name` is what the message calls the loss.
  """
  batch_size = batch_size_of(batch)

  def bound(params):
    result = loss_fn(params, batch, rng) if model_state is None else loss_fn(params, batch, rng, model_state)
    losses, new_model_state = (result, None) if model_state is None else result
    check_losses(losses, batch_size, name)
    return losses, new_model_state

  return bound


def summed(*loss_fns: LossFn) -> LossFn:
  """Returns the sum of losses of the same batch, which is finite where all of them are; the first's model state."""

  def loss(params, batch, rng, *model_state):
    results = [loss_fn(params, batch, rng, *model_state) for loss_fn in loss_fns]
    if not model_state:
      return sum(results)
    return sum(losses for losses, _ in results), results[0][1]

  return loss_fns[0] if len(loss_fns) == 1 else loss
