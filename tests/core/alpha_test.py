"""Reading and updating weights, of an array that is whole or cut over a mapped axis."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soseleto_jax.core import alpha as alpha_lib
from tests import problems

# Sums of these are exact in any order.
ALPHA = np.float32([0, 0.25, 0.5, 0.75, 1, 0.125, 0.875, 0.0625])
INDEX = np.int32([2, 7, 2, 0, 4, -1, 8, 3])
MASK = np.array([1, 1, 1, 1, 1, 1, 1, 0], bool)
VALID = np.array([1, 1, 1, 1, 1, 0, 0, 0], bool)
DELTA = np.float32([0.75, -0.5, -0.5, 0.125, 0.25, 9, 9, 9])
SHARDS = pytest.mark.parametrize("shards", [1, 4])


@functools.cache
def _over_shards(fn, shards):
  """Calls fn with alpha and the batch cut into pieces, one for each place of a mapped axis, and joins what returns."""
  if shards == 1:
    return problems.jit(fn)

  def cut(array):
    return array.reshape(shards, -1)

  mapped = problems.jit(jax.vmap(functools.partial(fn, axis_name="data"), axis_name="data"))
  return lambda *args: jax.tree.map(lambda array: array.reshape(-1), mapped(*map(cut, args)))


def _read(alpha, index, mask, axis_name=None):
  return alpha_lib.read(alpha, index, mask, axis_name)[:2]


def _update(alpha, index, mask, delta, axis_name=None):
  _, _, rows = alpha_lib.read(alpha, index, mask, axis_name)
  return alpha_lib.add_and_clip(alpha, rows, delta, axis_name)


@SHARDS
def test_which_rows_are_valid(shards):
  _, valid = _over_shards(_read, shards)(ALPHA, INDEX, MASK)
  np.testing.assert_array_equal(valid, VALID)
  extreme = np.int32([-(2**31), 2**31 - 1, -8, -9, 0, 7, 100, 1])
  _, valid = _over_shards(_read, shards)(ALPHA, extreme, np.ones(8, bool))
  np.testing.assert_array_equal(valid, [False, False, False, False, True, True, False, True])


@SHARDS
def test_read(shards):
  weights, _ = _over_shards(_read, shards)(ALPHA, INDEX, MASK)
  assert weights.dtype == np.float32
  np.testing.assert_array_equal(weights, np.float32([0.5, 0.0625, 0.5, 0, 1, 0, 0, 0]))


@SHARDS
def test_add_and_clip(shards):
  """Row 2 gets 0.75 - 0.5 before its clip; row 3 is masked; rows 1, 5 and 6 are in no batch."""
  alpha, weights = _over_shards(_update, shards)(ALPHA, INDEX, MASK, DELTA)
  problems.assert_same_bits(np.asarray(alpha), np.float32([0.125, 0.25, 0.75, 0.75, 1, 0.125, 0.875, 0]))
  problems.assert_same_bits(np.asarray(weights), np.float32([0.75, 0, 0.75, 0.125, 1, 0, 0, 0]))


@SHARDS
def test_padding_of_alpha_owns_no_weight(shards):
  """Its last two rows; the mask says nothing about them."""
  padded = np.append(ALPHA[:6], np.float32([alpha_lib.PADDING] * 2))
  index = np.int32([7, 6, 5, 5, 7, 0, 1, 2])
  weights, valid = _over_shards(_read, shards)(padded, index, np.ones(8, bool))
  np.testing.assert_array_equal(valid, [False, False, True, True, False, True, True, True])
  np.testing.assert_array_equal(weights, np.float32([0, 0, 0.125, 0.125, 0, 0, 0.25, 0.5]))
  alpha, weights = _over_shards(_update, shards)(padded, index, np.ones(8, bool), np.full(8, 0.25, np.float32))
  expected = np.append(np.float32([0.25, 0.5, 0.75, 0.75, 1, 0.625]), padded[6:])
  problems.assert_same_bits(np.asarray(alpha), expected)
  np.testing.assert_array_equal(weights, np.where(valid, expected[index], 0))


@SHARDS
def test_rows_that_are_not_touched_keep_their_bits(shards):
  """Also values that no arithmetic would keep: -0, denormal, NaN, outside of the bounds."""
  odd = np.float32([-0.0, 1e-45, np.nan, 1.5, -3, np.inf, 0.1, 0.3])
  alpha, _ = _over_shards(_update, shards)(odd, INDEX, np.zeros(8, bool), DELTA)
  problems.assert_same_bits(np.asarray(alpha), odd)
  alpha, _ = _over_shards(_update, shards)(odd, INDEX, np.arange(8) == 1, DELTA)
  problems.assert_same_bits(np.asarray(alpha), np.append(odd[:7], np.float32(0)))


@SHARDS
def test_a_weight_that_is_nan_stays_a_weight(shards):
  """So that a run that has diverged shows it."""
  alpha = np.append(ALPHA[:7], np.float32(np.nan))
  weights, valid = _over_shards(_read, shards)(alpha, INDEX, MASK)
  assert valid[1] and np.isnan(weights[1])
  assert np.isnan(_over_shards(_update, shards)(alpha, INDEX, MASK, DELTA)[0][7])


@SHARDS
def test_many_repeats_of_one_row(shards):
  index, delta = np.full(8, 6, np.int32), np.float32([1, 1, 1, 1, -1, -1, -1, -1.25])
  alpha, weights = _over_shards(_update, shards)(ALPHA, index, np.ones(8, bool), delta)
  np.testing.assert_array_equal(weights, [0.625] * 8)
  np.testing.assert_array_equal(alpha, np.where(np.arange(8) == 6, np.float32(0.625), ALPHA))


def test_deltas_of_another_dtype_leave_alpha_float32():
  alpha, weights = jax.eval_shape(_update, ALPHA, INDEX, MASK, DELTA.astype(jnp.bfloat16))
  assert alpha.dtype == weights.dtype == jnp.float32


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "uint32"])
@SHARDS
def test_integers_of_any_size_name_the_same_rows(shards, dtype):
  """Also where they cannot hold the number of rows, by which masked ones are set aside."""
  alpha = np.linspace(0, 1, 300, dtype=np.float32)
  index = np.array([120, 121, 122, 123, 0, 44, 1, 127], dtype)
  mask = np.array([1, 1, 1, 1, 1, 0, 1, 1], bool)
  delta = np.full(8, 0.25, np.float32)
  found = _over_shards(_update, shards)(alpha, index, mask, delta)
  expected = _over_shards(_update, shards)(alpha, index.astype(np.int32), mask, delta)
  problems.assert_same_bits(found, expected)
  untouched = np.delete(np.arange(300), index[mask])
  problems.assert_same_bits(np.asarray(found[0])[untouched], alpha[untouched])


@pytest.mark.parametrize("index, message", [(INDEX.astype(np.float32), "float32"), (INDEX[:5], r"shape \(5,\)")])
def test_an_index_is_integers_of_each_row(index, message):
  with pytest.raises(ValueError, match=message):
    alpha_lib.read(ALPHA, index, MASK)
