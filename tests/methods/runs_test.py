"""Whole runs of the methods for noisy labels: the trainer carries what they train beside the network."""

import json

import numpy as np
import pytest

from soseleto_jax.run.trainer import Experiment
from soseleto_jax.train import train_and_evaluate
from tests import problems, runs

OPTIONS = {
  "noise_layer": {"fixed_epochs": 0.5},
  "learning_to_reweight": {},
  "meta_weight_net": {"hidden": 3, "meta_learning_rate": 10.0},
  "noise_types": {"joint_epochs": 0.5, "type_epochs": 0.5},
}

pytestmark = pytest.mark.usefixtures("no_report")


def make_config(method, **fields):
  config = runs.make_config(method=method, **fields)
  config.method_options.update(OPTIONS[method])
  return config


@pytest.mark.parametrize("method", OPTIONS)
def test_a_run_by_name(tmp_path, method):
  """With the options that stand in its config."""
  config = make_config(method, num_epochs=1)
  result = train_and_evaluate(config, tmp_path / "run", runs.make_task())
  assert result.summary["method"] == method
  assert result.summary["steps"] == int(result.state.step) == {"noise_types": 8}.get(method, 4)
  assert json.loads((tmp_path / "run" / "config.json").read_text())["method_options"].items() >= OPTIONS[method].items()
  assert "auc" not in result.summary  # which is of weights that were learned
  assert np.isfinite([record["test_loss"] for record in result.records]).all()
  config.method_options.update(unknown=1)
  with pytest.raises(ValueError, match=f"config.method_options.unknown: method '{method}' has"):
    train_and_evaluate(config, tmp_path / "other", runs.make_task())
  assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_run_resumes_and_devices_change_nothing(tmp_path, monkeypatch):
  """Of the method with the most phases, within the last of them."""

  def train(folder, **fields):
    return train_and_evaluate(make_config("noise_types", **fields), tmp_path / folder, runs.make_task())

  whole = train("whole")
  assert whole.summary["steps"] == 12
  with runs.before_step(6, runs.crash), pytest.raises(runs.Crash):
    train("resumed")
  resumed = train("resumed")
  problems.assert_same_bits(resumed.state, whole.state)
  assert [record["test_loss"] for record in resumed.records] == [record["test_loss"] for record in whole.records]

  skipping = train("skipping", on_nonfinite="skip")
  problems.assert_close(skipping.state.params, whole.state.params, rtol=1e-4, atol=1e-5)
  runs.use_devices(monkeypatch, 1)
  problems.assert_close(train("one").state, whole.state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", OPTIONS)
def test_evaluation_is_of_the_network(method):
  task = runs.make_task()
  values = []
  for name in (method, "source_only"):
    experiment = Experiment(make_config(name) if name in OPTIONS else runs.make_config(method=name), task)
    values.append(experiment.evaluate(experiment.place(experiment.initial_state())))
  problems.assert_close(*values)


@pytest.mark.parametrize("method", OPTIONS)
def test_transfer_is_refused(tmp_path, method):
  config = make_config(method, data__shared_classes=False)
  with pytest.raises(ValueError, match=f"config.data.shared_classes=False: method '{method}'"):
    train_and_evaluate(config, tmp_path / "run", runs.make_task(shared=False))
  assert not (tmp_path / "run").exists()
