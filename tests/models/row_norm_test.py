import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soseleto_jax.models.row_norm import with_row_norm


@pytest.mark.parametrize(("dtype", "rtol"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-8)])
def test_rows_have_the_length_and_their_own_direction(dtype, rtol):
  x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 300)) * [[1e-3], [1], [30], [1e3]], dtype)
  rows = np.asarray(x, np.float64)
  scaled = with_row_norm(x, 5.0)
  assert scaled.dtype == dtype
  expected = 5 * rows / np.linalg.norm(rows, axis=1, keepdims=True)
  np.testing.assert_allclose(np.asarray(scaled, np.float64), expected, rtol=rtol)


def test_rows_of_zeros_have_no_direction_and_no_gradient():
  x = jnp.asarray([[0.0, 0.0], [3.0, 4.0]])
  scaled, pullback = jax.vjp(with_row_norm, x)
  (gradient,) = pullback(jnp.ones_like(x))
  np.testing.assert_allclose(scaled, [[0, 0], [0.6, 0.8]], rtol=1e-6)
  # (1 - u uᵀ) 1 / |x| for the second row, u its direction.
  np.testing.assert_allclose(gradient, [[0, 0], [0.032, -0.024]], rtol=1e-5)
  assert not np.any(gradient[0])  # of NaN np.any is True
