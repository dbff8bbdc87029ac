"""Matching networks by their definition, and the episodes that they are trained on."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.comparators import matching_networks as matching
from soseleto_jax.data.preparation import Preparation
from soseleto_jax.data.transforms import Normalization
from soseleto_jax.models import get_model
from tests import runs

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
  value = lambda features: matching.class_log_probabilities(features[:2], features[2:].reshape(2, 2, 3), True).sum()
  assert np.isfinite(jax.grad(value)(jnp.zeros((6, 3)))).all()


def test_rows_by_class():
  rows = matching.rows_by_class(np.array([1, 0, 1, 3, 1]), 4)
  assert rows.tolist() == [[1, -1, -1], [0, 2, 4], [-1, -1, -1], [3, -1, -1]]


def test_support_sets_hold_different_examples_of_every_class():
  label = np.random.default_rng(1).permutation(np.repeat(np.arange(3), [4, 9, 6]))
  rows = jnp.asarray(matching.rows_by_class(label, 3))
  draws = [np.asarray(matching.draw_support(jax.random.key(seed), rows, 4)) for seed in range(40)]
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
  task, shots = runs.make_task(shared=False), 2
  examples, num_classes = getattr(task, side), getattr(task, f"num_{side}_classes")
  model = get_model("mlp", {"source": 3, "target": 4}, hidden=(4,))
  params = model.init(jax.random.key(0), jnp.zeros((1, 5)))["params"]
  loss = matching.episode_loss(model, examples, Preparation(NORMALIZATION), num_classes, shots, 3.0)
  index = np.array([0, 5, 8, 11])
  batch = {"x": (examples["x"][index] - 1) / 2, "label": examples["label"][index], "index": index}
  key = jax.random.key(2)
  found = loss(params, batch, key)

  rows = jnp.asarray(matching.rows_by_class(examples["label"], num_classes))
  drawn = np.asarray(matching.draw_support(jax.random.split(key)[0], rows, shots + 1))
  layer = jax.tree.map(np.asarray, params["representation"]["dense1"])
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
  model = get_model("mlp", {"source": 3, "target": 3}, hidden=(4,))
  params = model.init(jax.random.key(0), jnp.zeros((1, 5)))["params"]
  rng = np.random.default_rng(3)
  examples = {"x": rng.normal(size=(6, 5)).astype(np.float32), "label": np.array([0, 1, 1, 2, 1, 2])}
  x = rng.normal(size=(7, 5)).astype(np.float32)
  found = matching.predict_fn(model, examples, Preparation(NORMALIZATION), 3, 2.0)(params, None, x)
  layer = jax.tree.map(np.asarray, params["representation"]["dense1"])
  embed = lambda x: np.maximum(x @ layer["kernel"] + layer["bias"], 0)
  attention = np.exp([[2 * cosine(q, s) for s in embed((examples["x"] - 1) / 2)] for q in embed(x)])
  probability = attention @ np.eye(3)[examples["label"]] / attention.sum(axis=1, keepdims=True)
  np.testing.assert_allclose(np.exp(found), probability, rtol=1e-4)


def phases_of(task, finetune=False, **fields):
  config = runs.make_config(method="matching_networks", data__shared_classes=False, **fields)
  model = get_model("mlp", {"source": 3, "target": 4}, hidden=(4,))
  return matching.make_phases(
      config, model, None, task, runs.STEPS_PER_EPOCH, mutable=False, axis_name=None, finetune=finetune
  )


def test_shots_are_those_of_the_target(monkeypatch):
  seen = []
  monkeypatch.setattr(matching, "episode_loss", lambda *args: seen.append(args[3:5]))
  phases = phases_of(runs.make_task(shared=False), finetune=True)
  assert seen == [(3, 3), (4, 2)]  # 12 target examples of 4 classes
  assert [(phase.num_steps, phase.sets) for phase in phases] == [(8, ("source",)), (4, ("target",))]


def test_a_target_with_one_example_of_a_class():
  task = runs.make_task(shared=False)
  task.target.update({name: value[:4] for name, value in task.target.items()})
  assert len(phases_of(task)) == 1
  with pytest.raises(ValueError, match="1 target examples: episodes need 1 of each class and a query"):
    phases_of(task, finetune=True)


def test_networks_with_state_are_refused():
  with pytest.raises(ValueError, match="carries state"):
    matching.make_phases(
        runs.make_config(method="mn", data__shared_classes=False), None, None, None, 4, mutable=True, axis_name=None
    )
