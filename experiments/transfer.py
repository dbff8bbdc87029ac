"""Runs of transfer that share their pretraining: the methods of a seed start from one network."""

import hashlib
import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from experiments import runs
from soseleto_jax import pretraining
from soseleto_jax.train import Result, train_and_evaluate

VERSION = 1  # by which records count: raise it where runs compute something else


def train(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
  """Trains as `train_and_evaluate` does, but for the pretraining, which is taken from the folder beside the run's.

  The folder is named by the settings, and has the pretraining of all runs with the same. It sees nothing of the target.
  """
  task = runs.task_of(config)
  return runs.recorded_metrics(train_from(config, workdir, task), task.source)


def train_from(config: ConfigDict, workdir: pathlib.Path, task: Any) -> Result:
  """Returns the result of `train` for a task."""
  if not config.pretrain_epochs:
    return train_and_evaluate(config, workdir, task)
  start = _pretrained(config, workdir.parent).state
  own = config.copy_and_resolve_references()
  own.pretrain_epochs = 0.0
  return train_and_evaluate(own, workdir, task, params={"params": start.params, **(start.model_state or {})})


def _pretrained(config, folder):
  first = pretraining.config_of(config)
  first.name = "pretraining"
  if not first.task:
    first.data.target.num_examples = len(first.data.target.classes)  # any, for all sizes of the target
  digest = hashlib.sha256(json.dumps(first.to_dict(), sort_keys=True).encode()).hexdigest()[:8]
  task = pretraining.without_held_out(runs.task_of(first))
  return train_and_evaluate(
    first, folder / f"pretraining-seed={first.seed}-{digest}", task, method=pretraining.make_method
  )
