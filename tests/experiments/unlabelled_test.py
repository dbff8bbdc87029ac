"""The two stages with unlabelled images, on small digits."""

import shutil

import numpy as np
import pytest

from experiments import runs as experiment_runs
from experiments import unlabelled
from soseleto_jax.config import default_config, validate

SECOND = {"num_epochs": 2, "batch_size": 200, "target_batch_size": 20, "optimizer.learning_rate": 0.05}


def make_config():
  config = default_config()
  config.seed = 3
  config.data.shared_classes = False
  images = {"dataset": "digits", "normalization": "fixed", "mean": (0.5,), "std": (0.5,)}
  config.data.source.update(images | {"classes": (0, 1, 2, 3, 4)})
  images |= {"mean": (0.3,), "std": (0.4,)}
  config.data.target.update(images | {"classes": (5, 6, 7, 8, 9), "num_examples": 25, "num_validation": 50})
  config.model = dict(name="mlp", hidden=(16,), dtype="float32")
  config.update(num_epochs=1, batch_size=128, target_batch_size=10)
  return config


@pytest.fixture
def trained(monkeypatch):
  """Lists (folder, config, task, result) of each training."""
  calls, train = [], unlabelled.train_and_evaluate

  def spy(config, workdir, task):
    calls.append((workdir.name, config, task, train(config, workdir, task)))
    return calls[-1][-1]

  monkeypatch.setattr(unlabelled, "train_and_evaluate", spy)
  return calls


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_stages(tmp_path, trained):
  config = make_config()
  values = unlabelled.train(config, tmp_path / "whole", SECOND)
  (_, _, task, first), (_, second_config, labelled, second), (_, _, same, unweighted) = trained
  assert [name for name, *_ in trained] == ["first", "soseleto", "source_only"] and same is labelled

  # The network's own predictions: of the test images they are those that its accuracy counts.
  predict = lambda x: unlabelled.predict(config, task, first.state, x)
  assert np.mean(predict(task.test["x"]) == task.test["label"]) == pytest.approx(values["first_test_accuracy"])
  source = labelled.source
  np.testing.assert_array_equal(source["label"], predict(source["x"]))
  assert 0 < np.mean(source["label"] != source["true_label"]) == pytest.approx(values["wrong_fraction"])

  # Every image of the target's classes is labelled, unlabelled or held out, the same in both stages.
  for part in ("target", "validation", "test"):
    for column in ("row", "label", "x"):
      np.testing.assert_array_equal(getattr(labelled, part)[column], getattr(task, part)[column])
  rows = np.concatenate([part["row"] for part in (source, task.target, task.validation)]).tolist()
  assert len(set(rows)) == len(rows) and labelled.shared_classes
  for side in (labelled.source_normalization, labelled.target_normalization):
    np.testing.assert_allclose(np.ravel([side.mean, side.std]) / 255, [0.3, 0.4], rtol=1e-6)

  assert second_config.num_epochs == 2 and values["test_accuracy"] == second.summary["test_accuracy"]
  assert values["unweighted_test_accuracy"] == unweighted.summary["test_accuracy"]
  assert values["unweighted_validation_accuracy"] == unweighted.summary["validation_accuracy"]
  assert len(values["retention"]) == 50

  shutil.rmtree(tmp_path / "whole" / "source_only")  # as if stopped before it; other labels would be other data
  resumed = unlabelled.train(config, tmp_path / "whole", SECOND)
  assert {**resumed, "seconds": 0} == {**values, "seconds": 0}


def test_configs():
  full, small = (unlabelled.make_runs(protocol, [7])[0] for protocol in ("full", "small"))
  for run, num_examples in ((full, 0), (small, 10_000)):
    second = unlabelled.second_config(run.config, run.settings["second"])
    validate(second)
    assert (second.seed, second.data.shared_classes, second.method) == (7, True, "soseleto")
    assert run.config.data.source.num_examples == second.data.source.num_examples == num_examples
    assert (second.data.source.dataset, second.data.source.classes) == ("mnist", (5, 6, 7, 8, 9))
    assert second.data.target == run.config.data.target and second.data.target.num_examples == 25
    assert second.model == run.config.model
  assert full.folder() != small.folder()


def test_table(tmp_path):
  record = lambda seed, accuracy: {
    "config": {"seed": seed},
    "metrics": {
      "first_test_accuracy": accuracy - 0.1,
      "test_accuracy": accuracy,
      "unweighted_test_accuracy": accuracy - 0.05,
      "num_source": 28_379,
      "wrong_fraction": 0.2,
      "auc": 0.9,
    },
  }
  unlabelled.render("full", [record(0, 0.9), record(1, 0.92)], tmp_path)
  lines = (tmp_path / "unlabelled_full.md").read_text().splitlines()
  cells = [line.split("|")[2:-1] for line in lines if line.startswith("| ")]
  assert [[cell.strip() for cell in row] for row in cells[1:4]] == [
    ["81.0 ± 1.4 (2)", "87.9", "-6.9"],
    ["91.0 ± 1.4 (2)", "92.0", "-1.0"],
    ["86.0 ± 1.4 (2)", "", ""],
  ]
  assert "| 28379 ± 0 (2) |" in lines[-3] and "20.0" in lines[-2] and "0.900" in lines[-1]
  unlabelled.render("small", [], tmp_path)
  assert (tmp_path / "unlabelled_small.md").read_text().count("not run") == 6


def test_the_experiment_is_found_by_its_records(tmp_path):
  run = unlabelled.make_runs("small", [0])[0]
  record = dict(method=run.method, conditions={}, settings={"second": unlabelled.SECOND}, config=run.config.to_dict())
  assert experiment_runs.find_record(run, [record]) is record
  record["settings"] = {"second": unlabelled.SECOND | {"num_epochs": 99}}
  assert experiment_runs.find_record(run, [record]) is None
