"""What a loss function is, and the batch that it is called with."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from soseleto_jax.core import calls
from soseleto_jax.core.axis import AxisName

_ARGUMENTS = ("params", "batch", "rng")
_THREE = "it takes a model_state, too, where init_train_state was given one, and only there"
_FOUR = "the train state has a model_state, which it is given, and returns (losses [B], new model_state)"
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
    ValueError: it is no mapping of arrays, their leading axes differ, or there is no row.
  """
  if not isinstance(batch, Mapping):
    raise ValueError(
      f"batch is a {type(batch).__name__}: give a mapping of arrays by name, such as {{'x': ..., 'label': ...}}"
    )
  for path, leaf in jax.tree.leaves_with_path(dict(batch)):
    _check_array(leaf, path)
  sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(dict(batch))}
  if len(sizes) != 1 or () in sizes or (0,) in sizes:
    shapes = jax.tree.map(lambda leaf: leaf.shape, dict(batch))
    cure = "every array needs the same leading axis, one row per example"
    if sizes == {(0,)}:
      cure = "no example; give one row at least, masked where it does not count"
    raise ValueError(f"batch with shapes {shapes}: {cure}")
  return sizes.pop()[0]


def _check_array(leaf, path):
  if isinstance(path[-1], jax.tree_util.SequenceKey) and not getattr(leaf, "shape", ()):  # jax.jit made arrays of them
    while isinstance(path[-1], jax.tree_util.SequenceKey):
      path = path[:-1]
    raise ValueError(
      f"batch{jax.tree_util.keystr(path)} is a list of numbers: give one NumPy or JAX array, one row per example"
    )
  if not hasattr(leaf, "shape"):
    place = f"batch{jax.tree_util.keystr(path)}"
    raise ValueError(f"{place} is a {type(leaf).__name__}: give NumPy or JAX arrays, one row per example")


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
    raise ValueError(
      f"batch['mask'] has dtype {mask.dtype}, shape {mask.shape}: give bool ({size},), True for rows that count, such "
      "as mask.astype(bool); weights of rows belong into the loss"
    )
  return mask


def checked_losses(losses: Any, batch_size: int, name: str) -> jax.Array:
  """Returns what a loss returned, in float32 or better.

  Raises:
    ValueError: it is no array of floats `[batch_size]`; `name` is what the message calls the loss.
  """
  if isinstance(losses, (tuple, list)):
    raise ValueError(
      f"{name} returned a {type(losses).__name__} of {len(losses)}: in a train state without a model_state a loss "
      "returns one array [B]; give init_train_state(model_state=...) what it is to carry, and drop other outputs"
    )
  if getattr(losses, "shape", None) != (batch_size,):
    what = f"shape {losses.shape}" if hasattr(losses, "shape") else f"a {type(losses).__name__}"
    raise ValueError(
      f"{name} returned {what} for a batch of {batch_size}: return one loss per example, "
      f"shape ({batch_size},), not their mean or sum"
    )
  if not jnp.issubdtype(losses.dtype, jnp.floating):
    raise ValueError(f"{name} returned dtype {losses.dtype}: return floats, which can be differentiated by the params")
  return losses.astype(jnp.promote_types(losses.dtype, jnp.float32))


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
      ValueError: when called, for a function of other arguments, losses that are not one per example, or a model
        state that is not like the one before; `name` is what the message calls the loss.
    """
    batch = self.seen
    batch_size = batch_size_of(batch)

    def bound(params):
      if self.model_state is None:
        calls.check_takes(loss_fn, _ARGUMENTS, name, _THREE)
        losses, new_model_state = loss_fn(params, batch, self.rng), None
      else:
        calls.check_takes(loss_fn, (*_ARGUMENTS, "model_state"), name, _FOUR)
        losses, new_model_state = _with_state(
          loss_fn(params, batch, self.rng, self.model_state), self.model_state, name
        )
      return checked_losses(losses, batch_size, name), new_model_state

    return bound


def _with_state(result, model_state, name):
  """Returns the two parts of what a loss that carries state returned."""
  if not isinstance(result, (tuple, list)) or len(result) != 2:
    what = "one array" if hasattr(result, "shape") else f"a {type(result).__name__}"
    raise ValueError(
      f"{name} returned {what}: in a train state with a model_state a loss returns (losses [B], new model_state)"
    )
  before, after = jax.tree.structure(model_state), jax.tree.structure(result[1])
  if before != after:
    raise ValueError(
      f"{name} returned a model_state with the structure {after}: it has that of the one before, {before}"
    )
  for (path, old), new in zip(jax.tree.leaves_with_path(model_state), jax.tree.leaves(result[1]), strict=True):
    if jnp.shape(old) != jnp.shape(new):
      place = f"model_state{jax.tree_util.keystr(path)}"
      raise ValueError(
        f"{name} returned a {place} of shape {jnp.shape(new)}: it has that of the one before, {jnp.shape(old)}"
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
