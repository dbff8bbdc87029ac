"""Reading and updating `alpha`, the weight of every source example, whole or split over devices.

With `axis_name`, `alpha` is this device's contiguous shard `[N / D]` of the weights and `index` holds global rows,
which may live on any device. Only arrays of the size of the batch travel; nothing of size N moves or is copied.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from soseleto_jax.core.losses import mask_of

PADDING = -1.0  # stands in rows that no example owns, which fill up the shards; any weight below 0 does


class Rows(NamedTuple):
  """What `read` found for the whole batch, of all devices, and `add_and_clip` goes on from.

  Attributes:
    local: int32 `[B]`, rows of this device's shard; past its end for rows that own no weight or live elsewhere.
    values: float32 `[B]`, their weights; 0 past the end.
  """

  local: jax.Array
  values: jax.Array


def read_batch(alpha, batch, axis_name=None):
  """Reads the weights of a batch's rows "index", under its "mask" if it has one: see `read`.

  Raises:
    ValueError: the batch has no "index", or is no mapping of arrays.
  """
  mask = mask_of(batch)
  if "index" not in batch:
    raise ValueError(f"source batch with keys {sorted(batch)}: it needs 'index', integers [B], the rows of alpha")
  return read(alpha, batch["index"], mask, axis_name)


def read(alpha, index, mask, axis_name=None):
  """Reads the weights of a batch.

  Args:
    alpha: float32 `[N]`, or this device's shard `[N / D]`.
    index: integers `[B]`, global rows.
    mask: bool `[B]`, False for padding of the batch.
    axis_name: the mapped axis that `alpha` is split over, or None.

  Returns:
    weights: float32 `[B]`; 0 where valid is False.
    valid: bool `[B]`: the mask, and False too where the index lies outside of `alpha` or names its padding; such a row
      is treated as padding (JAX itself would wrap a negative index and clamp a large one).
    rows: `Rows`, for `add_and_clip`.
  """
  if not jnp.issubdtype(index.dtype, jnp.integer) or index.shape != mask.shape:
    raise ValueError(
      f"batch['index'] has dtype {index.dtype}, shape {index.shape}: give integers {mask.shape}, the rows of alpha"
    )
  num_rows = alpha.shape[0] * (1 if axis_name is None else jax.lax.axis_size(axis_name))
  if index.dtype.itemsize < 4:  # which cannot hold num_rows
    index = index.astype(jnp.int32)
  valid = mask & (index >= 0) & (index < num_rows)
  local = jnp.where(valid, index, num_rows).astype(jnp.int32)
  if axis_name is not None:
    local = jax.lax.all_gather(local, axis_name, tiled=True) - jax.lax.axis_index(axis_name) * alpha.shape[0]
    local = jnp.where((local >= 0) & (local < alpha.shape[0]), local, alpha.shape[0])
  values = alpha.at[local].get(mode="fill", fill_value=0.0)
  weights = _to_owners(values, axis_name)
  owned, valid = ~(values < 0), valid & ~(weights < 0)  # a weight that is NaN is still a weight
  rows = Rows(jnp.where(owned, local, alpha.shape[0]), jnp.where(owned, values, 0.0))
  return jnp.where(valid, weights, 0.0), valid, rows


def add_and_clip(alpha, rows, delta, axis_name=None):
  """Adds `delta` to the rows of a batch and clips those rows to [0, 1].

  A row that stands several times in the batch gets the sum of its deltas, then one clip. Rows outside of the batch
  and rows that are not valid keep their bits.

  Args:
    alpha: float32 `[N]`, or this device's shard `[N / D]`.
    rows: what `read` returned for this `alpha`.
    delta: float32 `[B]`, this device's share.
    axis_name: the mapped axis that `alpha` is split over, or None.

  Returns:
    alpha: the new weights, of the shape of `alpha`.
    weights: those of this device's share of the batch, float32 `[B]`; 0 for rows that are not valid.
  """
  if axis_name is not None:
    delta = jax.lax.all_gather(delta, axis_name, tiled=True)
  # A single write, of values made from those that were read, so that it comes after the read. Without that order
  # between them XLA copies all of alpha to keep what is read.
  new = jnp.clip(rows.values + _sum_repeats(rows.local, delta.astype(alpha.dtype)), 0.0, 1.0)
  new = jnp.where(rows.local < alpha.shape[0], new, 0.0)
  return alpha.at[rows.local].set(new, mode="drop"), _to_owners(new, axis_name)


def _to_owners(values, axis_name):
  """Hands each device the values of its share of the batch; 0 came from all but the device that holds the weight."""
  return values if axis_name is None else jax.lax.psum_scatter(values, axis_name, tiled=True)


def _sum_repeats(rows, delta):
  """Returns, at each place `[B]`, the sum of the deltas of all places with the same row."""
  order = jnp.argsort(rows)
  group = jnp.cumsum(jnp.diff(rows[order], prepend=rows[order[:1]]) != 0)
  totals = jax.ops.segment_sum(delta[order], group, len(rows))
  return jnp.zeros_like(delta).at[order].set(totals[group])
