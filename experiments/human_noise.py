"""CIFAR-10 with human labels, 40 % of them wrong: `python -m experiments.human_noise --protocol=small`.

Methods and protocols as in Table 1, data by configs/cifar10n.py. Beside the accuracies stands how well the weights find
the wrong labels, and how well cleanlab's label quality score does, from networks trained on the same source.
"""

import pathlib
from collections.abc import Sequence

from configs import cifar10n
from experiments import runs, table1, tables
from experiments.tables import Method

LABELS = {"labels": "worse_label"}
METHODS = {name: table1.METHODS[name] for name in ("source_only", "joint", "confident_learning", "soseleto_joint")}
DETECTORS = {
  "confident_learning": Method("cleanlab's label quality, low first"),
  "soseleto_joint": Method("1 - α of SOSELETO"),
}


def make_runs(protocol: str, seeds: Sequence[int]) -> list[runs.Run]:
  """Returns the runs of all methods, seed by seed."""
  return table1.runs_on(cifar10n.get_config, [LABELS], METHODS, protocol, seeds)


def render(protocol: str, records: Sequence[runs.Record], folder: pathlib.Path) -> None:
  """Writes human_noise_PROTOCOL.md."""
  tables.write(
    folder / f"human_noise_{protocol}.md",
    (
      "Test accuracy in %, last epoch and epoch of the best validation accuracy: mean ± sd over seeds (how many)",
      tables.metrics_table(
        METHODS,
        records,
        LABELS,
        {"last epoch": ("test_accuracy", 100, 1), "best epoch": ("test_accuracy_at_best", 100, 1)},
      ),
    ),
    (
      "SOSELETO minus the method, in points, on the same data: mean ± sd (how many); seeds on which SOSELETO is ahead",
      tables.paired(METHODS, "soseleto_joint", records, [LABELS], ["last epoch"]),
    ),
    (
      "Detectors of wrong labels (by chance: area 0.5, average precision the fraction of wrong labels)",
      tables.metrics_table(
        DETECTORS,
        records,
        LABELS,
        {
          "area under the ROC curve": ("auc", 1, 3),
          "average precision": ("average_precision", 1, 3),
          "fraction of wrong labels": ("wrong_fraction", 1, 3),
        },
      ),
    ),
    records=records,
  )


EXPERIMENT = runs.Experiment("human_noise", make_runs, render)

if __name__ == "__main__":
  runs.main(EXPERIMENT)
