"""A step in which `alpha` learns every few steps, against the steps that it is made of."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soseleto_jax import (
  Alignment,
  TargetDescent,
  burn_in,
  init_train_state,
  make_mesh,
  make_plain_step,
  make_train_step,
  shard_train_state,
  shard_train_step,
  skip_nonfinite,
)
from soseleto_jax.core import alternating
from tests import problems

N, STEPS = 16, 8
LOSS = problems.tanh_loss()
OPTIMIZER = optax.sgd(0.3, momentum=0.9)
OPTIONS = {
  "published": {},
  "descent": {"target_descent": TargetDescent({"w": False, "b": False, "classifier": True}, weight=0.5)},
  "ahead": {"target_descent": TargetDescent(True), "alpha_first": True, "lookahead": 0.2, "source_weights": burn_in(3)},
  "another loss": {"target_descent": TargetDescent(True, lambda *args: 2 * LOSS(*args)), "lookahead": 0.2},
}


def _make(alpha_step_size=0.3, source_loss=LOSS, target_loss=LOSS, **options):
  return make_train_step(source_loss, target_loss, OPTIMIZER, alpha_step_size=alpha_step_size, **options)


def _state():
  alpha = np.random.default_rng(1).uniform(0.2, 0.8, N)
  return init_train_state(problems.tanh_params(dtype=float), OPTIMIZER, N).replace(alpha=alpha)


def _batches():
  for number in range(STEPS):
    source = problems.batch(number, 8, dtype=float, index=problems.index(number, 8, N), mask=np.arange(8) < 7)
    yield source, problems.batch(100 + number, 8, dtype=float)


@pytest.mark.parametrize("name", OPTIONS)
def test_is_the_step_at_its_turn_and_one_without_a_step_of_alpha_between(x64, name):
  """At steps 0, 3 and, past `alpha_until`, never again; in between `alpha` keeps its bits."""
  options = OPTIONS[name]
  learning, still = problems.jit(_make(**options)), problems.jit(_make(0.0, **options))
  step = problems.jit(_make(alpha_every=3, alpha_until=6, **options))
  state = expected = _state()
  for number, batches in enumerate(_batches()):
    learns = number in (0, 3)
    before = state
    state, metrics = step(state, *batches)
    expected, expected_metrics = (learning if learns else still)(expected, *batches)
    problems.assert_close(state, expected, rtol=1e-9, atol=1e-12)
    assert metrics.pop("alpha_learns") == learns
    there = {name: value for name, value in metrics.items() if not np.isnan(value)}
    assert metrics.keys() - there.keys() <= (set() if learns else set(alternating.OF_LEARNING))
    if not learns:  # over fewer leaves
      there.pop("target_grad_norm", None)
    problems.assert_close(there, {name: expected_metrics[name] for name in there})
    if not learns:
      problems.assert_same_bits(state.alpha, jnp.asarray(before.alpha))
  assert not np.allclose(state.alpha, _state().alpha, atol=1e-3)


def test_the_parts_alone_are_the_same(x64):
  """As a loop that knows the number of its step takes them; the one where `alpha` rests needs no target at all."""

  def of_none(params, batch, rng):
    raise AssertionError("the target's loss was called")

  step, whole = _make(alpha_every=2), problems.jit(_make(alpha_every=2))
  assert [step.at(number) is step.parts[number % 2] for number in range(4)] == [True] * 4
  assert _make().at(3).parts is None
  parts = problems.jit(step.parts[0]), problems.jit(_make(target_loss=of_none, alpha_every=2).parts[1])
  state = expected = _state()
  for number, batches in zip(range(4), _batches(), strict=False):
    state, metrics = parts[number % 2](state, *batches)
    expected, _ = whole(expected, *batches)
    problems.assert_close(state, expected, rtol=1e-9, atol=1e-12)
  assert metrics.keys() == {"valid_rows", "source_loss", "loss", "alpha_mean", "grad_norm"}


def test_faults_are_looked_for_where_alpha_learns():
  """Among the losses and products of that part, which has more of them."""
  step = _make(alpha_every=2, alignment=Alignment(loss=lambda *args: 2 * LOSS(*args)))
  learning, resting = step.parts
  assert (step.losses, step.alignment) == (learning.losses, learning.alignment)
  assert step.losses != resting.losses and resting.alignment is None


def test_between_it_costs_what_plain_training_does():
  """As many products of matrices; and no target gradient where another loss is descended."""

  def products(step, *batches):
    return str(jax.make_jaxpr(step)(_state(), *batches)).count("dot_general[")

  batches = next(_batches())
  resting = _make(alpha_every=2).parts[1]
  assert products(resting, *batches) == products(make_plain_step(LOSS, OPTIMIZER), batches[0])
  descending, with_steering = (_make(alpha_every=2, **OPTIONS["another loss"]).parts[number] for number in (1, 0))
  assert products(descending, *batches) < products(with_steering, *batches)


def test_within_a_scan_and_on_8_devices(x64):
  """As the trainer runs it on GPUs."""
  options = {"alpha_every": 3, "alignment": Alignment(contraction="vjp"), "target_descent": TargetDescent(True)}
  batches = jax.tree.map(lambda *leaves: np.stack(leaves), *_batches())
  mesh = make_mesh(jax.devices("cpu"))
  mapped = shard_train_step(_make(axis_name="data", **options), mesh)

  def run(step, state):
    return jax.lax.scan(lambda state, batch: step(state, *batch), state, batches)

  found, metrics = problems.jit(functools.partial(run, mapped))(shard_train_state(_state(), mesh))
  expected, expected_metrics = problems.jit(functools.partial(run, _make(**options)))(_state())
  problems.assert_close(found, expected, rtol=1e-5, atol=1e-6)
  problems.assert_close(metrics, expected_metrics, rtol=1e-4, atol=1e-5)
  assert metrics["alpha_learns"].tolist() == [1, 0, 0, 1, 0, 0, 1, 0]


def test_skipping(x64):
  """In either part, and the parts stay apart."""
  step = skip_nonfinite(_make(alpha_every=2))
  state = _state()
  for number, (source, target) in zip(range(2), _batches(), strict=False):
    source["x"][0, 0] = np.nan
    assert step.at(number) is step.parts[number]
    state, metrics = problems.jit(step)(state, source, target)
    assert (metrics["skipped_rows"], metrics["skipped_step"]) == (1, 0)
    assert state.alpha[source["index"][0]] == 0
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize(
  "options, message",
  [
    ({"alpha_every": 0}, "alpha_every=0: give a whole number of steps"),
    ({"alpha_every": 2.0}, "alpha_every=2.0"),
    ({"alpha_every": None}, "alpha_every=None"),
    ({"alpha_until": 0}, "alpha_until=0: give a whole number of steps, or None"),
    ({"alpha_until": 1.5}, "alpha_until=1.5"),
  ],
)
def test_errors(options, message):
  with pytest.raises(ValueError, match=message):
    _make(**options)
