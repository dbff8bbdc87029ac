"""Weights and step against their definition: the derivative of the target loss through a step of SGD."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.comparators.learning_to_reweight import make_reweighting_step
from soseleto_jax import init_train_state
from tests import problems

N = 20


def weights_by_definition(params, source, target):
  """Through the lookahead step, at weights 0; masked rows have none."""
  loss, rate = problems.tanh_loss(), 0.3

  def after_step(weights):
    weighted = lambda params: jnp.sum(weights * source["mask"] * loss(params, source, None))
    moved = jax.tree.map(lambda p, g: p - rate * g, params, jax.grad(weighted)(params))
    return jnp.mean(loss(moved, target, None))

  positive = np.maximum(-jax.grad(after_step)(jnp.zeros(len(source["label"]))), 0)
  return positive / (positive.sum() or 1)


@pytest.mark.parametrize("target_is", ["another", "opposed"])
def test_two_steps(x64, target_is):
  loss, optimizer = problems.tanh_loss(), optax.sgd(0.2)
  step = problems.jit(make_reweighting_step(loss, loss, optimizer))
  params = problems.tanh_params(dtype=np.float64)
  state = init_train_state(params, optimizer, N, alpha_init=0.4)
  for number in range(2):
    source = problems.batch(number, 7, dtype=np.float64, mask=np.arange(7) < 6)
    source["index"] = np.arange(7, dtype=np.int32)
    target = problems.batch(9, 5, dtype=np.float64)
    if target_is == "opposed":  # one example alone, whose every other label is right: no source example helps
      source = jax.tree.map(lambda leaf: np.repeat(leaf[:1], 7, axis=0), source) | {"index": source["index"]}
      target = {"x": source["x"][:1], "label": (source["label"][:1] + 1) % 3}
    weights = weights_by_definition(params, source, target)
    assert (np.sum(weights) == 0) == (target_is == "opposed")
    descended = lambda params: jnp.sum(weights * loss(params, source, None))
    value, gradient = jax.value_and_grad(descended)(params)
    params = jax.tree.map(lambda p, g: p - 0.2 * g, params, gradient)
    state, metrics = step(state, source, target)
    problems.assert_close(state.params, params, rtol=1e-5, atol=1e-7)
    valid = 6 if target_is == "another" else 7
    np.testing.assert_allclose(state.alpha[:valid], weights[:valid], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(state.alpha[7:], 0.4)
    np.testing.assert_allclose(metrics["source_loss"], value, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(gradient), rtol=1e-5, atol=1e-7)
  if target_is == "another":
    assert 0 < np.count_nonzero(weights) < 6
