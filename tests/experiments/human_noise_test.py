"""Human labels: the config's data, and cells in their places."""

import pathlib
import runpy
import shutil
import sys
import types

import numpy as np
import pytest

from configs import cifar10n, cifar_noise
from experiments import human_noise, runs, table1
from experiments.confident_learning import Pruned
from soseleto_jax.config import default_config, validate
from tests.experiments.written import small_tables


@pytest.mark.parametrize("argument", ["", "small", "paper", "symmetric", "runlocal", "small,paper"])
def test_the_config_differs_from_that_of_known_noise_by_the_source_alone(argument):
  human, known = (module.get_config(argument).to_dict() for module in (cifar10n, cifar_noise))
  assert human.pop("name") != known.pop("name")
  source = human["data"].pop("source")
  expected = known["data"].pop("source") | {"dataset": "cifar10_n", "label_key": "worse_label"}
  assert source == expected | {"noise": "none", "noise_rate": 0.0}
  assert human == known


def test_labels():
  config = cifar10n.get_config("labels=random_label2")
  validate(config)
  assert (config.data.source.label_key, config.data.target.label_key) == ("random_label2", "label")
  assert config.data.target.dataset == "cifar10" and config.data.source.num_examples == 45_000
  with pytest.raises(ValueError, match="'label' is unknown.*did you mean 'labels'"):
    cifar10n.get_config("label=worse_label")


def test_the_config_needs_no_repository_around_it(monkeypatch, tmp_path):
  for module in (cifar10n, cifar_noise):
    shutil.copy(pathlib.Path(module.__file__), tmp_path)
  monkeypatch.setitem(sys.modules, "configs", None)  # an import of it is now an error
  installed = runpy.run_path(str(tmp_path / "cifar10n.py"))
  assert installed["get_config"]("small") == cifar10n.get_config("small")


@pytest.mark.parametrize("protocol", runs.PROTOCOLS)
def test_runs(protocol):
  chosen = human_noise.make_runs(protocol, [0, 1])
  assert [run.method for run in chosen] == 2 * list(human_noise.METHODS)
  for run in chosen:
    validate(run.config)
    assert run.config.data == cifar10n.get_config("small" if protocol == "small" else "").data
    assert run.train is table1.METHODS[run.method].train
  assert bool(chosen[-1].config.alpha.transforms) and chosen[-1].method == "soseleto_joint"  # its best settings


def test_cells(tmp_path):
  def metrics_of(run):
    if run.method == "joint":
      return None
    value = {"source_only": 0.5, "confident_learning": 0.6, "soseleto_joint": 0.65}[run.method] + run.config.seed / 100
    values = {"test_accuracy": value, "test_accuracy_at_best": value + 0.02}
    if run.method in human_noise.DETECTORS:
      values |= {"auc": value + 0.2, "average_precision": value + 0.1, "wrong_fraction": 0.402}
    return values

  accuracy, paired, detectors = small_tables(human_noise.EXPERIMENT, metrics_of, tmp_path).split(":\n\n")[1:]
  assert "|  | last epoch | best epoch |" in accuracy
  assert "| source only | 50.5 ± 0.7 (2) | 52.5 ± 0.7 (2) |" in accuracy
  assert "| source and target jointly | not run | not run |" in accuracy
  assert "| confident learning (Northcutt et al. 2021) | 5.0 ± 0.0 (2) | 2 of 2 |" in paired
  assert "| cleanlab's label quality, low first | 0.805 ± 0.007 (2) | 0.705 ± 0.007 (2) | 0.402 ± 0.000" in detectors
  assert "| 1 - α of SOSELETO | 0.855 ± 0.007 (2) | 0.755 ± 0.007 (2) | 0.402 ± 0.000 (2) |" in detectors


def test_what_is_recorded_of_confident_learning(tmp_path, monkeypatch):
  """The accuracy of the last training, and how well the score finds the wrong labels."""
  method = human_noise.METHODS["confident_learning"]
  summary = {"method": "joint", "test_accuracy": 0.5, "num_source": 70}
  result, task = types.SimpleNamespace(summary=summary), types.SimpleNamespace(source={})
  found = {"removed_fraction": 0.3, "wrong_fraction": 0.4, "auc": 0.8, "average_precision": 0.7}

  def train(config, workdir, given, **settings):
    assert given is task and settings == {"num_folds": 4}
    return Pruned(result, np.ones(2, bool), np.ones(2), np.ones((2, 2)), found)

  monkeypatch.setattr(table1, "confident_learning", train)
  monkeypatch.setattr(runs, "task_of", lambda config: task)
  recorded = method.train(default_config(), tmp_path, num_folds=4)
  assert recorded == {"test_accuracy": 0.5, "num_source": 70} | found
