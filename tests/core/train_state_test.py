import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soseleto_jax import TrainState, init_train_state
from tests import problems


def _init(num_source=4, **options):
  return init_train_state(problems.tanh_params(), optax.adam(0.1), num_source, **options)


def test_state_at_step_0():
  params, model_state = problems.tanh_params(), {"mean": jnp.ones(2)}
  state = init_train_state(params, optax.adam(0.1), 4, model_state=model_state, seed=7)
  assert isinstance(state, TrainState)
  problems.assert_same_bits(state.alpha, np.full(4, 0.5, np.float32))
  problems.assert_same_bits((state.step, state.seed), (np.int32(0), np.uint32(7)))
  problems.assert_same_bits((state.params, state.model_state), (params, model_state))
  problems.assert_same_bits(state.opt_state, optax.adam(0.1).init(params))
  assert _init().model_state is None and int(_init().seed) == 0


@pytest.mark.parametrize(
  "alpha_init", [0, 1, 1.0, 0.25, np.float64(0.1), np.float32([0, 1, 0.5, 0.1]), [0.0, 0.25, 1.0, 0.5]]
)
def test_alpha_init(alpha_init):
  state = _init(alpha_init=alpha_init)
  problems.assert_same_bits(state.alpha, np.broadcast_to(np.asarray(alpha_init, np.float32), 4))
  assert not state.alpha.weak_type


@pytest.mark.parametrize(
  "alpha_init, message",
  [
    (1.5, r"alpha_init=1.5: weights lie in \[0, 1\]"),
    (-1e-6, "alpha_init=-1e-06"),
    (float("nan"), "alpha_init=nan"),
    (np.float32([0, 0.5, np.nan, 1]), "alpha_init=nan"),
    (np.float32([0, 0.5, 2, 1]), "alpha_init=2.0"),
    (float("inf"), "alpha_init=inf"),
    (np.zeros(3), r"alpha_init has shape \(3,\).*4 source examples"),
    (np.zeros((4, 1)), r"alpha_init has shape \(4, 1\)"),
    (np.zeros(1), r"alpha_init has shape \(1,\)"),
  ],
)
def test_errors_for_alpha_init(alpha_init, message):
  with pytest.raises(ValueError, match=message):
    _init(alpha_init=alpha_init)


@pytest.mark.parametrize("num_source", [0, -2])
def test_error_for_num_source(num_source):
  with pytest.raises(ValueError, match=f"num_source={num_source}: .*at least 1"):
    _init(num_source)


def test_is_a_frozen_pytree():
  state = _init()
  assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
  doubled = jax.tree.map(lambda leaf: 2 * leaf, state)
  assert isinstance(doubled, TrainState) and doubled.alpha.tolist() == [1, 1, 1, 1]
  with pytest.raises(dataclasses.FrozenInstanceError):
    state.alpha = doubled.alpha
  replaced = state.replace(alpha=doubled.alpha)
  assert replaced.alpha is doubled.alpha and replaced.params is state.params
  assert state.alpha.tolist() == [0.5] * 4


def test_under_jit_and_vmap():
  """An ensemble: its members' seeds and starting weights may be traced."""
  make = lambda seed, alpha: init_train_state(problems.tanh_params(), optax.sgd(0.1), 4, seed=seed, alpha_init=alpha)
  states = jax.jit(jax.vmap(make))(jnp.arange(3), jnp.float32([0, 0.5, 1]))
  assert states.seed.tolist() == [0, 1, 2] and states.alpha.shape == (3, 4)
  np.testing.assert_array_equal(states.alpha[:, 0], [0, 0.5, 1])
