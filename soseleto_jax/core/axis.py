"""The axis that a batch is split over: sums, means, counts and keys of the whole batch.

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


def count(mask: jax.Array, axis_name: AxisName) -> jax.Array:
  """Number of unmasked rows of the whole batch, float32, at least 1 so that a batch of padding divides."""
  return jnp.maximum(total(jnp.sum(mask, dtype=jnp.float32), axis_name), 1.0)


def masked_mean(values: jax.Array, mask: jax.Array, axis_name: AxisName) -> jax.Array:
  """Mean of the unmasked values `[B]` of the whole batch; 0 where all are masked."""
  return total(jnp.sum(jnp.where(mask, values, 0.0)), axis_name) / count(mask, axis_name)


def step_key(seed: jax.Array, step: jax.Array, axis_name: AxisName) -> jax.Array:
  """The key of a step, of each device's own under an axis."""
  key = jax.random.fold_in(jax.random.key(seed), step)
  return key if axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(axis_name))


def mean_state(tree: Any, axis_name: AxisName) -> Any:
  """One state of all devices': means of numbers with a fraction; of counters, flags and keys, the first device's."""
  if axis_name is None:
    return tree

  def merge(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return jax.random.wrap_key_data(merge(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
      return jax.lax.pmean(leaf, axis_name).astype(leaf.dtype)
    if leaf.dtype == bool:
      return merge(leaf.astype(jnp.int32)).astype(bool)
    is_first = jax.lax.axis_index(axis_name) == 0
    return jax.lax.psum(jnp.where(is_first, leaf, 0), axis_name)

  return jax.tree.map(merge, tree)


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
