"""What the trained network says of each label, against NumPy."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import linen as nn

from soseleto_jax.core import sharding
from soseleto_jax.data.lazy import Rows
from soseleto_jax.methods.base import beside_network, predict_of_network
from soseleto_jax.run.given import Given
from soseleto_jax.run.suggestions import source_predict, suggest
from soseleto_jax.run.trainer import Experiment
from tests import runs


class Normed(nn.Module):
  """A representation that in training depends on its batch."""

  @nn.compact
  def __call__(self, x, *, train=False):
    return nn.tanh(nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x)))


def make_experiment(shared=True, *, on_disk=False, network=None, **fields):
  task = runs.make_task(shared=shared)
  if on_disk:
    task = dataclasses.replace(task, source=task.source | {"x": Rows(task.source["x"])})
  config = runs.make_config(data__shared_classes=shared, eval_batch_size=9, **fields)
  return Experiment(config, task, Given(network=network))


def trained(experiment):
  """Stands in for training: a state with other numbers than those that it starts with."""
  rng = np.random.default_rng(0)
  state = experiment.initial_state()
  moved = lambda leaf: np.abs(np.asarray(leaf) + rng.normal(size=leaf.shape)).astype(leaf.dtype)
  return state.replace(params=jax.tree.map(moved, state.params), model_state=jax.tree.map(moved, state.model_state))


def by_hand(experiment, state, params, head):
  task = experiment.task
  x = (task.source["x"].astype(np.float64) - task.source_normalization.mean) / task.source_normalization.std
  logits, _ = experiment.setup.network.apply(params, state.model_state, x.astype(np.float32), head=head)
  logits = np.asarray(logits, np.float64)
  probability = np.exp(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
  suggested = np.argmax(probability, axis=1)
  rows = np.arange(len(suggested))
  return probability[rows, task.source["label"]], suggested, probability[rows, suggested]


def assert_says(said, expected):
  assert [column.dtype for column in vars(said).values()] == [np.float32, np.int32, np.float32]
  for column, values in zip(vars(said).values(), expected, strict=True):
    np.testing.assert_allclose(column, values, rtol=2e-5)


@pytest.mark.parametrize("shared, on_disk", [(True, False), (True, True), (False, False)])
def test_equals_numpy_on_any_number_of_devices(shared, on_disk):
  """In transfer by the source's own head; every example once, whatever the batches divide."""
  experiment = make_experiment(shared, on_disk=on_disk)
  state = trained(experiment)
  if on_disk:
    in_memory = runs.make_task().source["x"]
    experiment.task = dataclasses.replace(experiment.task, source=experiment.task.source | {"x": in_memory})
  expected = by_hand(experiment, state, state.params, None if shared else "source")
  for devices in (1, 8):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    assert_says(suggest(experiment.setup, experiment.method, jax.device_get(state), mesh), expected)


def test_layers_are_in_evaluation_mode():
  experiment = make_experiment(network=Normed())
  state = trained(experiment)
  before = jax.device_get(state.model_state)
  assert_says(
    suggest(experiment.setup, experiment.method, state), by_hand(experiment, state, state.params, None)
  )  # whose statistics are those that training gathered, not the batch's
  jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state.model_state))


def test_by_what_the_method_says():
  experiment = make_experiment()
  state, network = trained(experiment), experiment.setup.network
  inside = dataclasses.replace(experiment.method, predict=predict_of_network(experiment.setup))
  nested = state.replace(params={"network": state.params, "extra": np.zeros(3)})
  expected = by_hand(experiment, state, state.params, None)
  assert_says(suggest(experiment.setup, inside, nested), expected)
  backwards = lambda params, model_state, x: -network.apply(params, model_state, x)[0]
  source_own = dataclasses.replace(inside, predict_source=backwards)
  assert (suggest(experiment.setup, source_own, state).suggested != expected[1]).any()


def test_where_there_is_nothing_to_say():
  experiment = make_experiment(False)
  other = dataclasses.replace(experiment.method, init=beside_network(np.zeros(3)))
  assert source_predict(experiment.setup, other) is None
  assert suggest(experiment.setup, dataclasses.replace(experiment.method, uses_alpha=False), None) is None
