"""The comparators for transfer, by the trainer: they resume, and are evaluated as they classify."""

import functools

import numpy as np
import pytest

from soseleto_jax.methods import label_efficient, matching_networks
from soseleto_jax.run.trainer import Experiment
from soseleto_jax.train import train_and_evaluate
from tests import problems, runs

UNLABELLED = np.random.default_rng(5).normal(size=(30, 5)).astype(np.float32)
METHODS = {
  "matching_networks": functools.partial(matching_networks.make_phases, finetune=True),
  "label_efficient": functools.partial(
    label_efficient.make_phases, unlabelled=UNLABELLED, adaptation_epochs=4, learning_rate=0.05
  ),
}

pytestmark = pytest.mark.usefixtures("no_report")


def make_config(method, **fields):
  return runs.make_config(method=method, data__shared_classes=False, model__hidden=(16,), **fields)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_resumes(tmp_path, method):
  task = runs.make_task(shared=False)
  train = lambda folder, **fields: train_and_evaluate(
    make_config(method, **fields), tmp_path / folder, task, METHODS[method]
  )
  whole = train("whole")
  assert whole.summary["validation_accuracy"] > 0.5  # of 4 classes

  with runs.before_step(10, runs.crash), pytest.raises(runs.Crash):
    train("resumed")
  resumed = train("resumed")
  problems.assert_same_bits(resumed.state, whole.state)
  assert [record["test_loss"] for record in resumed.records] == [record["test_loss"] for record in whole.records]
  problems.assert_close(train("skipping", on_nonfinite="skip").state.params, whole.state.params, rtol=1e-4, atol=1e-4)


def test_matching_networks_are_evaluated_by_the_labelled_target():
  task, method = runs.make_task(shared=False), "matching_networks"
  experiment = Experiment(make_config(method), task, METHODS[method])
  state = experiment.place(experiment.initial_state())
  values = experiment.evaluate(state)
  layer = state.params["representation"]["dense1"]

  def unit(x):
    features = np.maximum(task.target_normalization.apply(x) @ np.asarray(layer["kernel"]) + layer["bias"], 0)
    return features / np.linalg.norm(features, axis=1, keepdims=True)

  for name in ("validation", "test"):
    examples = getattr(task, name)
    attention = np.exp(10 * unit(examples["x"]) @ unit(task.target["x"]).T)
    probability = attention @ np.eye(4)[task.target["label"]] / attention.sum(axis=1, keepdims=True)
    assert values[f"{name}_accuracy"] == pytest.approx(np.mean(np.argmax(probability, axis=1) == examples["label"]))
    right = probability[np.arange(len(probability)), examples["label"]]
    assert values[f"{name}_loss"] == pytest.approx(-np.mean(np.log(right)), rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_shared_classes_are_refused(tmp_path, method):
  with pytest.raises(ValueError, match=f"config.data.shared_classes=True: method '{method}' is for transfer"):
    train_and_evaluate(runs.make_config(method=method), tmp_path / "run", runs.make_task(), METHODS[method])
  assert not (tmp_path / "run").exists()
