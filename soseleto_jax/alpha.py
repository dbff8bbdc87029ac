"""Reading and updating `alpha`, the weight of every source example, whole or split over devices.

With `axis_name`, `alpha` is this device's contiguous shard `[N / D]` of the weights and `index` holds global rows,
which may live on any device. Only arrays of the size of the batch travel; nothing of size N moves.
"""

import jax
import jax.numpy as jnp


def valid_rows(index, mask, alpha, axis_name=None):
  """Marks the rows of a batch that own a weight.

  Args:
    index: int32 `[B]`, global rows of `alpha`.
    mask: bool `[B]`, False for padding.
    alpha: float32 `[N]`, or this device's shard `[N / D]`.
    axis_name: the mapped axis that `alpha` is split over, or None.

  Returns:
    bool `[B]`: the mask, and False too where the index lies outside of `alpha`; such a row is treated as padding
    (JAX itself would wrap a negative index and clamp a large one).
  """
  return mask & (index >= 0) & (index < _num_rows(alpha, axis_name))


def read(alpha, index, valid, axis_name=None):
  """Returns the weights of a batch, float32 `[B]`; 0 where `valid` is False."""
  rows = _rows_to_touch(alpha, index, valid, axis_name)
  values = alpha.at[rows].get(mode="fill", fill_value=0.0)
  return values if axis_name is None else jax.lax.psum_scatter(values, axis_name, tiled=True)


def add_and_clip(alpha, index, delta, valid, axis_name=None):
  """Adds `delta` to the rows of a batch and clips those rows to [0, 1].

  A row that stands several times in the batch gets the sum of its deltas, then one clip. Rows outside of the batch
  and rows that are not valid keep their bits.

  Args:
    alpha: float32 `[N]`, or this device's shard `[N / D]`.
    index: int32 `[B]`, global rows.
    delta: float32 `[B]`.
    valid: bool `[B]`, from `valid_rows`.
    axis_name: the mapped axis that `alpha` is split over, or None.

  Returns:
    The new weights, of the shape of `alpha`.
  """
  rows = _rows_to_touch(alpha, index, valid, axis_name)
  if axis_name is not None:
    delta = jax.lax.all_gather(delta, axis_name, tiled=True)
  moved = alpha.at[rows].add(delta.astype(alpha.dtype), mode="drop")
  clipped = jnp.clip(moved.at[rows].get(mode="fill", fill_value=0.0), 0.0, 1.0)
  return moved.at[rows].set(clipped, mode="drop")


def _num_rows(alpha, axis_name):
  return alpha.shape[0] * (1 if axis_name is None else jax.lax.axis_size(axis_name))


def _rows_to_touch(alpha, index, valid, axis_name):
  """Rows of this device's shard for the whole batch; past the shard's end, where reads fill with 0 and writes drop,
  for rows that are not valid or that another device owns."""
  rows = jnp.where(valid, index, _num_rows(alpha, axis_name))
  if axis_name is None:
    return rows
  local = jax.lax.all_gather(rows, axis_name, tiled=True) - jax.lax.axis_index(axis_name) * alpha.shape[0]
  return jnp.where((local >= 0) & (local < alpha.shape[0]), local, alpha.shape[0])
