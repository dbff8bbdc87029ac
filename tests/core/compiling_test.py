import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soseleto_jax.core import compiling

WAYS = pytest.mark.parametrize("jit", [compiling.jit_once, compiling.jit_quickly])


@WAYS
def test_the_same_numbers_are_drawn(jit):
  draw = lambda key: jax.random.normal(key, (50, 3))
  np.testing.assert_allclose(jit(draw)(jax.random.key(3)), jax.jit(draw)(jax.random.key(3)), rtol=1e-5, atol=1e-6)


@WAYS
def test_it_can_be_part_of_another_program(jit):
  draw = lambda key: jit(jax.random.normal)(key)
  assert jax.eval_shape(draw, jax.random.key(3)).shape == ()
  np.testing.assert_allclose(jax.jit(draw)(jax.random.key(3)), draw(jax.random.key(3)), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other backends compile as ever")
def test_xla_is_asked_for_less(monkeypatch):
  asked = []
  monkeypatch.setattr(compiling, "known", dict)
  monkeypatch.setattr(jax, "jit", lambda function, **options: asked.append(options) or function)
  compiling.jit_once(jnp.sum, donate_argnums=0)
  compiling.jit_quickly(jnp.sum)
  former = {"xla_cpu_use_fusion_emitters": False}
  assert asked == [
    {"donate_argnums": 0, "compiler_options": former | {"xla_backend_optimization_level": 1}},
    {"compiler_options": former},
  ]


def test_options_that_a_version_lacks_are_left_out():
  options = {"xla_backend_optimization_level": 1, "xla_of_another_day": True}
  assert compiling.known(options) == {"xla_backend_optimization_level": 1}
