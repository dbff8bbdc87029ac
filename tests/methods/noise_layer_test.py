"""The noise layer's loss by its definition, and its matrix through a few steps written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soseleto_jax import init_train_state
from soseleto_jax.methods import noise_layer
from tests import problems, runs
from tests.methods import setups

K = runs.CLASSES


def stochastic(seed):
  return np.random.default_rng(seed).dirichlet(np.ones(K), size=K)


def softmax(logits):
  exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
  return exp / exp.sum(axis=-1, keepdims=True)


def test_loss(x64):
  rng = np.random.default_rng(0)
  logits, label, matrix = 3 * rng.normal(size=(7, K)), rng.integers(0, K, 7), stochastic(1)
  losses = noise_layer.noisy_cross_entropy(jnp.asarray(logits), label, jnp.asarray(matrix))
  expected = [-np.log(sum(p[i] * matrix[i, y] for i in range(K))) for p, y in zip(softmax(logits), label, strict=True)]
  np.testing.assert_allclose(losses, expected, rtol=1e-12)


@pytest.mark.parametrize("logit", [80.0, 200.0])
@pytest.mark.parametrize("matrix", [np.eye(K), np.full((K, K), 1 / K)])
def test_a_network_that_is_certain_and_wrong(matrix, logit):
  """Its loss and gradients are finite, also where the label's probability underflows, and tell the matrix to let go."""
  loss = lambda logits, matrix: noise_layer.noisy_cross_entropy(logits, np.array([1]), matrix)[0]
  value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(jnp.array([[logit, 0.0, 0.0]]), jnp.asarray(matrix))
  assert np.isfinite(value) and all(np.isfinite(gradient).all() for gradient in gradients)
  assert gradients[1][0, 1] < 0 or (logit == 200 and matrix[0, 1] == 0)


def nearest_probabilities(row):
  """By bisection for the shift that makes the positive parts sum to 1."""
  low, high = row.min() - 1, row.max()
  for _ in range(200):
    middle = (low + high) / 2
    low, high = (middle, high) if np.maximum(row - middle, 0).sum() > 1 else (low, middle)
  return np.maximum(row - low, 0)


def test_three_steps(x64):
  """The identity at first; then SGD with momentum and weight decay on both losses, and the projection of each row."""
  setup = setups.make_setup("noise_layer", optimizer__schedule="constant", target_weight=0.5)
  method = noise_layer.make_method(setup, fixed_epochs=0.25, rate_factor=0.5, weight_decay=0.3)
  (phase,) = method.phases
  assert (phase.num_steps, phase.step.sets) == (8, ("source", "target"))
  start = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), method.init(setup.params))
  state = init_train_state(start, phase.step.optimizer, runs.NUM_SOURCE, alpha_init=1.0)
  expected = jax.tree.map(np.asarray, start)
  velocity = jax.tree.map(np.zeros_like, expected)
  take_step, gradient_of = problems.jit(phase.step), problems.jit(jax.grad(total_loss), static_argnums=1)
  for step in range(3):
    source = problems.batch(2 * step, 6, classes=K, shape=(5,), dtype=np.float64)
    target = problems.batch(2 * step + 1, 4, classes=K, shape=(5,), dtype=np.float64)
    state, _ = take_step(state, {**source, "index": problems.index(step, 6, runs.NUM_SOURCE)}, target)

    logits = logits_of(setup.network, expected["network"], source)
    gradient = {
      "network": gradient_of(expected["network"], setup.network, source, target, expected["extra"]),
      "extra": matrix_gradient(softmax(logits), source["label"], expected["extra"]),
    }
    decay = {"network": 1e-2, "extra": 0.3}
    for name in gradient:
      rate = {"network": 0.1, "extra": 0.05 * (step > 0)}[name]
      velocity[name] = jax.tree.map(
        lambda v, g, p: 0.9 * v + np.asarray(g) + decay[name] * p, velocity[name], gradient[name], expected[name]
      )
      expected[name] = jax.tree.map(lambda p, v: p - rate * v, expected[name], velocity[name])
    expected["extra"] = np.stack([nearest_probabilities(row) for row in expected["extra"]])
    if step == 0:
      np.testing.assert_array_equal(state.params["extra"], np.eye(K))
    problems.assert_close(state.params, expected, rtol=1e-5, atol=1e-7)  # logits are float32
  np.testing.assert_allclose(np.sum(state.params["extra"], axis=1), 1)
  assert np.max(np.abs(state.params["extra"] - np.eye(K))) > 1e-3


def logits_of(network, params, batch):
  return network.apply(params, None, batch["x"])[0]


def total_loss(params, network, source, target, matrix):
  log_noisy = jnp.log(jax.nn.softmax(logits_of(network, params, source)) @ matrix)
  log_clean = jax.nn.log_softmax(logits_of(network, params, target))
  return -jnp.mean(log_noisy[np.arange(6), source["label"]]) - 0.5 * jnp.mean(log_clean[np.arange(4), target["label"]])


def matrix_gradient(probability, label, matrix):
  gradient = np.zeros_like(matrix)
  for p, y in zip(probability, label, strict=True):
    gradient[:, y] -= p / (p @ matrix[:, y]) / len(label)
  return gradient


def test_transfer_is_refused():
  with pytest.raises(ValueError, match="config.data.shared_classes=False: method 'noise_layer'"):
    noise_layer.make_method(setups.make_setup("noise_layer", shared=False))
