"""Experiments on labels that are no classes: their runs and tables."""

import pytest

from configs import diabetes, language_model
from experiments import language_model as experiment
from experiments import regression
from soseleto_jax.config import validate
from soseleto_jax.data import python_text
from soseleto_jax.data.get_task import task_of
from tests.experiments.written import small_tables


@pytest.mark.parametrize("module", [experiment, regression])
def test_runs(module):
  chosen = module.make_runs("small", [0, 1])
  assert [run.method for run in chosen] == 2 * list(module.METHODS)
  for run in chosen:
    validate(run.config)
    assert run.config.method == run.method and run.config.seed in (0, 1)


def written(tmp_path, module, metrics):
  """The tables of records with these metrics of each method."""

  def metrics_of(run):
    return {name: value + run.config.seed / 10 for name, value in metrics[run.method].items()}

  return small_tables(module.EXPERIMENT, metrics_of, tmp_path)


def test_tables_of_the_language_model(tmp_path):
  losses = {"source_only": 2.5, "joint": 3.0, "target_only": 8.0, "soseleto": 2.25}
  metrics = {name: {"test_loss": loss, "test_loss_at_best": loss - 0.25} for name, loss in losses.items()}
  metrics["soseleto"] |= {f"alpha_{kind}": 0.25 for kind in python_text.KINDS} | {"auc": 0.75}
  text = written(tmp_path, experiment, metrics)
  assert "| SOSELETO | 2.300 ± 0.071 (2) | 2.050 ± 0.071 (2) |" in text
  assert "| plain training on the whole source | 0.250 ± 0.000 (2) | 2 of 2 |" in text
  assert "| SOSELETO | 0.30 ± 0.07 (2) |" in text and "0.800 ± 0.071 (2) |" in text


def test_tables_of_the_regression(tmp_path):
  metrics = {name: {"test_loss": 0.5, "test_r_squared": 0.25, "auc": 0.5} for name in regression.METHODS}
  assert "| SOSELETO | 0.550 ± 0.071 (2) | 30.0 ± 7.1 (2) | 0.550 ± 0.071 (2) |" in written(
    tmp_path, regression, metrics
  )


@pytest.mark.slow
def test_a_run_of_the_language_model(tmp_path, monkeypatch, no_report):
  """Few modules of the library, and what is recorded of the run."""
  text = {kind: bytes(range(256)) * 40 for kind in ("docstrings", "code", "bytecode")}
  monkeypatch.setattr(python_text, "_modules", lambda: [text] * 10)
  config = language_model.get_config("runlocal")
  values = experiment.train(config, tmp_path)
  assert {f"alpha_{kind}" for kind in python_text.KINDS} | {"test_loss", "auc", "retention"} <= values.keys()
  assert all(0 <= values[f"alpha_{kind}"] <= 1 for kind in python_text.KINDS)


def test_a_run_of_the_regression(tmp_path, no_report):
  config = diabetes.get_config()
  config.update(method="target_only", num_epochs=1)
  values = regression.train(config, tmp_path)
  label = task_of(config).test["label"]
  assert values["test_r_squared"] == pytest.approx(1 - values["test_loss"] / label.var(), rel=1e-4)
  assert 0 <= values["auc"] <= 1
