"""Beyond the paper, what the field trains: ResNet-18, `python -m experiments.resnet18 --protocol=small`.

CIFAR-10 with 40 % of the labels wrong at random, and with the labels of CIFAR-10N that are wrong most often. Methods
all have the same network with GroupNorm, in bfloat16, the same flips and crops of source and target, and the epochs and
settings of configs/cifar_noise.py and configs/cifar10n.py. For a GPU: on a CPU core a run takes hours.
"""

import pathlib
from collections.abc import Sequence

from configs import cifar_noise
from experiments import noise_kinds, runs, table1, tables
from experiments.tables import Method

COLUMNS = {"kind=symmetric,noise=0.4": "symmetric 40 %", "worse_label": "people, worst"}
BEST = noise_kinds.BEST
METHODS = {name: noise_kinds.METHODS[name] for name in ("source_only", "joint")} | {
  "confident_learning": table1.METHODS["confident_learning"],
  "learning_to_reweight": Method(table1.METHODS["learning_to_reweight"].title),
  BEST: noise_kinds.METHODS[BEST],
}
_DETECTORS = {name: METHODS[name] for name in ("confident_learning", BEST)}
_NETWORK = dict(name="resnet", norm="group", width=64, stage_sizes=(2, 2, 2, 2), dtype="bfloat16")


def make_runs(protocol: str, seeds: Sequence[int]) -> list[runs.Run]:
  """Returns the runs of all methods, labels by labels and seed by seed."""
  return [
    method.run(name, {"labels": labels}, _config(labels, name, protocol, seed))
    for labels in COLUMNS
    for seed in seeds
    for name, method in METHODS.items()
  ]


def _config(labels, name, protocol, seed):
  config = noise_kinds.config_of("cifar10", labels, name, protocol, seed)
  config.model = dict(_NETWORK)
  config.augment.source = config.augment.target = cifar_noise.AUGMENTATION
  return config


def render(protocol: str, records: Sequence[runs.Record], folder: pathlib.Path) -> None:
  """Writes resnet18_PROTOCOL.md."""
  conditions, header = [{"labels": labels} for labels in COLUMNS], ["", *COLUMNS.values()]
  tables.write(
    folder / f"resnet18_{protocol}.md",
    (
      "ResNet-18: test accuracy in %, last epoch, mean ± sd over seeds (how many)",
      tables.markdown(header, tables.rows(METHODS, records, conditions, "test_accuracy")),
    ),
    tables.paired_with_caption(METHODS, BEST, records, conditions, list(COLUMNS.values())),
    (
      "Area under the ROC curve of 1 - α, or of cleanlab's score, as detector of wrong labels",
      tables.markdown(header, tables.rows(_DETECTORS, records, conditions, "auc", scale=1, digits=3)),
    ),
    methods=METHODS,
    records=records,
  )


EXPERIMENT = runs.Experiment("resnet18", make_runs, render)

if __name__ == "__main__":
  runs.main(EXPERIMENT)
