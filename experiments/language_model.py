"""A language model that chooses its text: `python -m experiments.language_model`.

Beyond classification, on configs/language_model.py: docstrings steer, and the source holds docstrings and code, both
also with shuffled bytes, and bytecode. SOSELETO beside plain training on the whole source, on source and target
jointly, and on the target alone, with the same steps: the loss on held-out docstrings, and what α says of each kind.
There is one protocol, whatever `--protocol` says.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from configs import language_model
from experiments import runs, tables
from experiments.tables import Method
from soseleto_jax.data.python_text import KINDS
from soseleto_jax.train import train_and_evaluate

BEST = "soseleto"


def make_runs(protocol: str, seeds: Sequence[int]) -> list[runs.Run]:
  """Returns the runs of all methods, seed by seed."""
  del protocol
  return [method.run(key, {}, _config(seed)) for seed in seeds for key, method in METHODS.items()]


def _config(seed):
  config = language_model.get_config()
  config.seed = seed
  return config


def train(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
  """Trains, and returns beside the usual metrics the mean α of each kind of source, as "alpha_KIND"."""
  task = runs.task_of(config)
  result = train_and_evaluate(config, workdir, task)
  values = runs.recorded_metrics(result, task.source)
  if config.method != BEST:
    return values
  kind = task.source["kind"]
  return values | {f"alpha_{name}": float(result.alpha[kind == number].mean()) for number, name in enumerate(KINDS)}


METHODS = {
  "source_only": Method("plain training on the whole source", train=train),
  "joint": Method("source and target jointly", train=train),
  "target_only": Method("the target alone", train=train),
  BEST: Method("SOSELETO", train=train),
}


def render(protocol: str, records: Sequence[runs.Record], folder: pathlib.Path) -> None:
  """Writes language_model_PROTOCOL.md."""
  losses = {
    "last epoch": ("test_loss", 1, 3),
    "at the best validation loss": ("test_loss_at_best", 1, 3),
  }
  ours = {BEST: METHODS[BEST]}
  tables.write(
    folder / f"language_model_{protocol}.md",
    (
      "Held-out docstrings, nats for each byte: mean ± sd over seeds (how many)",
      tables.metrics_table(METHODS, records, {}, losses),
    ),
    (
      "The method's loss minus SOSELETO's, on the same data: mean ± sd (how many); seeds on which SOSELETO is better",
      tables.paired(METHODS, BEST, records, [{}], ["last epoch"], metric="test_loss", scale=-1, digits=3),
    ),
    (
      "Mean α of each kind of source, and 1 - α as detector of shuffled bytes and bytecode",
      tables.metrics_table(
        ours,
        records,
        {},
        {name: (f"alpha_{name}", 1, 2) for name in KINDS} | {"area under the ROC curve": ("auc", 1, 3)},
      ),
    ),
    records=records,
  )


EXPERIMENT = runs.Experiment("language_model", make_runs, render)

if __name__ == "__main__":
  runs.main(EXPERIMENT)
