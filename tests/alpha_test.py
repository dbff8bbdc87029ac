import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soseleto_jax import alpha as alpha_lib
from tests import problems

# Sums of these are exact in any order.
ALPHA = np.float32([0, 0.25, 0.5, 0.75, 1, 0.125, 0.875, 0.0625])
INDEX = np.int32([2, 7, 2, 0, 4, -1, 8, 3])
MASK = np.array([1, 1, 1, 1, 1, 1, 1, 0], bool)
VALID = np.array([1, 1, 1, 1, 1, 0, 0, 0], bool)
DELTA = np.float32([0.75, -0.5, -0.5, 0.125, 0.25, 9, 9, 9])
SHARDS = pytest.mark.parametrize("shards", [1, 2, 4])


def _over_shards(fn, shards):
  """Calls fn with alpha and the batch cut into pieces, one for each place of a mapped axis."""
  if shards == 1:
    return lambda *args: fn(*map(jnp.asarray, args))
  cut = lambda array: array.reshape(shards, -1)
  mapped = jax.vmap(functools.partial(fn, axis_name="data"), axis_name="data")
  return lambda *args: mapped(*map(cut, args)).reshape(-1)


def _rows(index=INDEX, mask=MASK, shards=1):
  valid_rows = lambda alpha, index, mask, axis_name=None: alpha_lib.valid_rows(index, mask, alpha, axis_name)
  return _over_shards(valid_rows, shards)(ALPHA, index, mask)


@SHARDS
def test_valid_rows(shards):
  np.testing.assert_array_equal(_rows(shards=shards), VALID)
  extreme = np.int32([-(2**31), 2**31 - 1, -8, -9, 0, 7, 100, 1])
  expected = [False, False, False, False, True, True, False, True]
  np.testing.assert_array_equal(_rows(extreme, np.ones(8, bool), shards), expected)


@SHARDS
def test_read(shards):
  weights = _over_shards(alpha_lib.read, shards)(ALPHA, INDEX, VALID)
  assert weights.dtype == np.float32
  np.testing.assert_array_equal(weights, np.float32([0.5, 0.0625, 0.5, 0, 1, 0, 0, 0]))


@SHARDS
def test_add_and_clip(shards):
  """Row 2 gets 0.75 - 0.5 before its clip; row 3 is masked; rows 1, 5 and 6 are in no batch."""
  result = _over_shards(alpha_lib.add_and_clip, shards)(ALPHA, INDEX, DELTA, VALID)
  problems.assert_same_bits(np.asarray(result), np.float32([0.125, 0.25, 0.75, 0.75, 1, 0.125, 0.875, 0]))


@SHARDS
def test_rows_that_are_not_touched_keep_their_bits(shards):
  """Also values that no arithmetic would keep: -0, denormal, NaN, outside of the bounds."""
  odd = np.float32([-0.0, 1e-45, np.nan, 1.5, -3, np.inf, 0.1, 0.3])
  nothing_valid = np.zeros(8, bool)
  result = _over_shards(alpha_lib.add_and_clip, shards)(odd, INDEX, DELTA, nothing_valid)
  problems.assert_same_bits(np.asarray(result), odd)
  one_valid = np.arange(8) == 1
  result = _over_shards(alpha_lib.add_and_clip, shards)(odd, INDEX, DELTA, one_valid)
  problems.assert_same_bits(np.asarray(result), np.append(odd[:7], np.float32(0)))


@SHARDS
def test_many_repeats_of_one_row(shards):
  index, delta = np.full(8, 6, np.int32), np.float32([1, 1, 1, 1, -1, -1, -1, -1.25])
  result = _over_shards(alpha_lib.add_and_clip, shards)(ALPHA, index, delta, np.ones(8, bool))
  assert result[6] == 0.625
  np.testing.assert_array_equal(np.delete(result, 6), np.delete(ALPHA, 6))


def test_deltas_of_another_dtype_leave_alpha_float32():
  result = alpha_lib.add_and_clip(jnp.asarray(ALPHA), INDEX, DELTA.astype(jnp.bfloat16), VALID)
  assert result.dtype == jnp.float32
