"""The orthogonal direction against linear algebra in float64, and what it leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soseleto_jax.core import alignment_rules
from tests import oracle, problems


def matrix(*shape, seed=0, dtype=np.float32):
  return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@pytest.mark.parametrize("shape", [(6, 3), (3, 6), (1, 4), (4, 1), (5, 5, 3, 4)])
def test_is_the_polar_factor(shape):
  """Of a kernel as a matrix of inputs by outputs; its length is the nuclear norm times the root of the rank."""
  gradient = matrix(*shape)
  direction = alignment_rules.orthogonal({"kernel": gradient})["kernel"]
  assert direction.shape == shape and direction.dtype == jnp.float32
  flat = gradient.reshape(-1, shape[-1]).astype(np.float64)
  np.testing.assert_allclose(direction.reshape(flat.shape), oracle.orthogonal(flat), rtol=1e-4, atol=1e-4)
  nuclear, rank = np.linalg.norm(flat, "nuc"), min(flat.shape)
  np.testing.assert_allclose(np.linalg.norm(direction), nuclear * np.sqrt(rank), rtol=1e-4)


def test_is_the_steepest_in_the_spectral_norm():
  """No other direction of the same spectral norm has a larger inner product with the gradient."""
  gradient = matrix(6, 3)
  steepness = lambda v: np.vdot(gradient, v) / np.linalg.norm(v, 2)
  best = steepness(np.asarray(alignment_rules.orthogonal(gradient)))
  np.testing.assert_allclose(best, np.linalg.norm(gradient, "nuc"), rtol=1e-5)
  assert steepness(gradient) < 0.9 * best
  others = gradient + matrix(50, 6, 3, seed=1)
  assert all(steepness(other) < best for other in others)


def test_what_spans_nothing_adds_nothing():
  """The gradient of a softmax has less than full rank: directions beside its span would be rounding errors."""
  columns = matrix(6, 2)
  gradient = np.stack([columns[:, 0], columns[:, 1], -columns.sum(axis=1)], axis=1)
  direction = np.asarray(alignment_rules.orthogonal(gradient))
  np.testing.assert_allclose(direction.sum(axis=1), 0, atol=1e-3)
  np.testing.assert_allclose(direction, oracle.orthogonal(gradient.astype(np.float64)), rtol=1e-3, atol=1e-3)
  problems.assert_same_bits(alignment_rules.orthogonal(np.zeros((3, 2), np.float32)), np.zeros((3, 2), np.float32))


def test_scale_and_small_numbers():
  """In proportion to the gradient, as the gradient is itself, down to the smallest."""
  gradient = matrix(6, 3)
  for scale in (1e-30, 1e-6, 1e6):
    scaled = alignment_rules.orthogonal(np.float32(scale) * gradient)
    np.testing.assert_allclose(scaled / scale, alignment_rules.orthogonal(gradient), rtol=1e-3, atol=1e-3)


def test_vectors_stay_and_dtypes_too():
  gradient = {"bias": jnp.float32([1, 0, -2]), "scale": jnp.float32(3), "kernel": jnp.ones((2, 3), jnp.bfloat16)}
  direction = alignment_rules.orthogonal(gradient | {"left_out": None})
  problems.assert_same_bits((direction["bias"], direction["scale"]), (gradient["bias"], gradient["scale"]))
  assert direction["kernel"].dtype == jnp.bfloat16 and direction["left_out"] is None


def test_what_is_not_finite_shows():
  gradient = matrix(4, 3)
  gradient[1, 2] = np.nan
  assert np.isnan(problems.jit(alignment_rules.orthogonal)(gradient)).any()
  assert np.isfinite(jax.vmap(alignment_rules.orthogonal)(matrix(2, 4, 3))).all()
