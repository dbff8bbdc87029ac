"""The table of one's own data: its sets, its rankings, and what it says of them."""

import numpy as np
import pytest

from experiments import own_data, runs
from soseleto_jax.choices import Facts, facts_of
from soseleto_jax.config import default_config, validate


def test_the_runs():
  made = own_data.make_runs("small", [0, 1])
  assert len(made) == 2 * len(own_data.SETS) * len(own_data.METHODS)
  assert len({run.folder() for run in made}) == len(made)
  for run in made:
    validate(run.config)
    assert run.settings["data"] == run.conditions["data"]


def test_settings_are_those_that_the_data_give():
  for data in ("embeddings", "digits"):
    task = own_data.make_task(data, 0, None)
    found = facts_of(task)
    expected = own_data.SETS[data][1]
    assert found == expected
    wrong = np.mean(task.source["label"] != task.source["true_label"])
    assert wrong == pytest.approx(0.3, abs=0.03)


def test_how_an_order_is_judged():
  label = np.zeros(200, int)
  true_label = np.r_[np.ones(40, int), np.zeros(160, int)]

  class Task:
    source = {"label": label, "true_label": true_label}

  assert own_data.found(Task, np.arange(200)) == {"auc": 1.0, "worst_10": 10, "worst_32": 32, "worst_100": 40}
  assert own_data.found(Task, np.arange(200)[::-1]) == {"auc": 0.0, "worst_10": 0, "worst_32": 0, "worst_100": 0}


def test_cleanlab_finds_wrong_labels(tmp_path):
  pytest.importorskip("cleanlab")
  order, accuracy = own_data.by_clean_learning(default_config(), tmp_path, own_data.make_task("embeddings", 0, None))
  metrics = own_data.found(own_data.make_task("embeddings", 0, None), order)
  assert metrics["auc"] > 0.95 and metrics["worst_32"] > 28 and accuracy > 0.85


def test_the_table(tmp_path):
  found = {"auc": 0.75, "worst_10": 9, "test_accuracy": 0.25, "seconds": 3}
  records = [
    {"method": name, "conditions": {"data": "digits"}, "config": {"seed": seed}, "metrics": metrics}
    for seed in (0, 1)
    for name, metrics in (("soseleto", found), ("source_only", {"test_accuracy": 0.5 + seed / 10}))
  ]
  own_data.render("small", records, tmp_path)
  text = (tmp_path / "own_data_small.md").read_text()
  assert "digits, 30 % wrong: 1137 source examples, 100 clean" in text and "photographs" not in text
  assert "| SOSELETO, by default | 0.750 ± 0.000 (2) | 9.0 ± 0.0 (2) |" in text and "55.0 ± 7.1 (2)" in text
  assert isinstance(own_data.EXPERIMENT, runs.Experiment) and isinstance(own_data.SETS["photos"][1], Facts)
