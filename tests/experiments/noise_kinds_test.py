"""Every kind of wrong label: fair runs, the network's own labels, and cells in their places."""

import types

import numpy as np
import pytest

from experiments import noise_kinds, runs, table1
from experiments.confident_learning import Pruned
from soseleto_jax.config import validate
from soseleto_jax.data import noise
from tests.experiments.written import small_tables
from tests.runs import make_config, make_task


@pytest.mark.parametrize("protocol, count", [("small", 2 * (5 * 7 + 1) + 7 * 7 + 1 + 7), ("full", 7 * 7 + 1 + 7)])
def test_every_method_has_the_same_data_network_and_epochs(protocol, count):
  shared, chosen = {}, noise_kinds.make_runs(protocol, [5, 9, 10])  # 10 for none, 9 for one column of CIFAR-10
  assert len(chosen) == count == len({run.folder() for run in chosen})
  for run in chosen:
    validate(run.config)
    config = run.config.to_dict()
    fields = {name: config[name] for name in ("data", "model", "num_epochs", "batch_size", "optimizer", "augment")}
    assert shared.setdefault((*run.conditions.values(), run.config.seed), fields) == fields, run.method
    assert run.settings.get("labels_of_network", False) == (run.conditions["labels"] == "network")
  noises = {labels: fields["data"]["source"]["noise"] for (_, labels, _), fields in shared.items()}
  assert {kind for kind in noises.values() if kind != "none"} == {"symmetric", "asymmetric", "instance"}
  assert {labels for labels, kind in noises.items() if kind == "none"} == {"network", "worse_label", "aggre_label"}
  assert set(noises.values()) <= set(noise.KINDS)


def test_rules_of_soseleto():
  first = {run.method: run.config.alpha for run in noise_kinds.make_runs("small", [0])[: len(noise_kinds.METHODS)]}
  assert list(first) == list(noise_kinds.METHODS)
  assert first["soseleto_paper"].transforms == ()
  assert "center_by_class" in first["soseleto_symmetric"].transforms
  assert "add_agreement" in first["soseleto"].transforms


def test_labels_of_a_network(tmp_path, monkeypatch):
  """Of one trained on the target alone, the same for every method; the right ones stay known."""
  task, said, seen = make_task(), np.arange(41, dtype=np.int32) % 3, []

  def train(config, workdir, data):
    seen.append((config.to_dict(), workdir, data))
    return types.SimpleNamespace(state=None, summary={"test_accuracy": 0.5}, alpha=None)

  monkeypatch.setattr(noise_kinds, "train_and_evaluate", train)
  monkeypatch.setattr(noise_kinds, "predict", lambda config, task, state, x: said)
  monkeypatch.setattr(runs, "task_of", lambda config: task)
  for method, weight in (("joint", 0.3), ("soseleto", 0.25)):
    config = make_config(method=method, target_weight=weight, alpha__gain=1 + weight)
    values = noise_kinds.train(config, tmp_path / method, labels_of_network=True)
    assert values == {"test_accuracy": 0.5}
  (labels, folder, plain), (_, own, given), again, _ = seen
  assert again[:2] == (labels, folder) and labels["method"] == "target_only" and plain is task
  assert own == tmp_path / "joint" and folder.parent == tmp_path
  np.testing.assert_array_equal(given.source["label"], said)
  np.testing.assert_array_equal(given.source["true_label"], task.source["label"])


def test_confident_learning_where_there_are_folds(tmp_path, monkeypatch):
  task, found = make_task(), {"removed_fraction": 0.3, "auc": 0.8}

  def train(config, workdir, given, **settings):
    assert given is task and settings == {"num_folds": 4}
    summary = {"method": "joint", "test_accuracy": 0.5}
    return Pruned(types.SimpleNamespace(summary=summary), np.ones(2, bool), np.ones(2), np.ones((2, 2)), found)

  monkeypatch.setattr(table1, "confident_learning", train)
  monkeypatch.setattr(runs, "task_of", lambda config: task)
  assert noise_kinds.train(make_config(), tmp_path, num_folds=4) == {"test_accuracy": 0.5} | found


def test_cells(tmp_path):
  """Accuracies that tell method, column and seed; of two methods and the target alone, on the digits."""

  def metrics_of(run):
    data, labels = run.conditions.values()
    if data != "digits" or run.method not in ("joint", "soseleto", "target_only"):
      return None
    column = list(noise_kinds.COLUMNS[data]).index(labels)
    value = 0.5 + 0.1 * (run.method == "soseleto") * (1 + run.config.seed) + column / 100
    metrics = {"test_accuracy": value, "wrong_fraction": 0.3}
    return metrics | {"auc": 0.9 + column / 100} if run.method == "soseleto" else metrics

  text = small_tables(noise_kinds.EXPERIMENT, metrics_of, tmp_path)
  assert "CIFAR" not in text
  short, accuracy, auc, paired = text.split(":\n\n")[1:]
  assert "| SOSELETO | 65.0/0.900 | 66.0/0.910 | 67.0/0.920" in short
  assert "| source and target jointly | 50.0 | 51.0" in short
  assert "| SOSELETO | 65.0 ± 7.1 (2) | 66.0 ± 7.1 (2) | 67.0" in accuracy
  assert "| wrong labels, % | 30.0 ± 0.0 (2) |" in accuracy
  assert "| source and target jointly | 50.0 ± 0.0 (2) | 51.0" in accuracy
  assert "| clean target alone |" + " 50.0 ± 0.0 (2) |" * 5 in accuracy
  assert "| noise layer (Sukhbaatar et al. 2014) | not run" in accuracy
  assert "| SOSELETO | 0.900 ± 0.000 (2) | 0.910" in auc and "| SOSELETO, published rule | not run" in auc
  assert "| source and target jointly | +15.0 [-48.5, 78.5] (2) | +15.0" in paired and "| SOSELETO |" not in paired


@pytest.mark.parametrize("protocol", runs.PROTOCOLS)
def test_committed_records_count(protocol):
  """Hours of computing stand in them: what they were trained by is what would train them today."""
  path = runs.RESULTS / "noise_kinds.jsonl"

  def names(records):
    return {(record["method"], *record["conditions"].values(), record["config"]["seed"]) for record in records}

  assert names(runs.records_of(noise_kinds.EXPERIMENT, protocol, path)) == names(runs.read_records(path, protocol))
