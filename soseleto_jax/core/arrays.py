"""Host arrays onto devices and back, with one process or several."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

_GATHERED_AT_ONCE = 2**22  # rows of a split array that are on a device at a time


def put(tree: Any, sharding: NamedSharding) -> Any:
  """Places host arrays that every process holds alike; `jax.device_put` would send them around to compare them."""
  if sharding.is_fully_addressable:
    return jax.device_put(tree, sharding)

  def place(leaf):
    leaf = np.asarray(leaf)
    return jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__)

  return jax.tree.map(place, tree)


def copied(array: Any) -> jax.Array:
  """Returns a copy where the array lies; compiles nothing for each shape, as `jnp.array` does."""
  if isinstance(array, jax.Array) and not isinstance(array, jax.core.Tracer):
    return jax.device_put(array, may_alias=False)  # which leaves open where it is used, if that was open
  return jnp.array(array, copy=True)


def gather(array: jax.Array) -> np.ndarray:
  """Returns an array, wherever it lies, as a host array in every process; every process has to call it.

  What is split along its only axis passes through the devices in pieces, so that none ever holds all of it.
  """
  if array.is_fully_addressable or array.is_fully_replicated:
    return np.asarray(array)
  return gather_in_pieces(array) if array.ndim == 1 else multihost_utils.process_allgather(array, tiled=True)


def gather_in_pieces(array: jax.Array) -> np.ndarray:
  """As `gather`, for an array `[N]` that is split over all devices."""
  sharding: Any = array.sharding  # a NamedSharding
  mesh, (axis,) = sharding.mesh, sharding.spec
  rows = len(array) // mesh.size
  count = min(rows, max(1, _GATHERED_AT_ONCE // mesh.size))
  result = np.empty((mesh.size, rows), array.dtype)
  for start in [*range(0, rows - count, count), rows - count]:
    result[:, start : start + count] = _piece(mesh, axis, count)(array, start)
  return result.reshape(-1)


@functools.cache
def _piece(mesh, axis, count):
  """Compiles `(array [N], start) -> [devices, count]`: `count` rows of each device's shard from `start`."""

  def piece(shard, start):
    return jax.lax.all_gather(jax.lax.dynamic_slice_in_dim(shard, start, count), axis)

  return jax.jit(jax.shard_map(piece, mesh=mesh, in_specs=(P(axis), P()), out_specs=P(), check_vma=False))
