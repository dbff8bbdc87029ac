"""Normalisation of batches, and their flips."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soseleto_jax.data.preparation import Preparation
from soseleto_jax.data.transforms import Normalization
from tests import problems

N, SHAPE = 60, (2, 3, 2)
NORMALIZATION = Normalization(np.float32([100, 120]), np.float32([50, 60]))


@pytest.fixture(scope="module")
def arrays():
  rng = np.random.default_rng(0)
  return {
    "x": jnp.asarray(rng.integers(0, 256, (N, *SHAPE), np.uint8)),
    "label": jnp.asarray(rng.integers(0, 9, N, np.int32)),
  }


@functools.cache
def preparation(flip):
  return problems.jit(Preparation(NORMALIZATION, flip))


def prepare(arrays, index, flip, key=0):
  index = jnp.asarray(index, jnp.int32)
  batch = {name: array[index] for name, array in arrays.items()}
  return preparation(flip)({**batch, "index": index}, jax.random.key(key))


def flipped(arrays, index, key=0):
  """Which rows are mirrored; each is either that or as it was."""
  plain = np.asarray(prepare(arrays, index, False)["x"])
  x = np.asarray(prepare(arrays, index, True, key)["x"])
  same, mirrored = ((x == image).all(axis=(1, 2, 3)) for image in (plain, plain[:, :, ::-1]))
  assert (same ^ mirrored).all()
  return mirrored


@pytest.mark.parametrize("flip", [False, True])
def test_what_a_batch_holds(arrays, flip):
  index = np.int32([3, 59, 0, 3])
  batch = prepare(arrays, index, flip)
  assert batch.keys() == {"x", "label", "index"}
  assert batch["x"].dtype == jnp.float32 and batch["x"].shape == (4, *SHAPE)
  np.testing.assert_array_equal(batch["label"], np.asarray(arrays["label"])[index])
  np.testing.assert_array_equal(batch["index"], index)
  if not flip:
    x = (np.asarray(arrays["x"])[index].astype(np.float32) - NORMALIZATION.mean) / NORMALIZATION.std
    np.testing.assert_allclose(batch["x"], x, rtol=1e-6)


def test_about_half_are_mirrored(arrays):
  share = np.mean([flipped(arrays, np.arange(N), key) for key in range(5)])
  assert 0.4 < share < 0.6  # 300 draws, 3.5 standard deviations


def test_key_and_row_decide(arrays):
  """Not the place in the batch, nor the other rows: the split over devices changes nothing."""
  drawn = flipped(arrays, np.arange(N))
  order = np.random.default_rng(1).permutation(N)
  np.testing.assert_array_equal(flipped(arrays, order), drawn[order])
  for part in order.reshape(4, 15):
    np.testing.assert_array_equal(flipped(arrays, part), drawn[part])
  assert (flipped(arrays, np.arange(N), key=1) != drawn).any()


def test_vectors_without_flips():
  arrays = {"x": jnp.arange(12.0).reshape(6, 2), "label": jnp.arange(6)}
  x = prepare(arrays, [5, 1], False)["x"]
  np.testing.assert_allclose(x, (np.float32([[10, 11], [2, 3]]) - NORMALIZATION.mean) / NORMALIZATION.std)
