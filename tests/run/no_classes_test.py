"""Runs on labels that are no classes: numbers, and sequences."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from soseleto_jax.data.values import from_values
from soseleto_jax.loading import load
from soseleto_jax.report import writers
from soseleto_jax.run import progress
from soseleto_jax.run.given import Given
from soseleto_jax.run.trainer import Experiment
from soseleto_jax.train import train_and_evaluate
from tests import problems, runs

COUNTS = (runs.NUM_SOURCE, runs.NUM_TARGET, runs.NUM_TEST, runs.NUM_VALIDATION)


def regression(label_shape=(), seed=0):
  """Values of a linear function; the first 12 of the source's are turned about 0."""
  rng = np.random.default_rng(seed)
  weights = rng.normal(size=(5, *label_shape))
  x = [rng.normal(size=(count, 5)) for count in COUNTS]
  source, target, test, validation = ((part, np.tensordot(part, weights, 1)) for part in x)
  wrong = np.where(np.arange(runs.NUM_SOURCE) < 12, -1, 1).reshape(-1, *[1] * len(label_shape)) * source[1]
  return from_values(source[0], wrong, *target, *test, validation=validation, true_label=source[1])


def tokens():
  """Sequences that count up, or in the source's first 12 down."""
  rng = np.random.default_rng(0)
  start = [rng.integers(0, 7, (count, 1)) for count in COUNTS]
  up = [(part + np.arange(4)) % 7 for part in start]
  wrong = np.arange(runs.NUM_SOURCE) < 12
  up[0][wrong] = up[0][wrong][:, ::-1]
  parts = [part[:, cut] for part in up[:3] for cut in (slice(None, -1), slice(1, None))]
  return from_values(*parts, wrong=wrong, normalization="as_stored")


class NextToken(nn.Module):
  """A whole network, of logits for each place."""

  @nn.compact
  def __call__(self, x):
    assert jnp.issubdtype(x.dtype, jnp.integer)
    return nn.Dense(7)(nn.Embed(7, 5)(x))


def make_config(**fields):
  return runs.make_config(loss="squared_error", alpha__transforms=("scale_by_std",), **fields)


@pytest.mark.parametrize("label_shape", [(), (2,)])
def test_a_regression_from_config_to_report(tmp_path, label_shape):
  """A network of ours has as many outputs as a label numbers; the loss stands where accuracy does."""
  task = regression(label_shape)
  seen = {}

  def r_squared(predict, sets):
    seen.update(outputs=predict(sets["test"]["x"]), label=sets["test"]["label"])
    return {"spread": float(np.var(seen["outputs"]))}

  result = train_and_evaluate(make_config(num_epochs=3), tmp_path, task, evaluators=[r_squared])
  outputs, last = seen["outputs"], result.records[-1]
  assert outputs.shape == (runs.NUM_TEST, *(label_shape or (1,)))
  np.testing.assert_allclose(
    last["test_loss"], np.mean((outputs.reshape(seen["label"].shape) - seen["label"]) ** 2), rtol=1e-5
  )
  assert last["spread"] == np.var(outputs)
  assert not [name for record in (*result.records, result.summary) for name in record if "accuracy" in name]
  assert last["test_loss"] < result.records[0]["test_loss"]
  losses = [record["validation_loss"] for record in result.records]
  assert result.summary["best_validation_loss"] == min(losses)
  assert result.summary["best_step"] == runs.STEPS_PER_EPOCH * (1 + int(np.argmin(losses)))
  assert result.summary["wrong_fraction"] == 12 / runs.NUM_SOURCE and "auc" in result.summary
  header = (tmp_path / "source_weights.csv").read_text().splitlines()[0].split(",")
  assert {"index", "alpha"} <= set(header) and ("value" in header) == (label_shape == ())
  assert result.report.exists()


def test_sequences_with_a_network_of_ones_own_resume_exactly(tmp_path, no_report):
  def go(folder):
    config = runs.make_config(loss="sequence_cross_entropy", alpha__target_params="all")
    return train_and_evaluate(config, tmp_path / folder, tokens(), network=NextToken())

  whole = go("whole")
  with pytest.raises(runs.Crash), runs.before_step(runs.STEPS_PER_EPOCH + 1, runs.crash):
    go("resumed")
  problems.assert_same_bits(go("resumed").state, whole.state)
  assert whole.summary["wrong_fraction"] == 12 / runs.NUM_SOURCE


def test_devices_change_nothing(monkeypatch):
  states = []
  for count in (1, 8):
    with monkeypatch.context() as patch:
      runs.use_devices(patch, count)
      experiment = Experiment(make_config(), regression())
      state = experiment.place(experiment.initial_state())
      state, *_ = experiment.advance(state, 0, 1)
      states.append((jax.device_get(state.params), experiment.alpha(state), experiment.evaluate(state)))
  problems.assert_close(*states, rtol=1e-4)


def test_a_loss_of_ones_own(tmp_path, no_report):
  """It takes the place of the config's, in training and in evaluation, of classes too."""

  def seven(outputs, label):
    return 0 * outputs[jnp.arange(len(label)), label] + 7

  config = runs.make_config(num_epochs=1, method="target_only")
  result = train_and_evaluate(config, tmp_path, runs.make_task(), loss=seven)
  assert result.records[-1]["test_loss"] == result.records[-1]["target_loss"] == 7
  assert 0 <= result.records[-1]["test_accuracy"] <= 1
  assert json.loads((tmp_path / "config.json").read_text())["given"]["loss"].endswith("seven")


def own_task(seed, shift=0.0):
  task = regression(seed=seed)
  task.source["x"] += np.float32(shift)
  return task


def test_a_task_by_its_import_path(tmp_path, no_report):
  config = make_config(num_epochs=1, task=f"{__name__}:own_task", task_options__shift=1.0, seed=3)
  assert train_and_evaluate(config, tmp_path).summary["test_loss"] == writers.read_metrics(tmp_path)[-1]["test_loss"]


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"loss": ""}, "labels of 'arrays' are no classes, so that there is no loss .*config.loss.*loss="),
    ({"loss": "cross_entropi"}, "config.loss='cross_entropi'.*did you mean 'cross_entropy'"),
    ({"target_balanced": True}, "config.target_balanced=True goes by classes"),
    ({"alpha__trial_epochs": 2}, "config.alpha.trial_epochs=2 goes by classes.*leave it 0"),
    ({"alpha__target_loss": "margin"}, "config.alpha.target_loss='margin': 'margin' goes by classes"),
    ({"alpha__transforms": ("center_by_class",)}, "config.alpha.transforms=.*'center_by_class' goes by classes"),
    ({"method": "noise_layer"}, "config.method='noise_layer' goes by classes.*take 'soseleto'"),
    ({"method": "noise_types"}, "config.method='noise_types' goes by classes"),
    ({"method": "label_efficient"}, "config.method='label_efficient' goes by classes"),
    ({"method": "matching_networks"}, "config.method='matching_networks' goes by classes"),
    ({"data__shared_classes": False}, "config.data.shared_classes=False but task.shared_classes=True"),
  ],
)
def test_settings_that_go_by_classes(fields, message):
  config = runs.make_config(**{"loss": "squared_error"} | fields)
  with pytest.raises(ValueError, match=message):
    Experiment(config, regression())


def test_a_whole_network_has_no_classifier_of_its_own():
  config = runs.make_config(loss="sequence_cross_entropy", alpha__target_params="classifier")
  with pytest.raises(ValueError, match="config.alpha.target_params='classifier'.*take 'all' or 'none'"):
    Experiment(config, tokens(), Given(network=NextToken()))
  config.alpha.update(target_params="none", params=("Embed_0",))
  assert Experiment(config, tokens(), Given(network=NextToken())).method.uses_alpha


@pytest.mark.parametrize(
  ("task", "message"),
  [("no_such.module:f", "config.task='no_such.module:f': there is no module"), ("math:gcd", "config.task='math:gcd'")],
)
def test_a_task_that_is_none(tmp_path, task, message):
  with pytest.raises((ValueError, TypeError), match=message):
    train_and_evaluate(runs.make_config(task=task), tmp_path)


@pytest.mark.parametrize("whole", [False, True])
def test_what_a_run_leaves_predicts_and_lists_the_source(tmp_path, no_report, whole):
  """By its result, and loaded from its folder."""
  task, network = (tokens(), NextToken()) if whole else (regression(), None)
  config = runs.make_config(loss="sequence_cross_entropy" if whole else "squared_error", num_epochs=1)
  result = train_and_evaluate(config, tmp_path, task, network=network)
  loaded = load(tmp_path, network=network)
  for one in (result, loaded):
    predicted = one.predict(task.test["x"])
    assert predicted.shape == ((runs.NUM_TEST, 3, 7) if whole else (runs.NUM_TEST,))
    assert one.predict(task.test["x"][:0]).shape[0] == 0 and one.class_names == ()
    with pytest.raises(ValueError, match="no classes.*take predict"):
      one.predict_proba(task.test["x"])
    listed = one.suspects()
    assert listed["alpha"].is_monotonic_increasing and len(listed) == runs.NUM_SOURCE
    own = ["rank", "index", "row", "file", "alpha"]
    assert list(listed) == (own if whole else [*own, "value", "true_value"])
    if not whole:
      np.testing.assert_array_equal(listed["value"], task.source["label"][listed["index"]])
  problems.assert_same_bits(result.predict(task.test["x"]), loaded.predict(task.test["x"]))
  assert "alpha" in progress.suspects_table(result.listed)
