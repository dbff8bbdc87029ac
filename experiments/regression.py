"""α as detector of wrong values in a regression: `python -m experiments.regression`.

Beyond classification, on configs/diabetes.py: 30 % of the source's values are permuted among each other. Beside 1 - α
stands the squared error of a network that learned from the right target alone. There is one protocol, whatever
`--protocol` says.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs import diabetes
from experiments import runs, tables
from experiments.tables import Method
from soseleto_jax.report import source_weights
from soseleto_jax.train import train_and_evaluate

BEST = "soseleto"


def make_runs(protocol: str, seeds: Sequence[int]) -> list[runs.Run]:
  """Returns the runs of all methods, seed by seed."""
  del protocol
  return [method.run(key, {}, _config(seed)) for seed in seeds for key, method in METHODS.items()]


def _config(seed):
  config = diabetes.get_config()
  config.seed = seed
  return config


def train(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
  """Trains, and returns beside the usual metrics "test_r_squared" and of any method but ours "auc", of its errors."""
  task = runs.task_of(config)
  result = train_and_evaluate(config, workdir, task, evaluators=[explained])
  values = runs.recorded_metrics(result, task.source) | {"test_r_squared": result.records[-1]["test_r_squared"]}
  if config.method != BEST:
    error = (result.predict(task.source["x"]) - task.source["label"]) ** 2
    values["auc"] = source_weights.detection(-error, task.wrong)["auc"]
  return values


def explained(predict: Any, sets: Mapping[str, Any]) -> dict[str, float]:
  """An evaluator: the part of the variance that the network explains."""
  label = sets["test"]["label"]
  errors = np.reshape(predict(sets["test"]["x"]), label.shape) - label
  return {"test_r_squared": float(1 - np.mean(errors**2) / np.var(label))}


METHODS = {
  "source_only": Method("plain training on the whole source", train=train),
  "target_only": Method("the target alone", train=train),
  BEST: Method("SOSELETO", train=train),
}


def render(protocol: str, records: Sequence[runs.Record], folder: pathlib.Path) -> None:
  """Writes regression_PROTOCOL.md."""
  columns = {
    "squared error on the test": ("test_loss", 1, 3),
    "variance explained, %": ("test_r_squared", 100, 1),
    "AUC of 1 - α, or of the squared error": ("auc", 1, 3),
  }
  tables.write(
    folder / f"regression_{protocol}.md",
    (
      "Diabetes, 30 % of the source's values permuted, last epoch: mean ± sd over seeds (how many)",
      tables.metrics_table(METHODS, records, {}, columns),
    ),
    records=records,
  )


EXPERIMENT = runs.Experiment("regression", make_runs, render, seeds=(0, 1, 2, 3))

if __name__ == "__main__":
  runs.main(EXPERIMENT)
