"""Where arrays live: one mesh axis, "data", that `alpha` and batches are split over, and parameters too on request."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from soseleto_jax.core import arrays
from soseleto_jax.core.alpha import PADDING
from soseleto_jax.core.losses import batch_size_of
from soseleto_jax.core.train_state import TrainState

AXIS = "data"
_WHOLE: Any = P()
_SPLIT: Any = P(AXIS)
STATE_SPECS = TrainState(step=_WHOLE, params=_WHOLE, opt_state=_WHOLE, alpha=_SPLIT, model_state=_WHOLE, seed=_WHOLE)
MIN_SPLIT_SIZE = 2**14  # smaller parameters stay whole: moving them costs more than they take


def make_mesh(devices: Any = None) -> Mesh:
  """Returns a mesh of the given devices, or of all, along the one axis "data"."""
  devices = jax.devices() if devices is None else devices
  return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


def state_shardings(state: TrainState, mesh: Mesh, shard_params: bool = False) -> TrainState:
  """Returns the sharding of each array of a state, in its place.

  `alpha` is split over "data"; everything else is on every device. With `shard_params` each array of `params` and
  `opt_state` is split along its longest axis that the devices divide, unless it has none, or fewer than 2**14 elements.
  """

  def split(tree):
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _param_spec(leaf.shape, mesh.shape[AXIS])), tree)

  whole = jax.tree.map(lambda _: NamedSharding(mesh, P()), state)
  shardings = whole.replace(alpha=NamedSharding(mesh, P(AXIS)))
  if shard_params:
    shardings = shardings.replace(params=split(state.params), opt_state=split(state.opt_state))
  return shardings


def _param_spec(shape, num_devices):
  lengths = [length if length % num_devices == 0 else 0 for length in shape]
  if math.prod(shape) < MIN_SPLIT_SIZE or not any(lengths):
    return P()
  return P(*[None] * lengths.index(max(lengths)), AXIS)


def shard_train_state(state: TrainState, mesh: Mesh, shard_params: bool = False) -> TrainState:
  """Places a train state on a mesh with an axis "data".

  Args:
    state: on any device, or NumPy arrays.
    mesh: with an axis "data" of D devices.
    shard_params: whether large parameters and their optimizer state are split as well, see `shard_train_step`.

  Returns:
    The state with `alpha` split over "data" and padded to a multiple of D with -1, which marks rows that no example
    owns, and the rest as `state_shardings` says. All arrays are copies, so that donating them never deletes the
    caller's.
  """
  alpha = np.asarray(state.alpha)
  padded = np.pad(alpha, (0, -len(alpha) % mesh.shape[AXIS]), constant_values=PADDING)
  shardings = state_shardings(state, mesh, shard_params)

  def place(leaf, sharding):
    return arrays.put(jnp.array(leaf, copy=True), sharding)

  placed = jax.tree.map(place, state.replace(alpha=None), shardings.replace(alpha=None))
  # From the host, and not by way of one device that may have no room for all of it.
  return placed.replace(alpha=arrays.put(padded, NamedSharding(mesh, P(AXIS))))


def shard_train_step(step: Callable[..., Any], mesh: Mesh, shard_params: bool = False) -> Callable[..., Any]:
  """Maps a train step over the devices of a mesh.

  With `shard_params`, large parameters and their optimizer state live split over the devices, so that between steps
  each device holds 1/D of them. That is all it saves: during a step every device gathers all parameters once and holds
  a whole gradient of the source and one of the target. The optimizer then works on each device's part, and any optax
  transformation means what it says (a clip by the global norm is by the norm of all parts).

  Args:
    step: from `make_train_step(..., axis_name="data")` or `make_plain_step`; without `shard_params` also any function
      of a state and batches.
    mesh: with an axis "data" of D devices.
    shard_params: as it was given to `shard_train_state`. Meant for `contraction="jvp"`: beside the per-example
      gradients of "vmap_grad" it saves little.

  Returns:
    `step(state, *batches) -> (state, metrics)`, jitted. The state is as `shard_train_state` places it, and donated.
    Batches arrive whole: they are split over the devices, padded with masked rows where B is not a multiple of D.
  """

  def sharded(state, *batches):
    batches = [pad_batch(batch, mesh) for batch in batches]
    if _is_explicit(mesh):  # shard_map moves no such array by itself
      batches = jax.reshard(batches, NamedSharding(mesh, P(AXIS)))
    return map_over_devices(step, mesh, [P(AXIS)] * len(batches), shard_params)(state, *batches)

  return jax.jit(sharded, donate_argnums=0)


def map_over_devices(step: Any, mesh: Mesh, specs: Any, shard_params: bool = False) -> Callable[..., Any]:
  """Returns `step(state, *args) -> (state, metrics)` mapped over "data", with the partition of each of `args`.

  With `shard_params`, the step's `gradients` are mapped, and its `descend` is partitioned automatically.
  """
  if not shard_params:
    return jax.shard_map(step, mesh=mesh, in_specs=(STATE_SPECS, *specs), out_specs=(STATE_SPECS, P()))
  mapped = jax.shard_map(step.gradients, mesh=mesh, in_specs=(STATE_SPECS, *specs), out_specs=(P(), STATE_SPECS, P()))

  def sharded(state, *args):
    shardings = state_shardings(state, mesh, shard_params)
    explicit = _is_explicit(mesh)
    whole = jax.reshard(state.params, NamedSharding(mesh, P())) if explicit else state.params
    gradient, after, metrics = mapped(state.replace(params=whole, opt_state=None), *args)
    after = after.replace(params=state.params, opt_state=state.opt_state)
    if explicit:
      return jax.sharding.auto_axes(step.descend, axes=AXIS, out_sharding=shardings)(after, gradient), metrics
    return jax.lax.with_sharding_constraint(step.descend(after, gradient), shardings), metrics

  return sharded


def pad_batch(batch: Any, mesh: Mesh) -> Any:
  """Appends copies of the first row under "mask" False until the devices divide the batch."""
  size = batch_size_of(batch)
  missing = -size % mesh.shape[AXIS]
  if not missing:
    return batch
  mask = batch.get("mask", jnp.ones(size, bool))
  padded = jax.tree.map(lambda leaf: jnp.concatenate([leaf, jnp.repeat(leaf[:1], missing, axis=0)]), batch)
  return {**padded, "mask": jnp.concatenate([mask, jnp.zeros(missing, bool)])}


def _is_explicit(mesh):
  return mesh.axis_types[mesh.axis_names.index(AXIS)] is AxisType.Explicit
