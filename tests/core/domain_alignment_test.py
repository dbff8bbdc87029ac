"""The domain alignment term against its definition, and a step that descends it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soseleto_jax import (
  TargetDescent,
  init_train_state,
  make_mesh,
  make_train_step,
  shard_train_state,
  shard_train_step,
)
from soseleto_jax.core.domain_alignment import BANDWIDTHS, add_domain_term, mean_discrepancy
from soseleto_jax.core.step import make_plain_step
from tests import problems

N, B, T = 13, 6, 4
LOSS = problems.tanh_loss()
OPTIMIZER = optax.sgd(0.3)
DESCENT = {"target_descent": TargetDescent(True)}


def features(params, batch, rng):
  del rng
  return jnp.tanh(batch["x"] @ params["w"] + params["b"])


def by_definition(source, target):
  """The double sums, one pair after the other."""
  both = np.concatenate([source, target])
  squared = lambda x, y: np.sum((x - y) ** 2)
  width = np.mean([squared(x, y) for i, x in enumerate(both) for j, y in enumerate(both) if i != j])
  kernel = lambda x, y: np.mean([np.exp(-squared(x, y) / (factor * width)) for factor in BANDWIDTHS])
  mean = lambda xs, ys: np.mean([kernel(x, y) for x in xs for y in ys])
  return mean(source, source) + mean(target, target) - 2 * mean(source, target), width


def samples(seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(B, 3)), 0.5 + 2 * rng.normal(size=(T, 3))


def whole(source, target):
  return mean_discrepancy(source, target, np.ones(len(source), bool), np.ones(len(target), bool))


def test_is_the_discrepancy_by_its_definition(x64):
  for seed in range(3):
    source, target = samples(seed)
    expected, _ = by_definition(source, target)
    np.testing.assert_allclose(whole(source, target), expected, rtol=1e-11)
    np.testing.assert_allclose(whole(source + 1e3, target + 1e3), expected, rtol=1e-6)  # wherever they lie


def test_its_gradient_moves_the_samples_and_not_the_width(x64):
  source, target = samples()
  _, width = by_definition(source, target)

  def with_width(source, target):
    kernel = lambda x, y: np.mean([np.exp(-np.sum((x - y) ** 2) / (factor * width)) for factor in BANDWIDTHS])
    mean = lambda xs, ys: np.mean([kernel(x, y) for x in xs for y in ys])
    return mean(source, source) + mean(target, target) - 2 * mean(source, target)

  found = jax.grad(whole, argnums=(0, 1))(source, target)
  for side, sample in enumerate((source, target)):
    for place in np.ndindex(sample.shape):
      moved = [np.array([source, target][side]) for _ in range(2)]
      moved[0][place] += 1e-6
      moved[1][place] -= 1e-6
      ends = [with_width(*((one, target) if side == 0 else (source, one))) for one in moved]
      np.testing.assert_allclose(found[side][place], (ends[0] - ends[1]) / 2e-6, rtol=1e-6, atol=1e-9)


def test_of_equal_samples_and_of_none_it_is_0_and_moves_nothing(x64):
  source, target = samples()
  everything, nothing = np.ones(B, bool), np.zeros(B, bool)
  np.testing.assert_allclose(whole(source, source[::-1]), 0, atol=1e-15)
  assert whole(np.ones((3, 2)), np.ones((4, 2))) == 0
  for masks in ((everything, nothing[:T]), (nothing, everything[:T]), (nothing, nothing[:T])):
    value, gradient = jax.value_and_grad(lambda *both, masks=masks: mean_discrepancy(*both, *masks), (0, 1))(
      source, target
    )
    assert value == 0 and not np.any(gradient[0]) and not np.any(gradient[1])


# The step.


def batches(dtype=float):
  source = problems.batch(1, B, dtype=dtype, index=problems.index(1, B, N), mask=np.arange(B) != 2)
  return source, problems.batch(2, T, dtype=dtype, mask=np.arange(T) < 3)


def state(dtype=float):
  start = init_train_state(problems.tanh_params(dtype=dtype), OPTIMIZER, N)
  return start.replace(alpha=np.full(N, 0.5, dtype))


@functools.cache
def make(weight, axis_name=None, **options):
  step = make_train_step(LOSS, LOSS, OPTIMIZER, alpha_step_size=0.3, axis_name=axis_name, **DESCENT, **options)
  return add_domain_term(step, (features, features), weight) if weight else step


def test_the_parameters_descend_it_and_alpha_moves_as_without(x64):
  without, metrics_without = problems.jit(make(0))(state(), *batches())
  after, metrics = problems.jit(make(0.7))(state(), *batches())

  def distance(params):
    kept = [features(params, batch, None)[np.flatnonzero(batch["mask"])] for batch in batches()]
    return whole(*kept)

  value, gradient = jax.value_and_grad(distance)(state().params)
  expected = jax.tree.map(lambda leaf, g: leaf - 0.3 * 0.7 * g, without.params, gradient)
  problems.assert_close(after.params, expected, rtol=1e-9, atol=1e-12)
  problems.assert_same_bits(after.alpha, without.alpha)
  np.testing.assert_allclose(metrics.pop("domain_loss"), value, rtol=1e-6)
  np.testing.assert_allclose(metrics.pop("loss"), metrics_without.pop("loss") + 0.7 * value, rtol=1e-6)
  problems.assert_same_bits(metrics, metrics_without)
  assert np.any(np.abs(gradient["w"]) > 1e-3) and not np.any(gradient["classifier"])


def test_masked_rows_change_no_bit():
  source, target = batches(np.float32)
  step, before = problems.jit(make(0.7)), state(np.float32)
  expected = step(before, source, target)
  source["x"][2], target["x"][3] = 1e30, -1e30
  source["label"][2], source["index"][2] = -7, -1
  problems.assert_same_bits(step(before, source, target), expected)


def test_on_8_devices_it_is_that_of_the_whole_batches(x64):
  mesh = make_mesh()
  mapped = problems.jit(shard_train_step(make(0.7, "data"), mesh))
  placed, metrics = mapped(shard_train_state(state(), mesh), *batches())
  expected, expected_metrics = problems.jit(make(0.7))(state(), *batches())
  problems.assert_close(placed.params, expected.params, rtol=1e-9, atol=1e-12)
  problems.assert_close(metrics, expected_metrics)


def test_it_is_descended_where_alpha_rests_too():
  step = make(0.7, alpha_every=2)
  assert [part.learns for part in step.parts] == [None, None]
  metrics = [jax.eval_shape(part, state(np.float32), *batches(np.float32))[1] for part in step.parts]
  assert all("domain_loss" in of_part for of_part in metrics)


def test_error_for_a_step_of_one_set():
  with pytest.raises(ValueError, match=r"a step of \('source',\)"):
    add_domain_term(make_plain_step(LOSS, OPTIMIZER), (features, features), 1.0)
