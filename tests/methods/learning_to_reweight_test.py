"""Weights and step against their definition: the derivative of the target loss through a step of SGD."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soseleto_jax import init_train_state
from soseleto_jax.methods.learning_to_reweight import make_method, make_reweighting_step
from tests import problems, runs
from tests.methods import setups

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


def test_the_method():
  """Its weights and parameters after a step are those of the step by itself."""
  setup = setups.make_setup("learning_to_reweight")
  method = make_method(setup)
  (phase,) = method.phases
  assert (phase.num_steps, phase.step.sets) == (runs.STEPS_PER_EPOCH * 2, ("source", "target"))
  assert (method.uses_alpha, method.alpha_init) == (False, 1.0)
  expected = make_reweighting_step(setup.loss("source"), setup.loss("target"), setup.optimizer())
  state = setups.start(method, setup)
  after, metrics = setups.take_steps(phase.step, state)
  problems.assert_close((after, metrics), setups.take_steps(expected, state))
  assert 0 < np.sum(after.alpha < 1) and np.isfinite(list(metrics.values())).all()


def test_weights_that_are_not_finite():
  """The gradient says so; `alpha` stays a weight."""
  setup = setups.make_setup("learning_to_reweight")
  method = make_method(setup)
  data = setups.batches(0)
  data["target"]["x"][0] = np.nan
  gradient, after, metrics = problems.jit(method.phases[0].step.gradients)(setups.start(method, setup), *data.values())
  assert not np.isfinite(optax.tree.norm(gradient)) and not np.isfinite(metrics["grad_norm"])
  assert np.all((0 <= after.alpha) & (after.alpha <= 1))


def test_batch_norm(x64):
  """The state that the network carries on is the source's."""

  def loss(params, batch, rng, model_state):
    losses = problems.tanh_loss()(params, batch, rng)
    return losses + model_state["mean"], {"mean": model_state["mean"] + jnp.mean(batch["x"])}

  step = make_reweighting_step(loss, loss, optax.sgd(0.2))
  state = init_train_state(
    problems.tanh_params(dtype=np.float64), step.optimizer, N, model_state={"mean": jnp.zeros((), np.float64)}
  )
  source = problems.batch(0, 7, dtype=np.float64, index=np.arange(7, dtype=np.int32))
  state, _ = problems.jit(step)(state, source, problems.batch(1, 5, dtype=np.float64))
  np.testing.assert_allclose(state.model_state["mean"], np.mean(source["x"]))


def test_transfer_is_refused():
  with pytest.raises(ValueError, match="config.data.shared_classes=False: method 'learning_to_reweight'"):
    make_method(setups.make_setup("learning_to_reweight", shared=False))
