"""A run's network and list from its folder, and predictions on inputs as they are stored."""

import dataclasses
import shutil

import jax
import numpy as np
import pandas as pd
import pytest
from flax import linen as nn

from soseleto_jax import load, train_and_evaluate
from soseleto_jax.run.prediction import Predictor
from tests import problems, runs

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A run, its task, and its folder."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr("soseleto_jax.report.page.write_report", lambda workdir, **_: workdir / "report.html")
    workdir, task = tmp_path_factory.mktemp("run"), runs.make_task()
    return train_and_evaluate(runs.make_config(), workdir, task), task, workdir


def snapshot(folder):
  return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_result_predicts_inputs_as_they_are_stored(finished):
  """By the network's forward pass, in NumPy, of normalised inputs."""
  result, task, _ = finished
  x, params = task.test["x"], result.state.params
  hidden, classifier = params["representation"]["dense1"], params["classifier"]
  normal = (x.astype(np.float64) - task.target_normalization.mean) / task.target_normalization.std
  logits = np.maximum(normal @ hidden["kernel"] + hidden["bias"], 0) @ classifier["kernel"] + classifier["bias"]
  probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  found = result.predict_proba(x)
  assert found.dtype == np.float32 and result.class_names == ("0", "1", "2")
  np.testing.assert_allclose(found, probability, rtol=1e-4, atol=1e-6)
  np.testing.assert_array_equal(result.predict(x), np.argmax(logits, axis=1))
  assert np.mean(result.predict(x) == task.test["label"]) == pytest.approx(result.summary["test_accuracy"])


def test_the_folder_gives_the_same(finished):
  """And nothing is written there."""
  result, task, workdir = finished
  before = snapshot(workdir)
  loaded = load(workdir)
  np.testing.assert_array_equal(loaded.predict_proba(task.test["x"]), result.predict_proba(task.test["x"]))
  problems.assert_same_bits(loaded.state, dataclasses.replace(result.state, opt_state=None))
  np.testing.assert_array_equal(loaded.alpha, result.alpha)
  pd.testing.assert_frame_equal(loaded.suspects(), result.suspects())
  pd.testing.assert_frame_equal(loaded.suspects(5), result.suspects(5))
  assert (loaded.records, loaded.summary, loaded.report) == (result.records, result.summary, result.report)
  assert snapshot(workdir) == before


def test_the_list_is_that_of_the_run(finished):
  result, task, _ = finished
  frame = result.suspects()
  np.testing.assert_array_equal(frame["alpha"], result.alpha[frame["index"]])
  np.testing.assert_array_equal(frame["row"], frame["index"])
  np.testing.assert_array_equal(frame["label"], task.source["label"][frame["index"]])
  probability = result.predict_proba(task.source["x"])[frame["index"]]  # one classifier, one normalisation
  np.testing.assert_array_equal(frame["suggested"], np.argmax(probability, axis=1))
  given = np.take_along_axis(probability, frame["label"].to_numpy()[:, None], axis=1)[:, 0]
  np.testing.assert_allclose(frame["given_probability"], given, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(frame["suggested_probability"], probability.max(axis=1), rtol=1e-4)


def test_the_best_checkpoint(finished, tmp_path):
  result, task, workdir = finished
  best = load(workdir, "best")
  assert int(best.state.step) == result.summary["best_checkpoint"]
  accuracy = np.mean(best.predict(task.validation["x"]) == task.validation["label"])
  assert accuracy == pytest.approx(result.summary["best_validation_accuracy"])


def test_without_validation_there_is_no_best(finished, tmp_path, caplog):
  """Nor is it forgotten what was left out of the source."""
  caplog.set_level("INFO", "soseleto_jax")
  task = dataclasses.replace(finished[1], validation=None, left_out={"unreadable": 2, "of other classes": 1})
  result = train_and_evaluate(runs.make_config(num_epochs=1), tmp_path, task)
  assert "left out of the source: 2 unreadable; 1 of other classes" in caplog.messages
  assert result.summary["left_out"] == load(tmp_path).summary["left_out"] == task.left_out
  with pytest.raises(ValueError, match="checkpoint='best': the run has no validation images.*'last'"):
    load(tmp_path, "best")


def test_a_run_that_has_not_ended(finished, tmp_path):
  with pytest.raises(runs.Crash), runs.before_step(5, runs.crash):
    train_and_evaluate(runs.make_config(), tmp_path, runs.make_task())
  loaded = load(tmp_path)
  assert int(loaded.state.step) == 4 and loaded.summary == {}
  assert loaded.predict(finished[1].test["x"]).shape == (runs.NUM_TEST,)
  with pytest.raises(ValueError, match="its run has not ended"):
    loaded.suspects()


def damage(checkpoint):
  for file in (checkpoint / "state").rglob("*"):
    if file.is_file() and "/d/" in str(file):
      file.write_bytes(bytes(byte ^ 255 for byte in file.read_bytes()))


def test_a_damaged_checkpoint_is_passed_over(finished, tmp_path, caplog):
  result, _, workdir = finished
  shutil.copytree(workdir, tmp_path / "run")
  first, last = sorted((tmp_path / "run" / "checkpoints").iterdir(), key=lambda path: int(path.name))
  damage(last)
  assert int(load(tmp_path / "run").state.step) == int(first.name) and "damaged" in caplog.text
  damage(first)
  with pytest.raises(RuntimeError, match="no checkpoint can be used"):
    load(tmp_path / "run")


def test_transfer_predicts_the_targets_classes(tmp_path):
  task = runs.make_task(shared=False)
  result = train_and_evaluate(runs.make_config(data__shared_classes=False, num_epochs=1), tmp_path, task)
  found = load(tmp_path).predict_proba(task.test["x"])
  assert found.shape == (runs.NUM_TEST, runs.TARGET_CLASSES)
  np.testing.assert_array_equal(found, result.predict_proba(task.test["x"]))
  assert set(result.suspects()["suggested"]) <= set(range(runs.CLASSES))  # the source's


def test_a_method_with_parameters_beside_the_network(tmp_path):
  task = runs.make_task()
  result = train_and_evaluate(runs.make_config(method="noise_layer", num_epochs=1), tmp_path, task)
  loaded = load(tmp_path)
  np.testing.assert_array_equal(loaded.predict_proba(task.test["x"]), result.predict_proba(task.test["x"]))
  for either in (result, loaded):
    with pytest.raises(ValueError, match="its method learns no weights"):
      either.suspects()


class Own(nn.Module):
  width: int = 3

  @nn.compact
  def __call__(self, x, *, train=False):
    return nn.tanh(nn.BatchNorm(use_running_average=not train)(nn.Dense(self.width)(x)))


def test_a_network_of_ones_own_is_given_again(tmp_path):
  """With its state."""
  task = runs.make_task()
  result = train_and_evaluate(runs.make_config(num_epochs=1), tmp_path, task, network=Own())
  loaded = load(tmp_path, network=Own())
  np.testing.assert_array_equal(loaded.predict_proba(task.test["x"]), result.predict_proba(task.test["x"]))
  with pytest.raises(ValueError, match=r"tests.loading_test.Own: give it here too, load\(workdir, network=...\)"):
    load(tmp_path)
  with pytest.raises(ValueError, match=r"state.*float32\[3.*\], but float32\[4.*\] here; give the network that the"):
    load(tmp_path, network=Own(4))
  with pytest.raises(ValueError, match="state.params.*, but no such array here"):
    load(tmp_path, network=nn.Sequential([lambda x: x[:, :3]]))


def test_labels_that_are_names(tmp_path):
  task = dataclasses.replace(runs.make_task(), target_labels=("cat", "dog", "owl"))
  result = train_and_evaluate(runs.make_config(num_epochs=1), tmp_path, task)
  numbers = np.argmax(result.predict_proba(task.test["x"]), axis=1)
  for either in (result, load(tmp_path)):
    assert either.predict(task.test["x"]).tolist() == [("cat", "dog", "owl")[number] for number in numbers]


def test_what_is_no_run(finished, tmp_path):
  with pytest.raises(ValueError, match="config.json is not there: give the folder of a run"):
    load(tmp_path)
  with pytest.raises(ValueError, match="checkpoint='newest': choose 'last' or 'best'"):
    load(finished[2], "newest")
  shutil.copy(finished[2] / "config.json", tmp_path)
  with pytest.raises(ValueError, match="task.json is not there.*run its command again"):
    load(tmp_path)
  shutil.copy(finished[2] / "task.json", tmp_path)
  with pytest.raises(ValueError, match="holds no checkpoint"):
    load(tmp_path)


@pytest.mark.parametrize(
  "x, message",
  [
    (np.zeros((2, 6), np.float32), r"x has shape \(2, 6\): the network takes \(N, 5\)"),
    (np.zeros(5, np.float32), r"x has shape \(5,\): .*of one alone give x\[None\], \(1, 5\)"),
    (np.array([["a"] * 5]), "x has dtype <U1: give numbers, float32"),
    (np.array([[0] * 5, [0, 0, np.inf, 0, 0]]), r"x\[1\] is not finite"),
  ],
)
def test_inputs_that_cannot_be(finished, x, message):
  with pytest.raises(ValueError, match=message):
    finished[0].predict(x)


def test_inputs_of_any_kind(finished):
  result, task, _ = finished
  x = task.test["x"]
  expected = result.predict(x)
  for given in (x.tolist(), x.astype(np.float64), pd.DataFrame(x), jax.numpy.asarray(x)):
    np.testing.assert_array_equal(result.predict(given), expected)
  assert result.predict(x[:0]).shape == (0,) and result.predict_proba(x[:0]).shape == (0, runs.CLASSES)


def test_other_units_are_warned_of(finished, caplog):
  x = finished[1].test["x"]
  finished[0].predict(2 * x)
  assert not caplog.records
  finished[0].predict(255 * x)
  assert "give it in the same units" in caplog.text


def test_bytes_are_not_fractions(finished):
  """Images of bytes, given as fractions, would all look black."""
  side = dataclasses.replace(finished[0].predictor.interface, dtype="uint8")
  predictor = Predictor(side, lambda params, model_state, x: x[:, : runs.CLASSES], None, None)
  assert predictor.labels(np.full((1, 5), 3, np.uint8)).shape == (1,)
  with pytest.raises(ValueError, match=r"x reaches from 0.5 to 0.5, .* 255 \* x"):
    predictor.labels(np.full((1, 5), 0.5))
