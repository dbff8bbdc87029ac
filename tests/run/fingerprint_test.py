"""Checksums: exact, and blind to nothing but padding and placement."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from soseleto_jax.core import sharding
from soseleto_jax.run import fingerprint

DTYPES = ("float32", "bfloat16", "float16", "int32", "uint32", "uint8", "int8", "bool")


def make(dtype, shape=(6, 5), seed=0):
  return jnp.asarray(np.random.default_rng(seed).integers(0, 2 if dtype == "bool" else 99, shape), dtype)


def checksum(leaf):
  return fingerprint.checksums({"x": leaf})["['x']"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_bit_counts(dtype):
  array = np.asarray(make(dtype, (3, 2)))
  seen = {checksum(array)}
  for bit in range(0, 8 * array.nbytes, 8 if dtype == "bool" else 1):
    data = bytearray(array.tobytes())
    data[bit // 8] ^= 1 << bit % 8
    seen.add(checksum(np.frombuffer(data, array.dtype).reshape(array.shape)))
  assert len(seen) == 1 + (array.size if dtype == "bool" else 8 * array.nbytes)


@pytest.mark.parametrize("dtype", DTYPES)
def test_order_counts(dtype):
  array = np.asarray(make(dtype))
  assert checksum(array) != checksum(array[::-1]) != checksum(array[:, ::-1])


def test_two_signs_count():
  """Which a plain sum of odd multiples would not see: 2**31 twice is 0."""
  array = np.ones(9, np.float32)
  changed = array.copy()
  changed[[2, 5]] *= -1
  assert checksum(changed) != checksum(array)


@pytest.mark.parametrize("spec", [P("data"), P(None, "data"), P()])
def test_placement_does_not_count(spec):
  array = np.random.default_rng(1).normal(size=(16, 24)).astype(np.float32)
  placed = jax.device_put(array, NamedSharding(sharding.make_mesh(), spec))
  assert checksum(placed) == checksum(array)


def test_padding_does_not_count():
  alpha = np.random.default_rng(2).uniform(size=13).astype(np.float32)
  assert checksum(np.pad(alpha, (0, 3))) == checksum(alpha) != checksum(np.pad(alpha, (3, 0)))


def test_leaves_by_their_paths():
  tree = {"w": jnp.zeros((2, 3)), "steps": [jnp.int32(7), np.zeros(0, np.uint8)]}
  assert fingerprint.describe(tree) == {"['steps'][0]": "int32[]", "['steps'][1]": "uint8[0]", "['w']": "float32[2, 3]"}
  assert fingerprint.checksums(tree).keys() == fingerprint.describe(tree).keys()


def test_a_known_value():
  """Checkpoints of today can be read tomorrow."""

  def mix(x):
    x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
    x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
    return x ^ (x >> 16)

  array = np.float32([[1.5, -2, 0], [3, 0.1, 7]])
  words = array.view(np.uint32).ravel().tolist()
  assert checksum(array) == sum(mix(word * (mix(i) | 1) % 2**32) for i, word in enumerate(words)) % 2**32
