"""Sums, means, counts and keys of a batch that is whole, and of one that is cut over an axis."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from soseleto_jax.core import axis
from tests import problems

DEVICES = 3
VALUES = np.float32([[1, 2], [4, np.nan], [np.inf, 16]])  # exact in any order, where it counts
MASK = np.array([[True, True], [True, False], [False, True]])


def _over_axis(fn, *args):
  """Calls fn with the rows of the arguments, one for each place of the axis, and stacks what returns."""
  return jax.device_get(problems.jit(jax.vmap(functools.partial(fn, axis_name="data"), axis_name="data"))(*args))


def test_total():
  tree = {"a": np.float32([1, 2, 4]), "b": np.int32([[1, 0], [2, 0], [4, 1]])}
  result = _over_axis(axis.total, tree)
  np.testing.assert_array_equal(result["a"], [7] * DEVICES)
  np.testing.assert_array_equal(result["b"], [[7, 1]] * DEVICES)
  assert axis.total(tree, None) is tree


@pytest.mark.parametrize("mask, number", [(MASK, 4), (np.zeros_like(MASK), 1)])
def test_count_of_the_whole_batch_is_at_least_1(mask, number):
  counted = _over_axis(axis.count, mask)
  assert counted.dtype == np.float32
  np.testing.assert_array_equal(counted, [number] * DEVICES)
  assert axis.count(mask.reshape(-1), None) == number


@pytest.mark.parametrize("mask, mean", [(MASK, 23 / 4), (np.zeros_like(MASK), 0)])
def test_masked_mean_is_of_the_whole_batch(mask, mean):
  """And not the mean of the devices' means; what masked rows hold does not matter."""
  np.testing.assert_array_equal(_over_axis(axis.masked_mean, VALUES, mask), [mean] * DEVICES)
  assert axis.masked_mean(VALUES.reshape(-1), mask.reshape(-1), None) == mean


def test_step_keys_are_of_seed_step_and_device():
  """One for each of two batches."""

  def bits(seed, step, axis_name=None):
    return jnp.stack([jax.random.key_data(key) for key in axis.step_keys(seed, step, axis_name)])

  seeds, steps = np.uint32([5, 5, 5]), np.int32([7, 7, 7])
  expected = jax.random.key_data(jax.random.split(jax.random.fold_in(jax.random.key(5), 7)))
  np.testing.assert_array_equal(bits(5, 7), expected)
  per_device = _over_axis(bits, seeds, steps)
  keys = [tuple(key) for keys in (expected, bits(5, 8), bits(6, 7), *per_device) for key in keys]
  assert len({tuple(map(int, key)) for key in keys}) == 2 * (3 + DEVICES)
  np.testing.assert_array_equal(per_device, _over_axis(bits, seeds, steps))


_NUMBERS = np.float32([1, 2, 6])
STATE = {"mean": _NUMBERS, "half": jnp.bfloat16(_NUMBERS), "calls": np.int32([4, 4, 4])}
STATE["eighth"] = jnp.asarray(_NUMBERS, jnp.float8_e5m2)  # which JAX promotes to nothing


def _before(state=STATE):
  return jax.tree.map(lambda leaf: (np.float32(leaf) - 1).astype(leaf.dtype), state)


@pytest.mark.parametrize(
  "mask, mean",
  [
    (np.ones((3, 2), bool), 3),
    ([[True, True], [True, False], [False, False]], 4 / 3),  # each row counts once, and a device without none
    ([[False, False], [False, False], [True, False]], 6),
  ],
)
def test_merged_state_is_the_mean_over_rows_in_its_own_dtype(mask, mean):
  """A counter of steps stays an integer."""
  result = _over_axis(axis.merged_state, STATE, _before(), np.asarray(mask))
  for name, value in {"mean": mean, "half": mean, "eighth": mean, "calls": 4}.items():
    assert result[name].dtype == STATE[name].dtype
    rtol = {"half": 0.004, "eighth": 0.07}.get(name, 1e-6)
    np.testing.assert_allclose(np.float32(result[name]), [value] * DEVICES, rtol=rtol)


def test_merged_state_without_rows_is_the_old_one():
  """Whatever the loss returned; and what a device without rows returned counts for nothing, not even as NaN."""
  none, before = np.zeros((3, 2), bool), _before()
  broken = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan) if leaf.dtype != np.int32 else leaf, STATE)
  problems.assert_same_bits(_over_axis(axis.merged_state, broken, before, none), jax.device_get(before))
  problems.assert_same_bits(axis.merged_state(broken, before, none[0], None), before)
  mixed = {"mean": np.float32([np.nan, 2, np.nan])}
  found = _over_axis(axis.merged_state, mixed, {"mean": np.zeros(3, np.float32)}, none | [[False], [True], [False]])
  np.testing.assert_array_equal(found["mean"], [2] * DEVICES)


def test_merged_state_without_an_axis_is_the_new_one():
  problems.assert_same_bits(axis.merged_state(STATE, _before(), np.array([False, True]), None), STATE)
  assert axis.merged_state(None, None, np.ones(2, bool), None) is None


def test_varying_keeps_gradients_each_devices_own():
  """Of what is the same on all devices, or along one axis, `jax.shard_map` would otherwise sum them."""
  devices = np.asarray(jax.devices("cpu")[:4]).reshape(2, 2)
  mesh = Mesh(devices, ("rows", "columns"), axis_types=(AxisType.Auto,) * 2)
  both = ("rows", "columns")

  def gradients(params, x):
    starts = (params, axis.varying(params, "rows"), axis.varying(axis.varying(params, "rows"), both))
    return [jax.grad(lambda params: jnp.sum(x * params))(start)[None] for start in starts]

  specs = [P(), P("rows"), P(both)]
  mapped = jax.shard_map(gradients, mesh=mesh, in_specs=(P(), P(both)), out_specs=specs)
  summed, of_rows, own = problems.jit(mapped)(jnp.float32(1), np.float32([1, 2, 4, 8]))
  assert summed.tolist() == [15] and of_rows.tolist() == [3, 12] and own.tolist() == [1, 2, 4, 8]


def test_varying_is_nothing_elsewhere():
  tree = {"w": np.float32([1, 2, 3])}
  assert axis.varying(tree, None) is tree
  problems.assert_same_bits(_over_axis(axis.varying, tree), tree)


def test_counters_flags_and_keys_are_the_first_device_s_to_the_last_bit():
  """Of numbers that float32 cannot hold, under `jax.shard_map` with its check that all devices agree."""
  mesh = Mesh(np.asarray(jax.devices("cpu")[:DEVICES]), ("data",), axis_types=(AxisType.Auto,))
  counters = np.uint32(3_000_000_001) + np.arange(DEVICES, dtype=np.uint32)
  tree = {
    "counter": np.int32(20_000_001) + np.arange(DEVICES, dtype=np.int32),
    "unsigned": counters,
    "small": np.arange(DEVICES, dtype=np.uint8) + np.uint8(7),
    "flag": np.arange(DEVICES) == 0,
    "raw": np.stack([np.zeros(DEVICES, np.uint32), 123_456_789 + np.arange(DEVICES, dtype=np.uint32)], axis=1),
    "key": jax.random.split(jax.random.key(3), DEVICES),
    "number": np.arange(DEVICES, dtype=np.float32),
  }

  def merged(tree, before):
    return axis.merged_state(jax.tree.map(lambda leaf: leaf[0], tree), before, jnp.ones(2, bool), "data")

  split, whole = jax.P("data"), jax.P()
  before = jax.tree.map(lambda leaf: leaf[2], tree)
  found = problems.jit(jax.shard_map(merged, mesh=mesh, in_specs=(split, whole), out_specs=whole))(tree, before)
  assert found.pop("number") == (DEVICES - 1) / 2
  problems.assert_same_bits(jax.random.key_data(found.pop("key")), jax.random.key_data(tree.pop("key")[0]))
  for name, leaf in found.items():
    assert leaf.dtype == tree[name].dtype
    np.testing.assert_array_equal(leaf, tree[name][0])
