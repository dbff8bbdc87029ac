"""Whole runs of every comparator: the trainer carries what they train beside the network."""

import functools

import pytest

from soseleto_jax.methods import learning_to_reweight, meta_weight_net, noise_layer, noise_types
from soseleto_jax.run.trainer import Experiment
from soseleto_jax.train import train_and_evaluate
from tests import problems, runs

METHODS = {
  "noise_layer": functools.partial(noise_layer.make_phases, fixed_epochs=0.5),
  "learning_to_reweight": learning_to_reweight.make_phases,
  "meta_weight_net": functools.partial(meta_weight_net.make_phases, hidden=3, meta_learning_rate=10.0),
  "noise_types": functools.partial(noise_types.make_phases, joint_epochs=0.5, type_epochs=0.5),
}


pytestmark = pytest.mark.usefixtures("no_report")


@pytest.mark.parametrize("method", METHODS)
def test_a_run_resumes_and_devices_change_nothing(tmp_path, monkeypatch, method):
  train = lambda folder, **fields: train_and_evaluate(
    runs.make_config(method=method, **fields), tmp_path / folder, runs.make_task(), METHODS[method]
  )
  whole = train("whole")
  assert whole.summary["method"] == method and whole.summary["steps"] == {"noise_types": 12}.get(method, 8)

  with runs.before_step(6, runs.crash), pytest.raises(runs.Crash):
    train("resumed")
  resumed = train("resumed")
  problems.assert_same_bits(resumed.state, whole.state)
  assert [record["test_loss"] for record in resumed.records] == [record["test_loss"] for record in whole.records]

  skipping = train("skipping", on_nonfinite="skip")
  problems.assert_close(skipping.state.params, whole.state.params, atol=1e-5)
  runs.use_devices(monkeypatch, 1)
  problems.assert_close(train("one").state, whole.state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_evaluation_is_of_the_network(method):
  task = runs.make_task()
  experiment = Experiment(runs.make_config(method=method), task, METHODS[method])
  state = experiment.place(experiment.initial_state())
  plain = Experiment(runs.make_config(method="source_only"), task)
  expected = plain.evaluate(plain.place(plain.initial_state()))
  problems.assert_close(experiment.evaluate(state), expected)


def test_names_of_methods(tmp_path):
  """A method of one's own has a name of its own; without it the name has to be the library's."""
  make_phases = METHODS["learning_to_reweight"]
  with pytest.raises(ValueError, match="config.method='joint'.* another name"):
    train_and_evaluate(runs.make_config(method="joint"), tmp_path / "run", runs.make_task(), make_phases)
  with pytest.raises(ValueError, match="config.method='reweight'.*choose one of soseleto"):
    train_and_evaluate(runs.make_config(method="reweight"), tmp_path / "run", runs.make_task())
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", METHODS)
def test_transfer_is_refused(tmp_path, method):
  config = runs.make_config(method=method, data__shared_classes=False)
  with pytest.raises(ValueError, match=f"config.data.shared_classes=False: method '{method}'"):
    train_and_evaluate(config, tmp_path / "run", runs.make_task(shared=False), METHODS[method])
  assert not (tmp_path / "run").exists()
