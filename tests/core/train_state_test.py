import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soseleto_jax import TrainState, init_train_state, make_mesh, shard_train_state, weights
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
    ("half", "alpha_init=array.'half'.*: give a number"),
    (None, "alpha_init=array.None.*: give a number"),
  ],
)
def test_errors_for_alpha_init(alpha_init, message):
  with pytest.raises(ValueError, match=message):
    _init(alpha_init=alpha_init)


@pytest.mark.parametrize("num_source", [0, -2, 1000.0, True, "4"])
def test_error_for_num_source(num_source):
  with pytest.raises(ValueError, match=f"num_source={num_source!r}: .*whole number, at least 1"):
    _init(num_source)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, None])
def test_error_for_a_seed(seed):
  with pytest.raises(ValueError, match=f"seed={seed}: give a whole number from 0 to 2\\*\\*32 - 1"):
    _init(seed=seed)


@pytest.mark.parametrize("make", [lambda: jax.random.key(0), lambda: jax.random.PRNGKey(0), lambda: jnp.float32(1.5)])
def test_error_for_a_seed_that_is_a_key_or_no_whole_number(make):
  for init in (lambda seed: _init(seed=seed), jax.jit(lambda seed: _init(seed=seed))):
    with pytest.raises(ValueError, match="seed=(?s:.*): give a whole number from 0 to 2.*, and no key"):
      init(make())


def test_error_for_a_seed_on_the_device_below_0():
  with pytest.raises(ValueError, match="seed=-1: give a whole number"):
    _init(seed=jnp.int32(-1))


def test_seeds_up_to_the_last():
  for seed in (0, 2**32 - 1, np.int64(7)):
    assert int(_init(seed=seed).seed) == seed


@pytest.mark.parametrize(
  "params, message",
  [
    ({"w": np.ones(3), "table": np.arange(4)}, r"params\['table'\] has dtype int64, .* put it into model_state"),
    ({"mask": np.ones(3, bool)}, r"params\['mask'\] has dtype bool"),
    ({"layer": {"activation": jax.nn.relu}}, r"params\['layer'\]\['activation'\] is a .*: params is a pytree of"),
    ({"w": [0.5, 1.0]}, r"params\['w'\]\[0\] is a float"),
    ({"w": None}, r"params=\{'w': None\} holds no array"),
  ],
)
def test_errors_for_params(params, message):
  with pytest.raises(ValueError, match=message):
    init_train_state(params, optax.sgd(0.1), 4)


def test_error_for_a_model_state_of_what_is_no_array():
  with pytest.raises(ValueError, match=r"model_state\['name'\] is a str: it is a pytree of arrays"):
    _init(model_state={"mean": 0.0, "name": "norm"})


def test_error_for_an_optimizer_that_is_a_number():
  with pytest.raises(ValueError, match="optimizer=0.1: give an optax transformation"):
    init_train_state(problems.tanh_params(), 0.1, 4)


def test_is_a_copy():
  """Donating it deletes nothing of the caller's, and no two of its arrays are one."""
  params, alpha = problems.tanh_params(), jnp.full(4, 0.25)
  model_state = {"mean": jnp.ones(2), "key": jax.random.key(3)}
  state = init_train_state(params, optax.adam(0.1), 4, alpha_init=alpha, model_state=model_state, seed=jnp.uint32(1))
  jax.jit(lambda state: state.replace(step=state.step + 1), donate_argnums=0)(state)
  assert state.params["w"].is_deleted() and state.alpha.is_deleted()
  assert not any(leaf.is_deleted() for leaf in (*params.values(), alpha, *model_state.values()))


def test_an_optimizer_may_start_from_the_parameters():
  """As those with averages do, whose state would else be the same arrays, which cannot be donated twice."""
  holds_params = optax.GradientTransformation(lambda params: params, lambda g, state, params=None: (g, state))
  state = init_train_state(problems.tanh_params(), holds_params, 4)
  after = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf, state), donate_argnums=0)(state)
  problems.assert_same_bits(after.params, after.opt_state)


def test_weights_are_those_of_the_examples():
  """Without what pads them for devices."""
  alpha = np.float32([0.1, 0.9, 0.3])
  state = init_train_state(problems.tanh_params(), optax.sgd(0.1), 3, alpha_init=alpha)
  found = weights(shard_train_state(state, make_mesh(jax.devices("cpu")[:2])), 3)
  assert isinstance(found, np.ndarray)
  problems.assert_same_bits(found, alpha)
  problems.assert_same_bits(weights(state, 3), alpha)
  with pytest.raises(ValueError, match="num_source=5: the state has 3 weights"):
    weights(state, 5)
  with pytest.raises(ValueError, match="num_source=3.0: the state has"):
    weights(state, 3.0)
  with pytest.raises(ValueError, match="num_source=4: the state has 3 weights, and padding from there on"):
    weights(shard_train_state(state, make_mesh(jax.devices("cpu")[:2])), 4)


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
