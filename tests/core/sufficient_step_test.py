"""The step of `alpha` that Appendix C asks for, where it can be had by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from soseleto_jax import init_train_state, make_mesh, make_train_step
from soseleto_jax.core.sufficient_step import sufficient_alpha_step
from tests import problems


def _bound(moves, q, mask=None):
  mask = np.ones(len(q), bool) if mask is None else mask
  return sufficient_alpha_step(jnp.asarray(moves, float), jnp.asarray(q, float), jnp.asarray(mask))


def test_by_hand(x64):
  """The published rule: √2 / ‖(3, 4)‖. Divided by 10: ten times that. One row masked: it is no row at all."""
  q = np.array([3.0, 4.0])
  np.testing.assert_allclose(_bound(q, q), np.sqrt(2) / 5, rtol=1e-14)
  np.testing.assert_allclose(_bound(q / 10, q), np.sqrt(2) * 2, rtol=1e-14)
  np.testing.assert_allclose(_bound([1.0, 1.0], q), np.sqrt(2) * 5 / 7, rtol=1e-14)
  np.testing.assert_allclose(_bound([3, 0, 4], [3, 0, 4], [True, False, True]), np.sqrt(2) / 5, rtol=1e-14)
  np.testing.assert_allclose(_bound([3, 0, 4], [3, 0, 4]), np.sqrt(3) / 5, rtol=1e-14)


def test_where_no_step_is_sufficient_and_where_none_is_needed():
  assert _bound([1.0, -1.0], [1.0, 1.0]) == _bound([-1.0, -1.0], [1.0, 1.0]) == np.inf
  assert _bound([0.0, 0.0], [0.0, 0.0]) == 0
  assert _bound([0.0, 0.0], [0.0, 0.0], [False, False]) == 0
  assert np.isnan(_bound([np.nan, 1.0], [np.nan, 1.0]))


def test_is_of_the_whole_batch_on_several_devices(x64):
  rng = np.random.default_rng(0)
  mask = np.arange(16) % 3 > 0
  q, moves = np.where(mask, rng.normal(size=16), 0), np.where(mask, rng.normal(size=16), 0)
  moves += q
  apart = jax.shard_map(
    functools.partial(sufficient_alpha_step, axis_name="data"), mesh=make_mesh(), in_specs=P("data"), out_specs=P()
  )
  by_hand = np.sqrt(10) * np.linalg.norm(q) / (q @ moves)
  np.testing.assert_allclose([problems.jit(apart)(moves, q, mask), _bound(moves, q, mask)], by_hand, rtol=1e-13)


def test_no_weights_raise_the_target_loss_from_there_on_and_some_do_below(x64):
  """Whatever moves `alpha` along q. Those that do are all 1, and q all the same."""
  rng = np.random.default_rng(1)
  for _ in range(200):
    q = rng.normal(size=8)
    moves = q + 0.5 * rng.normal(size=8)
    if moves @ q > 0:
      alpha = rng.uniform(size=8) < rng.uniform()
      assert (alpha + _bound(moves, q) * moves) @ q >= -1e-12
  q = np.full(8, -0.25)
  assert (1 + 0.999 * _bound(q, q) * q) @ q < 0


@pytest.mark.parametrize("factor, rises", [(0.9, True), (1.1, False)])
def test_the_step_says_it_of_its_own(x64, factor, rises):
  """Losses x θ and a target loss of θ: q is x. Of weights of 1 and examples that harm, alike, it is 1 / |x|."""

  def loss(params, batch, rng):
    return batch["x"] * params

  x, bound = np.full(8, -0.25), 4.0
  step = make_train_step(loss, loss, optax.sgd(0.1), alpha_step_size=factor * bound, alpha_first=True)
  state = init_train_state(jnp.zeros(()), optax.sgd(0.1), 8, alpha_init=1.0)
  state = state.replace(alpha=jnp.ones(8))
  state, metrics = problems.jit(step)(state, {"x": x, "index": np.arange(8)}, {"x": np.ones(1)})
  assert (metrics["alpha_step_size"], metrics["alpha_step_bound"]) == (np.float32(factor * bound), bound)
  assert (state.params > 1e-4) == rises  # past the bound the weights are clipped to 0, and the parameters stay


def test_a_clip_can_break_it():
  """One example helps, and cannot count for more than 1; a hundred harm a little less each, and still count."""
  q = np.array([10.0, *[-1.0] * 100])
  raised = 1 + _bound(q, q) * q
  assert raised @ q > 0 > np.clip(raised, 0, 1) @ q
