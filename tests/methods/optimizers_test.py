"""Schedules against their closed forms, optimizers against updates by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soseleto_jax.config import default_config
from soseleto_jax.methods.optimizers import OPTIMIZERS, SCHEDULES, make_optimizer, make_schedule
from tests import problems


def optimizer_config(**fields):
  config = default_config().optimizer
  config.update(fields)
  return config


@pytest.mark.parametrize(
  "fields, rates",
  [
    ({"schedule": "constant"}, {0: 0.4, 50: 0.4, 1000: 0.4}),
    ({"schedule": "cosine"}, {0: 0.4, 25: 0.2 * (1 + np.sqrt(0.5)), 50: 0.2, 75: 0.2 * (1 - np.sqrt(0.5)), 100: 0}),
    ({"schedule": "steps"}, {0: 0.4, 100: 0.4}),
    (
      {"schedule": "steps", "drop_epochs": (2, 5)},
      {0: 0.4, 19: 0.4, 20: 0.04, 49: 0.04, 50: 0.004, 99: 0.004},
    ),
    ({"schedule": "steps", "drop_epochs": (0.75,)}, {7: 0.4, 8: 0.04}),  # at step 7.5
    ({"schedule": "inverse"}, {0: 0.4, 1: 0.4 * 1.0001**-0.75, 10_000: 0.4 * 2**-0.75, 150_000: 0.4 / 8}),
  ],
  ids=str,
)
def test_schedules(fields, rates):
  """Of 10 epochs of 10 steps; `drop_epochs` are whole or fractions, and the rate drops after as many."""
  schedule = make_schedule(optimizer_config(learning_rate=0.4, **fields), 10, 100)
  for step, rate in rates.items():
    np.testing.assert_allclose(schedule(jnp.int32(step)), rate, rtol=1e-5, atol=1e-8, err_msg=str(step))


def gradients(steps):
  return np.random.default_rng(0).normal(size=(steps, 3)).astype(np.float32)


START, RATE, DECAY = np.float32([1, -2, 3]), 0.1, 0.5
CONSTANT = optax.constant_schedule(RATE)


def updates(steps=4, schedule=CONSTANT, **fields):
  """The points that an optimizer goes through."""
  optimizer = make_optimizer(optimizer_config(**fields), schedule)
  params = {"w": jnp.asarray(START)}
  state, points = optimizer.init(params), []
  for gradient in gradients(steps):
    change, state = optimizer.update({"w": jnp.asarray(gradient)}, state, params)
    params = optax.apply_updates(params, change)
    points.append(params["w"])
  return np.stack(points)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, DECAY])
def test_sgd(momentum, decay):
  """v = momentum v + (g + decay p); p = p - rate v."""
  point, velocity, expected = START.astype(np.float64), np.zeros(3), []
  for gradient in gradients(4):
    velocity = momentum * velocity + gradient + decay * point
    point = point - RATE * velocity
    expected.append(point)
  np.testing.assert_allclose(updates(name="sgd", momentum=momentum, weight_decay=decay), expected, rtol=1e-5)


@pytest.mark.parametrize("decay", [0.0, DECAY])
def test_adam(decay):
  """Decay is part of the gradient that the moments are taken of."""
  point, first, second, expected = START.astype(np.float64), np.zeros(3), np.zeros(3), []
  for step, gradient in enumerate(gradients(4), start=1):
    gradient = gradient + decay * point
    first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
    point = point - RATE * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    expected.append(point)
  np.testing.assert_allclose(updates(name="adam", weight_decay=decay), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_schedule_is_followed(name):
  """Two steps at rate 0 move nothing, the third does."""
  points = updates(3, lambda step: jnp.where(step < 2, 0.0, RATE), name=name)
  np.testing.assert_array_equal(points[:2], [START, START])
  assert (points[2] != START).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_have_one_structure_whatever_the_schedule(name):
  """So that a checkpoint of either phase of `finetune` can be restored."""
  schedules = [make_schedule(optimizer_config(schedule=schedule), 10, 100) for schedule in SCHEDULES]
  states = [make_optimizer(optimizer_config(name=name), s).init({"w": START}) for s in schedules]
  for state in states[1:]:
    assert jax.tree.structure(state) == jax.tree.structure(states[0])
    problems.assert_same_bits(state, states[0])


def test_unknown_names():
  with pytest.raises(ValueError, match="config.optimizer.schedule='cosin': choose one of constant, cosine"):
    make_schedule(optimizer_config(schedule="cosin"), 10, 100)
  with pytest.raises(ValueError, match="config.optimizer.name='sdg': choose one of sgd, adam"):
    make_optimizer(optimizer_config(name="sdg"), optax.constant_schedule(0.1))
