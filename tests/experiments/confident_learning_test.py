"""Out-of-fold probabilities, what is removed, and going on after a crash."""

import numpy as np
import pytest

from experiments import confident_learning as lib
from experiments.confident_learning import confident_learning
from soseleto_jax.data.task import from_arrays
from soseleto_jax.run.trainer import Experiment
from tests import problems, runs

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  runs.use_devices(monkeypatch, 1)


@pytest.fixture
def steps(monkeypatch):
  """Lists the method and number of every step; raises `Crash` at those in its `crashes`."""

  class Steps(list):
    crashes = set()

  steps, advance = Steps(), Experiment.advance

  def watched(self, state, step, limit):
    if (self.config.method, step) in steps.crashes:
      raise runs.Crash
    steps.append((self.config.method, step))
    return advance(self, state, step, limit)

  monkeypatch.setattr(Experiment, "advance", watched)
  return steps


def make_config(**fields):
  return runs.make_config(**{"method": "joint", "optimizer__weight_decay": 0.0} | fields)


def make_task(*, label_of, num_source=90, spread=0.3):
  """Points around one centre for each class; `label_of(right, rng)` gives the source labels."""
  rng = np.random.default_rng(1)
  centers = 2 * rng.normal(size=(runs.CLASSES, 12))
  right = np.arange(num_source) % runs.CLASSES
  x = centers[right] + spread * rng.normal(size=(num_source, 12))
  clean = np.repeat(centers, 2, axis=0), np.repeat(np.arange(runs.CLASSES), 2)
  return from_arrays(x, label_of(right, rng), *clean, *clean, true_label=right)


def some_wrong(right, rng):
  wrong = rng.permutation(len(right)) < len(right) // 5
  return np.where(wrong, (right + 1) % runs.CLASSES, right)


def test_probabilities_are_out_of_fold(tmp_path):
  """Networks that memorise meaningless labels know nothing about those of their held-out fold."""
  task = make_task(label_of=lambda right, rng: rng.integers(0, runs.CLASSES, len(right)), spread=3.0)
  config = make_config(num_epochs=30, model__hidden=(64,), eval_every_epochs=30.0, checkpoint_every_epochs=30.0)
  pred_probs = lib.out_of_fold_probabilities(config, tmp_path, task, 2, None)
  np.testing.assert_allclose(pred_probs.sum(axis=1), 1, rtol=1e-5)
  assert np.mean(np.max(pred_probs, axis=1)) > 0.7  # with other seeds 0.81 to 0.85
  assert np.mean(np.argmax(pred_probs, axis=1) == task.source["label"]) < 0.6  # 0.33 to 0.43; by chance 1 in 3


def test_folds():
  label = np.repeat([0, 1, 2], [10, 31, 5])
  fold_of = lib._draw_folds(label, 4, seed=0)
  counts = np.array([np.bincount(fold_of[label == c], minlength=4) for c in range(3)])
  assert np.ptp(counts, axis=1).max() <= 1 and np.ptp(counts.sum(axis=0)) <= 1
  assert np.any(fold_of != lib._draw_folds(label, 4, seed=1))


@pytest.mark.parametrize("method", lib.FINAL_METHODS)
def test_wrong_labels_are_removed(tmp_path, method):
  task = make_task(label_of=some_wrong)
  config = make_config(num_epochs=6, method=method)
  pruned = confident_learning(config, tmp_path, task, num_folds=2)
  wrong = task.source["label"] != task.source["true_label"]
  # With other seeds 0.89 to 1; by chance 0.2 and 0.5.
  assert np.mean(wrong[~pruned.kept]) > 0.75 and np.mean(~pruned.kept[wrong]) > 0.75
  assert pruned.summary["auc"] > 0.9 and pruned.summary["wrong_fraction"] == pytest.approx(0.2)
  assert pruned.summary["removed_fraction"] == pytest.approx(1 - np.mean(pruned.kept))
  given = pruned.pred_probs[np.arange(len(wrong)), task.source["label"]]
  np.testing.assert_allclose(pruned.quality, given, rtol=1e-6)
  assert len(pruned.result.alpha) == np.sum(pruned.kept)
  assert pruned.result.summary["method"] == method and config.method == method
  assert ("target_loss" in pruned.result.records[-1]) == (method == "joint")
  with np.load(tmp_path / "label_quality.npz") as saved:
    for name in ("kept", "quality", "pred_probs"):
      np.testing.assert_array_equal(saved[name], getattr(pruned, name))


@pytest.mark.slow
def test_what_is_done_is_not_done_again(tmp_path, steps):
  task, config = make_task(label_of=some_wrong), make_config()
  train = lambda folder: confident_learning(config, tmp_path / folder, task, num_folds=2, fold_epochs=1)
  whole = train("whole")
  fold, last = ([("source_only", s) for s in range(4)], [("joint", s) for s in range(len(steps) - 8)])
  assert steps == 2 * fold + last
  steps.crashes = {last[-1]}
  with pytest.raises(runs.Crash):
    train("resumed")
  steps.clear()
  steps.crashes = set()
  resumed = train("resumed")
  assert steps == last[len(last) // 2 :]  # from the checkpoint of the first of two epochs
  problems.assert_same_bits(resumed.result.state, whole.result.state)
  problems.assert_same_bits(resumed.pred_probs, whole.pred_probs)


@pytest.mark.parametrize(
  ("method", "num_folds", "message"),
  [("joint", 1, "num_folds=1"), ("finetune", 2, "config.method='finetune': choose one of joint, source_only")],
)
def test_bad_settings(tmp_path, method, num_folds, message):
  with pytest.raises(ValueError, match=message):
    confident_learning(make_config(method=method), tmp_path / "run", runs.make_task(), num_folds=num_folds)
  assert not (tmp_path / "run").exists()


def test_transfer_is_refused(tmp_path):
  config = make_config(data__shared_classes=False)
  with pytest.raises(ValueError, match="config.data.shared_classes=False"):
    confident_learning(config, tmp_path / "run", runs.make_task(shared=False))
  assert not (tmp_path / "run").exists()
