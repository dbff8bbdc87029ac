"""The axis that a batch is split over: sums, means, sizes, counts and keys of the whole batch.

`axis_name` is the name (or names) of the mapped axis, as `jax.shard_map` and `jax.pmap` bind it, or None where the
batch is whole.
"""

from typing import Any

import jax
import jax.numpy as jnp

AxisName = Any  # a name, a tuple of names, or None


def total(tree: Any, axis_name: AxisName) -> Any:
  """Sums each leaf over the devices."""
  return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def largest(values: jax.Array, mask: jax.Array, axis_name: AxisName) -> jax.Array:
  """Largest size of the unmasked values `[B]` of the whole batch, a constant to derivatives; 0 where all are masked."""
  size = jax.lax.stop_gradient(jnp.max(jnp.where(mask, jnp.abs(values), 0)))
  return size if axis_name is None else jax.lax.pmax(size, axis_name)


def count(mask: jax.Array, axis_name: AxisName) -> jax.Array:
  """Number of unmasked rows of the whole batch, float32, at least 1 so that a batch of padding divides."""
  return jnp.maximum(total(jnp.sum(mask, dtype=jnp.float32), axis_name), 1.0)


def masked_mean(values: jax.Array, mask: jax.Array, axis_name: AxisName) -> jax.Array:
  """Mean of the unmasked values `[B]` of the whole batch; 0 where all are masked."""
  return total(jnp.sum(jnp.where(mask, values, 0.0)), axis_name) / count(mask, axis_name)


def step_keys(seed: jax.Array, step: jax.Array, axis_name: AxisName) -> tuple[jax.Array, jax.Array]:
  """The keys of a step's first and second batch, source and target; under an axis of each device's own."""
  key = jax.random.fold_in(jax.random.key(seed), step)
  if axis_name is not None:
    key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
  first, second = jax.random.split(key)
  return first, second


def merged_state(new: Any, old: Any, mask: jax.Array, axis_name: AxisName) -> Any:
  """One model state of all devices'.

  Numbers with a fraction are averaged, each device counting as often as it has unmasked rows; counters, flags and keys
  are the first device's. Where all rows of the batch are masked, the state is the old one.

  Args:
    new: what the loss returned, each device's own.
    old: the state that it was given, of the same structure.
    mask: bool `[B]`, this device's.
    axis_name: the axis, or None.
  """
  number = jnp.sum(mask)
  whole = total(number, axis_name)

  def of_devices(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return jax.random.wrap_key_data(of_devices(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
      wide = leaf.astype(jnp.float32 if leaf.dtype.itemsize < 4 else leaf.dtype)
      mean = jax.lax.psum(jnp.where(number > 0, number * wide, 0), axis_name) / jnp.maximum(whole, 1)
      return mean.astype(leaf.dtype)
    if leaf.dtype == bool:
      return of_devices(leaf.astype(jnp.int32)).astype(bool)
    is_first = jax.lax.axis_index(axis_name) == 0
    return jax.lax.psum(jnp.where(is_first, leaf, 0), axis_name)

  def merge(leaf, before):
    leaf = jnp.asarray(leaf)
    return jnp.where(whole > 0, leaf if axis_name is None else of_devices(leaf), before)

  return jax.tree.map(merge, new, old)


def varying(tree: Any, axis_name: AxisName) -> Any:
  """Marks replicated values as varying over the axis, so that gradients by them stay each device's own.

  `jax.shard_map` would otherwise sum them over the axis by itself, where `jax.pmap` does not.
  """
  if axis_name is None:
    return tree
  names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
  manual = jax.sharding.get_abstract_mesh().manual_axes  # an axis of vmap is none, and knows no such difference

  def cast(leaf):
    for name in names:
      if name in manual:
        try:
          leaf = jax.lax.pcast(leaf, name, to="varying")
        except ValueError:  # varying already
          pass
    return leaf

  return jax.tree.map(cast, tree)
