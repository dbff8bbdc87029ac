import hashlib

import numpy as np
import pytest

from soseleto_jax.data import draws


def philox_4x64(counter, key):
  """Philox4x64-10 from its published definition (Salmon et al., 2011), in Python integers."""
  multipliers = 0xD2E7470EE14C6C93, 0xCA5A826395121157
  weyl = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
  word = 2**64
  c = [counter % word, counter // word, 0, 0]
  k = [key % word, key // word]
  for _ in range(10):
    (hi0, lo0), (hi1, lo1) = (
      divmod(multipliers[0] * c[0], word),
      divmod(multipliers[1] * c[2], word),
    )
    c = [hi1 ^ c[1] ^ k[0], lo1, hi0 ^ c[3] ^ k[1], lo0]
    k = [(k[0] + weyl[0]) % word, (k[1] + weyl[1]) % word]
  return c


def test_bits_are_philox_keyed_by_a_hash_of_seed_and_stream():
  key = int.from_bytes(hashlib.blake2b(b'[7, "a", 3]', digest_size=16).digest(), "little")
  expected = philox_4x64(1, key) + philox_4x64(2, key)
  assert draws.bits(8, 7, "a", 3).tolist() == expected


def test_golden_values():
  assert draws.bits(3, 0, "golden").tolist() == [
    7521296976008653283,
    13395346568566595265,
    5400106990238962469,
  ]
  assert draws.permutation(10, 0, "golden").tolist() == [2, 0, 9, 7, 3, 1, 8, 5, 4, 6]
  assert draws.integers(8, 10, 0, "golden").tolist() == [3, 5, 9, 8, 5, 3, 3, 9]
  assert draws.uniform(3, 0, "golden").tolist() == [
    0.4077303260648618,
    0.7261631925418074,
    0.29274038652356205,
  ]


@pytest.mark.parametrize("other", [(1, "a", 1), (0, "b", 1), (0, "a", 2), (0, "a"), (0, "a1"), (0, "a", "1")])
def test_streams_differ(other):
  assert not np.array_equal(draws.bits(4, 0, "a", 1), draws.bits(4, *other))


def test_numpy_integers_name_the_same_stream():
  np.testing.assert_array_equal(draws.bits(4, np.int32(5), np.int64(2)), draws.bits(4, 5, 2))


def test_longer_draw_begins_with_the_shorter():
  np.testing.assert_array_equal(draws.bits(100, 3, "x")[:7], draws.bits(7, 3, "x"))


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_permutation_holds_every_number_once(n):
  np.testing.assert_array_equal(np.sort(draws.permutation(n, 1, "p")), np.arange(n))


def test_integers_are_spread_evenly():
  counts = np.bincount(draws.integers(70_000, 7, 0, "even"), minlength=7)
  assert counts.size == 7 and np.abs(counts - 10_000).max() < 400  # 4 standard deviations


def test_uniform_is_in_range_and_has_the_moments():
  u = draws.uniform(100_000, 0, "moments")
  assert u.dtype == np.float64 and u.min() >= 0 and u.max() < 1
  np.testing.assert_allclose([u.mean(), u.var()], [1 / 2, 1 / 12], atol=4e-3)
