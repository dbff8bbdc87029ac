"""Matching networks by their definition, and the episodes that they are trained on."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from soseleto_jax.data.normalization import Normalization
from soseleto_jax.feed.preparation import Preparation
from soseleto_jax.methods import matching_networks as matching
from tests import problems, runs
from tests.methods import setups

NORMALIZATION = Normalization(np.float32(1), np.float32(2))


def cosine(a, b):
  return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def log_probabilities_by_definition(queries, support, keep, scale):
  """Equation 1: the attention to each example of the support set, summed for each class."""
  result = np.zeros((len(queries), len(support)))
  for q, query in enumerate(queries):
    attention = {
      (k, m): np.exp(scale * cosine(query, support[k, m]))
      for k, m in itertools.product(*map(range, support.shape[:2]))
      if keep[q, k, m]
    }
    for (k, _), value in attention.items():
      result[q, k] += value / sum(attention.values())
  return np.log(result)


@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_class_probabilities(x64, scale):
  rng = np.random.default_rng(0)
  queries, support = rng.normal(size=(6, 5)), rng.normal(size=(3, 4, 5))
  keep = rng.random((6, 3, 4)) < 0.7
  keep[:, :, 0] = True
  found = matching.class_log_probabilities(jnp.asarray(queries), jnp.asarray(support), keep, scale)
  np.testing.assert_allclose(found, log_probabilities_by_definition(queries, support, keep, scale), rtol=1e-9)
  np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, rtol=1e-9)


def test_gradients_are_finite_where_features_are_0():
  def value(features):
    return matching.class_log_probabilities(features[:2], features[2:].reshape(2, 2, 3), True).sum()

  assert np.isfinite(problems.jit(jax.grad(value))(jnp.zeros((6, 3)))).all()


def test_rows_by_class():
  rows = matching.rows_by_class(np.array([1, 0, 1, 3, 1]), 4)
  assert rows.tolist() == [[1, -1, -1], [0, 2, 4], [-1, -1, -1], [3, -1, -1]]


def test_support_sets_hold_different_examples_of_every_class():
  label = np.random.default_rng(1).permutation(np.repeat(np.arange(3), [4, 9, 6]))
  rows = jnp.asarray(matching.rows_by_class(label, 3))
  draw = problems.jit(matching.draw_support, static_argnums=2)
  draws = [np.asarray(draw(jax.random.key(seed), rows, 4)) for seed in range(40)]
  for drawn in draws:
    assert all(len(set(own)) == 4 for own in drawn)
    np.testing.assert_array_equal(label[drawn], np.arange(3)[:, None].repeat(4, axis=1))
  for c in range(3):
    assert set(np.stack(draws)[:, c].ravel()) == set(np.flatnonzero(label == c))
  assert len({drawn[0, -1] for drawn in draws}) == 4  # in random order


def test_leave_one_out():
  drawn = np.array([[4, 7, 1], [0, 9, 5]])
  keep = np.asarray(matching.leave_one_out(jnp.array([7, 5, 3]), jnp.asarray(drawn)))
  support = [[own[kept].tolist() for own, kept in zip(drawn, of_query, strict=True)] for of_query in keep]
  assert support == [[[4, 1], [0, 9]], [[4, 7], [0, 9]], [[4, 7], [0, 9]]]


@pytest.mark.parametrize("side", ["source", "target"])
def test_loss_of_an_episode(side):
  """Against the definition, with the support set that the key draws."""
  setup, shots = setups.make_setup("matching_networks", shared=False), 2
  examples, num_classes = getattr(setup.task, side), getattr(setup.task, f"num_{side}_classes")
  loss = matching.episode_loss(setup.network, examples, Preparation(NORMALIZATION), num_classes, shots, 3.0)
  index = np.array([0, 5, 8, 11])
  batch = {"x": (examples["x"][index] - 1) / 2, "label": examples["label"][index], "index": index}
  key = jax.random.key(2)
  found = problems.jit(loss)(setup.params, batch, key)

  rows = jnp.asarray(matching.rows_by_class(examples["label"], num_classes))
  drawn = np.asarray(matching.draw_support(jax.random.split(key)[0], rows, shots + 1))
  layer = jax.tree.map(np.asarray, setup.params["representation"]["dense1"])
  embed = lambda x: np.maximum((x - 1) / 2 @ layer["kernel"] + layer["bias"], 0)
  for row, value in zip(index, found, strict=True):
    support = [[r for r in own if r != row][:shots] for own in drawn]
    assert all(examples["label"][r] == c for c, own in enumerate(support) for r in own)
    features = np.stack([embed(examples["x"][own]) for own in support])
    keep = np.ones((1, num_classes, shots), bool)
    (expected,) = log_probabilities_by_definition(embed(examples["x"][[row]]), features, keep, 3.0)
    np.testing.assert_allclose(value, -expected[examples["label"][row]], rtol=1e-4)


def test_predictions_are_by_all_of_the_target():
  """Also where classes have unequal numbers of examples."""
  setup = setups.make_setup("matching_networks", shared=False)
  rng = np.random.default_rng(3)
  examples = {"x": rng.normal(size=(6, 5)).astype(np.float32), "label": np.array([0, 1, 1, 2, 1, 2])}
  x = rng.normal(size=(7, 5)).astype(np.float32)
  found = problems.jit(matching.predict_fn(setup.network, examples, NORMALIZATION, 3, 2.0))(setup.params, None, x)
  layer = jax.tree.map(np.asarray, setup.params["representation"]["dense1"])
  embed = lambda x: np.maximum(x @ layer["kernel"] + layer["bias"], 0)
  attention = np.exp([[2 * cosine(q, s) for s in embed((examples["x"] - 1) / 2)] for q in embed(x)])
  probability = attention @ np.eye(3)[examples["label"]] / attention.sum(axis=1, keepdims=True)
  np.testing.assert_allclose(np.exp(found), probability, rtol=1e-4)


def make(task=None, **options):
  return matching.make_method(setups.make_setup("matching_networks", shared=False, task=task), **options)


def test_shots_are_those_of_the_target(monkeypatch):
  seen = []
  monkeypatch.setattr(matching, "episode_loss", lambda *args: seen.append(args[3:6]))
  method = make(finetune=True, scale=3.0)
  assert seen == [(3, 3, 3.0), (4, 2, 3.0)]  # 12 target examples of 4 classes
  assert [(phase.num_steps, phase.step.sets) for phase in method.phases] == [(8, ("source",)), (4, ("target",))]
  (before,), (after,) = make().phases, make(finetune=True).phases[1:]
  rates = [-phase.step.optimizer.update(*one_update(phase.step.optimizer))[0] for phase in (before, after)]
  np.testing.assert_allclose(rates, [0.1, 0.05], rtol=1e-6)


def one_update(optimizer):
  params = jnp.zeros(())
  return jnp.ones(()), optimizer.init(params), params


@pytest.mark.parametrize("side", ["source", "target"])
def test_support_sets_are_prepared_as_the_trainer_feeds_them(side):
  """By the preparation of their side, augmentation and all; and not for predictions."""
  setup = setups.make_setup("matching_networks", shared=False)

  def blank(batch, key):
    return {**batch, "x": jnp.zeros(batch["x"].shape)}

  blanks = setup.preparations | {side: blank}
  methods = [matching.make_method(s, finetune=True) for s in (setup, dataclasses.replace(setup, preparations=blanks))]
  for number, name in enumerate(("source", "target")):
    batch = setups.batches(0, shared=False)[name]
    losses = [problems.jit(m.phases[number].step.losses[0])(setup.params, batch, jax.random.key(0)) for m in methods]
    assert np.allclose(*losses) == (name != side)
  x = np.zeros((2, 5), np.float32)
  np.testing.assert_array_equal(*(problems.jit(method.predict)(setup.params, None, x) for method in methods))


def test_a_step_moves_the_representation_alone():
  setup = setups.make_setup("matching_networks", shared=False, optimizer__weight_decay=0.0)
  method = matching.make_method(setup)
  state, metrics = setups.take_steps(method.phases[0].step, setups.start(method, setup), count=1, shared=False)
  for head in ("source_head", "target_head"):
    problems.assert_same_bits(state.params[head], setup.params[head])
  before, after = (params["representation"]["dense1"]["kernel"] for params in (setup.params, state.params))
  assert np.all(before != after) and np.isfinite(list(metrics.values())).all()


def test_a_target_with_one_example_of_a_class():
  task = runs.make_task(shared=False)
  task.target.update({name: value[:4] for name, value in task.target.items()})
  assert len(make(task).phases) == 1
  with pytest.raises(ValueError, match="1 target examples: episodes need 1 of each class and a query"):
    make(task, finetune=True)


class Dropped(nn.Module):
  @nn.compact
  def __call__(self, x, *, train=False):
    return nn.Dropout(0.5, deterministic=not train)(nn.Dense(3)(x))


def test_dropout():
  """In training, by the key; predictions are the same each time."""
  setup = setups.make_setup("matching_networks", shared=False, representation=Dropped())
  method = matching.make_method(setup)
  batch = setups.batches(0, shared=False)["source"]
  loss, predict = problems.jit(method.phases[0].step.losses[0]), problems.jit(method.predict)
  losses = [loss(setup.params, batch, jax.random.key(seed)) for seed in (0, 0, 1)]
  assert np.array_equal(losses[0], losses[1]) and not np.allclose(losses[0], losses[2])
  np.testing.assert_array_equal(*(predict(setup.params, None, batch["x"]) for _ in range(2)))


def test_what_they_are_not_for():
  with pytest.raises(ValueError, match="carries state .* method 'matching_networks'"):
    matching.make_method(setups.make_setup("matching_networks", shared=False, representation=setups.Normed()))
  with pytest.raises(ValueError, match="config.data.shared_classes=True: method 'matching_networks' is for transfer"):
    matching.make_method(setups.make_setup("matching_networks"))
