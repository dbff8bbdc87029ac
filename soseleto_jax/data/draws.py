"""Random draws that are equal on every machine and under every NumPy version.

NumPy may change what its `Generator` methods return for a seed, but not the raw bits of a bit
generator. Everything random in `soseleto_jax.data` is computed here from the raw bits of Philox,
keyed by a hash of the seed and of the stream's name, so that streams are independent of each other.
"""

import hashlib
import json

import numpy as np


def bits(count: int, seed: int, *stream: str | int) -> np.ndarray:
  """Returns `count` raw 64-bit words of a named stream.

  Args:
    count: number of words, at least 0.
    seed: the experiment's seed, any integer.
    *stream: names and numbers that tell this stream from the others of the same seed, such as
      `("source", "epoch", 3)`.

  Returns:
    uint64 `[count]`. A longer draw from a stream begins with the shorter one.
  """
  name = json.dumps([int(seed), *(s if isinstance(s, str) else int(s) for s in stream)])
  key = hashlib.blake2b(name.encode(), digest_size=16).digest()
  return np.random.Philox(key=int.from_bytes(key, "little")).random_raw(count)


def permutation(n: int, seed: int, *stream: str | int) -> np.ndarray:
  """Returns a random order of 0..n-1, int64 `[n]`, by sorting random words."""
  return np.argsort(bits(n, seed, *stream), kind="stable")


def integers(count: int, high: int, seed: int, *stream: str | int) -> np.ndarray:
  """Returns integers drawn uniformly from 0..high-1, int64 `[count]`.

  Words are reduced modulo `high`, which favours small values by less than `high` / 2**64.
  """
  return (bits(count, seed, *stream) % np.uint64(high)).astype(np.int64)


def uniform(count: int, seed: int, *stream: str | int) -> np.ndarray:
  """Returns numbers drawn uniformly from [0, 1), float64 `[count]`, multiples of 2**-53."""
  return (bits(count, seed, *stream) >> np.uint64(11)) * 2.0**-53
