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

  The batch that it gets always has a "mask", bool `[B]`, False for rows that count for nothing. Row j of the loss
  should depend on row j of the batch alone, or its gradient is not an example's own. BatchNorm in training mode breaks
  that: what is taken then are the gradients of the coupled losses, and a masked row has a share in the others' unless
  the layer is given the mask (`nn.BatchNorm(...)(x, mask=batch["mask"])`). On several devices each has statistics of
  its own rows. Where none of a device's rows count its mask is all True, so that no mean is of nothing; what it
  returns counts for nothing all the same.
  """

  def __call__(self, params: Any, batch: Any, rng: jax.Array, *model_state: Any) -> Any: ...


def batch_size_of(batch: Any) -> int:
  """Returns B, the common leading axis of a batch's leaves.

  Raises:
    ValueError: it is no mapping of arrays, or their leading axes differ.
  """
  if not isinstance(batch, Mapping):
    raise ValueError(
      f"batch is a {type(batch).__name__}: give a mapping of arrays by name, such as {{'x': ..., 'label': ...}}"
    )
  for path, leaf in jax.tree.leaves_with_path(dict(batch)):
    if not hasattr(leaf, "shape"):
      place = f"batch{jax.tree_util.keystr(path)}"
      raise ValueError(f"{place} is a {type(leaf).__name__}: give NumPy or JAX arrays, one row per example")
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


def check_losses(losses: Any, batch_size: int, name: str) -> None:
  """Raises ValueError unless `losses` is an array `[batch_size]`."""
  if isinstance(losses, (tuple, list)):
    raise ValueError(
      f"{name} returned a {type(losses).__name__} of {len(losses)}: in a train state without a model_state a loss "
      "returns one array [B]; give init_train_state(model_state=...) what it is to carry, and drop other outputs"
    )
  if getattr(losses, "shape", None) != (batch_size,):
    shape = getattr(losses, "shape", type(losses).__name__)
    raise ValueError(
      f"{name} returned shape {shape} for a batch of {batch_size}: return one loss per example, "
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

  @property
  def seen(self) -> dict[str, Any]:
    """The batch that losses get, see `LossFn`."""
    return {**self.batch, "mask": self.mask | ~jnp.any(self.mask)}

  def bind(self, loss_fn: LossFn, name: str) -> BoundLoss:
    """Returns the loss of these examples, `params -> (losses [B], new model_state)`.

    Raises:
      ValueError: when called, for losses that are not one per example, or a model state that is not like the one
        before; `name` is what the message calls the loss.
    """
    batch = self.seen
    batch_size = batch_size_of(batch)

    def bound(params):
      if self.model_state is None:
        losses, new_model_state = loss_fn(params, batch, self.rng), None
      else:
        losses, new_model_state = _with_state(
          loss_fn(params, batch, self.rng, self.model_state), self.model_state, name
        )
      check_losses(losses, batch_size, name)
      return losses, new_model_state

    return bound


def _with_state(result, model_state, name):
  """Returns the two parts of what a loss that carries state returned."""
  if not isinstance(result, (tuple, list)) or len(result) != 2:
    raise ValueError(
      f"{name} returned a {type(result).__name__}: in a train state with a model_state a loss returns "
      "(losses [B], new model_state)"
    )
  before, after = jax.tree.structure(model_state), jax.tree.structure(result[1])
  if before != after:
    raise ValueError(
      f"{name} returned a model_state with the structure {after}: it has that of the one before, {before}"
    )
  return result


def summed(*loss_fns: LossFn) -> LossFn:
  """Returns the sum of losses of the same batch, which is finite where all of them are; the first's model state."""

  def loss(params, batch, rng, *model_state):
    results = [loss_fn(params, batch, rng, *model_state) for loss_fn in loss_fns]
    if not model_state:
      return sum(results)
    return sum(losses for losses, _ in results), results[0][1]

  return loss_fns[0] if len(loss_fns) == 1 else loss
