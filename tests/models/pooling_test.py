import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from soseleto_jax.models.pooling import avg_pool, max_pool


@pytest.mark.parametrize(("pool", "reduce", "rtol"), [(max_pool, np.max, 0), (avg_pool, np.mean, 1e-6)])
@pytest.mark.parametrize(("window", "stride"), [(3, 2), (2, 2), (2, 3), (5, 2)])
@pytest.mark.parametrize("size", [6, 7])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_windows_start_at_0_and_reach_past_the_far_edge(pool, reduce, rtol, window, stride, size, dtype):
  x = -1 - np.random.default_rng(0).random((2, size, size + 2, 3))  # Padding by 0 would win.
  x = jnp.asarray(x, dtype)
  result = pool(x, window=window, stride=stride)
  assert result.dtype == x.dtype
  steps = [range(0, length, stride) for length in x.shape[1:3]]
  for row, i in enumerate(steps[0]):
    for column, j in enumerate(steps[1]):
      expected = reduce(np.float32(x[:, i : i + window, j : j + window]), axis=(1, 2))
      tolerance = rtol if dtype == "float32" else 0.02
      np.testing.assert_allclose(np.float32(result[:, row, column]), expected, rtol=tolerance)
  assert result.shape == (2, len(steps[0]), len(steps[1]), 3)


def test_gradient_goes_to_the_maximum_and_to_one_of_those_that_tie():
  x = jnp.array([[1.0, 2.0, 5.0, 0.0], [3.0, 0.0, 5.0, 5.0]])[None, :, :, None]
  grad = jax.grad(lambda x: jnp.sum(max_pool(x, window=2, stride=2)))(x)[0, :, :, 0]
  np.testing.assert_array_equal(grad[:, :2], [[0, 0], [1, 0]])
  assert grad[:, 2:].sum() == 1 and grad[:, 2:].max() == 1 and grad[0, 3] == 0
  tangents = jnp.arange(8.0).reshape(x.shape)
  _, forward = jax.jvp(lambda x: jnp.sum(max_pool(x, window=2, stride=2)), (x,), (tangents,))
  np.testing.assert_allclose(forward, jnp.vdot(grad, tangents[0, :, :, 0]))


@pytest.mark.parametrize("pool", [max_pool, avg_pool])
def test_derivatives_match_finite_differences(pool):
  x = jax.random.normal(jax.random.key(0), (2, 6, 7, 3))
  check_grads(lambda x: pool(x, window=3, stride=2), (x,), order=1, atol=1e-2, rtol=1e-2)
