"""Where arrays live: one mesh axis, "data", that `alpha` and batches are split over."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from soseleto_jax import processes
from soseleto_jax.alignment import batch_size_of
from soseleto_jax.train_state import TrainState

AXIS = "data"
STATE_SPECS = TrainState(step=P(), params=P(), opt_state=P(), alpha=P(AXIS), model_state=P(), seed=P())


def make_mesh(devices: Any = None) -> Mesh:
  """Returns a mesh of the given devices, or of all, along the one axis "data"."""
  devices = jax.devices() if devices is None else devices
  return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


def shard_train_state(state: TrainState, mesh: Mesh) -> TrainState:
  """Places a train state on a mesh with an axis "data".

  Args:
    state: on any device, or NumPy arrays.
    mesh: with an axis "data" of D devices.

  Returns:
    The state with `alpha` split over "data" and padded with zeros to a multiple of D, and everything else on every
    device. All arrays are copies, so that donating them never deletes the caller's.
  """
  num_devices = mesh.shape[AXIS]
  alpha = np.asarray(state.alpha)
  padded = np.pad(alpha, (0, -len(alpha) % num_devices))

  def place(leaf, spec):
    return processes.put(jnp.array(leaf, copy=True), NamedSharding(mesh, spec))

  replicated = jax.tree.map(lambda leaf: place(leaf, P()), state.replace(alpha=None))
  return replicated.replace(alpha=place(padded, P(AXIS)))


def shard_train_step(step: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
  """Maps a train step over the devices of a mesh.

  Args:
    step: from `make_train_step(..., axis_name="data")` or `make_plain_step`; or any function of a state and batches.
    mesh: with an axis "data" of D devices.

  Returns:
    `step(state, *batches) -> (state, metrics)`, jitted. The state is as `shard_train_state` places it, and donated.
    Batches arrive whole: they are split over the devices, padded with masked rows where B is not a multiple of D.
  """

  def sharded(state, *batches):
    batches = [pad_batch(batch, mesh) for batch in batches]
    if mesh.axis_types[mesh.axis_names.index(AXIS)] is AxisType.Explicit:  # shard_map moves no such array by itself
      batches = jax.reshard(batches, NamedSharding(mesh, P(AXIS)))
    return map_over_devices(step, mesh, [P(AXIS)] * len(batches))(state, *batches)

  return jax.jit(sharded, donate_argnums=0)


def map_over_devices(fn: Callable[..., Any], mesh: Mesh, specs: Any) -> Callable[..., Any]:
  """Returns `fn(state, *args) -> (state, metrics)` mapped over "data", with the partition of each of `args`."""
  return jax.shard_map(fn, mesh=mesh, in_specs=(STATE_SPECS, *specs), out_specs=(STATE_SPECS, P()))


def pad_batch(batch: Any, mesh: Mesh) -> Any:
  """Appends copies of the first row under "mask" False until the devices divide the batch."""
  size = batch_size_of(batch)
  missing = -size % mesh.shape[AXIS]
  if not missing:
    return batch
  mask = batch.get("mask", jnp.ones(size, bool))
  padded = jax.tree.map(lambda leaf: jnp.concatenate([leaf, jnp.repeat(leaf[:1], missing, axis=0)]), batch)
  return {**padded, "mask": jnp.concatenate([mask, jnp.zeros(missing, bool)])}
