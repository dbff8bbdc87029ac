"""The two stages with unlabelled images, on small digits."""

import json
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
  (_, _, task, first), (_, second_config, labelled, second), (_, _, same, unweighted), (*_, joint) = trained
  assert [name for name, *_ in trained] == ["first", "soseleto", "source_only", "joint"] and same is labelled

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
  for stage, result in (("unweighted", unweighted), ("joint", joint)):
    assert values[f"{stage}_test_accuracy"] == result.summary["test_accuracy"]
  assert values["unweighted_validation_accuracy"] == unweighted.summary["validation_accuracy"]
  assert len(values["retention"]) == 50

  shutil.rmtree(tmp_path / "whole" / "source_only")  # as if stopped before it; other labels would be other data
  resumed = unlabelled.train(config, tmp_path / "whole", SECOND)
  assert {**resumed, "seconds": 0} == {**values, "seconds": 0}


def test_configs():
  full, small = ({run.method: run for run in unlabelled.make_runs(protocol, [7])} for protocol in ("full", "small"))
  for run, num_examples in ((full["soseleto"], 0), (small["soseleto"], 6000)):
    validate(run.config)
    assert (run.config.seed, run.config.method, run.config.alpha.target_params) == (7, "soseleto", "none")
    second = unlabelled.second_config(run.config, run.settings["second"])
    validate(second)
    assert (second.seed, second.data.shared_classes, second.method) == (7, True, "soseleto")
    assert (run.config.data.source.num_examples, second.data.source.num_examples) == (0, num_examples)
    assert (second.data.source.dataset, second.data.source.classes) == ("mnist", (5, 6, 7, 8, 9))
    assert second.data.target == run.config.data.target and second.data.target.num_examples == 25
    assert second.model == run.config.model and not run.config.augment.target
  assert full["soseleto"].folder() != small["soseleto"].folder()
  for name in ("spread", *unlabelled.COMPARATORS):
    config = small[name].config
    validate(config)
    assert (config.seed, config.model.relu, config.augment.target) == (7, True, unlabelled.STRONG)
    assert config.data.target.num_examples == config.target_batch_size == 25


SPREAD = {"num_steps": 8, "batch_size": 200, "alpha.target_params": "all"}


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_stages_on_spread_labels(tmp_path, trained):
  """All stages have one task, but for the labels, and the second ones start from the first network."""
  config = make_config()
  config.data.shared_classes = True
  config.data.source.classes = config.data.target.classes
  config.data.target.update(mean=config.data.source.mean, std=config.data.source.std)
  config.update(method="target_only", num_steps=60, target_batch_size=25)
  values = unlabelled.train_on_spread(config, tmp_path, SPREAD)
  (_, _, task, first), (_, of_second, labelled, second), (_, _, same, plain), _ = trained
  assert [name for name, *_ in trained] == ["first", "soseleto", "source_only", "joint"] and same is labelled
  assert labelled.target is task.target and labelled.test is task.test
  np.testing.assert_array_equal(labelled.source["true_label"], task.source["label"])
  assert of_second.init_from == str(tmp_path / "first") and second.state.step == plain.state.step == 8

  probabilities, features = unlabelled.look(config, task, first.state, task.test["x"])
  assert features.shape == (len(task.test["x"]), 16)
  np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
  accuracy = np.mean(np.argmax(probabilities, axis=1) == task.test["label"])
  assert accuracy == pytest.approx(values["first_test_accuracy"])
  assert values["wrong_fraction"] < values["own_wrong_fraction"]


def test_table(tmp_path):
  def record(method, seed, accuracy):
    metrics = {
      "first_test_accuracy": accuracy - 0.1,
      "test_accuracy": accuracy,
      "unweighted_test_accuracy": accuracy - 0.05,
      "joint_test_accuracy": accuracy - 0.02,
      "num_source": 28_379,
      "wrong_fraction": 0.2,
      "auc": 0.9,
    }
    return {"method": method, "config": {"seed": seed}, "metrics": metrics}

  records = [record("soseleto", 0, 0.9), record("spread", 0, 0.95), record("soseleto", 1, 0.92)]
  unlabelled.render("full", records, tmp_path)
  lines = (tmp_path / "unlabelled_full.md").read_text().splitlines()
  cells = [[cell.strip() for cell in line.split("|")[2:-1]] for line in lines if line.startswith("| ")]
  assert cells[1:8] == [
    ["81.0 ± 1.4 (2)", "87.9", "-6.9"],
    ["91.0 ± 1.4 (2)", "92.0", "-1.0"],
    ["86.0 ± 1.4 (2)", "", ""],
    ["89.0 ± 1.4 (2)", "", ""],
    ["85.0 (1)", "", ""],
    ["95.0 (1)", "92.0", "+3.0"],
    ["90.0 (1)", "", ""],
  ]
  assert cells[8:10] == [["93.0 (1)", "", ""], ["not run", "95.0", ""]]
  assert ["20.0 ± 0.0 (2)", "not run"] in cells and ["20.0 ± 0.0 (2)", "20.0 (1)"] in cells  # its own labels, then all
  assert ["28379 ± 0 (2)", "28379 (1)"] in cells and ["0.900 ± 0.000 (2)", "0.900 (1)"] in cells
  expected = [["+10.0 [10.0, 10.0] (2)", "+10.0 (1)"], ["+5.0 [5.0, 5.0] (2)", "+5.0 (1)"]]
  assert cells[-3:] == [*expected, ["+2.0 [2.0, 2.0] (2)", "+2.0 (1)"]]
  unlabelled.render("small", [], tmp_path)
  assert (tmp_path / "unlabelled_small.md").read_text().count("not run") == 23


def test_the_experiment_is_found_by_its_records(tmp_path):
  run = unlabelled.make_runs("small", [0])[0]
  as_read = lambda settings: json.loads(json.dumps(settings))
  record = dict(method=run.method, conditions={}, settings=as_read(run.settings), config=run.config.to_dict())
  assert experiment_runs.find_record(run, [record]) is record
  record["settings"] = as_read({"second": run.settings["second"] | {"num_epochs": 99}})
  assert experiment_runs.find_record(run, [record]) is None


def test_what_is_compared_has_the_network_steps_and_augmentation_of_the_first_stage():
  found = {run.method: run.config for run in unlabelled.make_runs("small", [4])}
  of = lambda config: (config.num_steps, config.model.to_dict(), config.augment.target)
  assert all(of(found[name]) == of(found["spread"]) for name in unlabelled.COMPARATORS)
