import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soseleto_jax.core.compiling import jit_once


def test_what_runs_once_draws_the_same_numbers():
  draw = lambda key: jax.random.normal(key, (50, 3))
  np.testing.assert_array_equal(jit_once(draw)(jax.random.key(3)), jax.jit(draw)(jax.random.key(3)))


def test_it_can_be_part_of_another_program():
  draw = lambda key: jit_once(jax.random.normal)(key)
  assert jax.eval_shape(draw, jax.random.key(3)).shape == ()
  np.testing.assert_array_equal(jax.jit(draw)(jax.random.key(3)), draw(jax.random.key(3)))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other backends compile as ever")
def test_it_is_compiled_at_a_lower_level(monkeypatch):
  asked = []
  monkeypatch.setattr(jax, "jit", lambda function, **options: asked.append(options) or function)
  jit_once(jnp.sum, donate_argnums=0)
  assert asked == [{"donate_argnums": 0, "compiler_options": {"xla_backend_optimization_level": 1}}]
