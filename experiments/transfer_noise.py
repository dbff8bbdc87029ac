"""Beyond the paper: a transfer source of which half harms, `python -m experiments.transfer_noise`.

2,000 pictures of SVHN's digits 5-9, for MNIST's digits 5-9. Half of them bear the label of the next class, so that the
source by itself says one digit as loud as the other, and 25 labelled images of MNIST have to tell which. Everything is
trained at once, source and all target images in every step, without pretraining, so that the harm is in all that is
learned; an oracle drops the harmful half. Beside accuracy the table says how much of what the oracle gains on joint
training selection gains, and how well 1 - alpha tells the harmful images. Settings were chosen on draws 100 and 101.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

from configs import svhn_mnist
from experiments import runs, tables, transfer
from experiments.tables import Method
from soseleto_jax.data import sides
from soseleto_jax.data.get_task import get_task
from soseleto_jax.data.task import Task

BEST = "soseleto_best"
SIZE, HARMFUL = 2000, 0.5

# Of docs/settings.md, for wrong labels; a step of 0.025 for the nine epochs that there are.
SHARP = dict(
  first=False,
  step_size=0.025,
  gain=8.0,
  target_loss="margin",
  direction="orthogonal",
  params=("classifier",),
  transforms=("residual_normalize", "scale_by_std", "add_agreement"),
)

_read = functools.cache(sides.read)


def _method(title, method=None, tries=None):
  return Method(title, (), method, train=transfer.train, tries=tries)


METHODS = {
  "target_only": _method("target only", tries=1),
  "source_only": _method("source only", tries=1),
  "joint": _method("source and target jointly", tries=1),
  "oracle": _method("the same without the harmful half: an oracle", "joint", tries=1),
  "soseleto": _method("SOSELETO, published rule", tries=1),
  BEST: _method("SOSELETO, at its best", "soseleto", tries=2),
}


def make_task(seed: int, harm: bool = True) -> Task:
  """Returns the task; without harm, only the half of the source whose labels are right."""
  config = svhn_mnist.get_config("source_classes=5-9,plain")
  config.data.shared_classes = True
  config.data.source.update(num_examples=SIZE, noise="pair_flip", noise_rate=HARMFUL)
  task = get_task(config.data, seed, read=_read)
  if harm:
    return task
  right = task.source["label"] == task.source["true_label"]
  source = {name: column[right] for name, column in task.source.items() if name != "true_label"}
  return dataclasses.replace(task, source=source)


def make_runs(protocol: str, seeds: Sequence[int]) -> list[runs.Run]:
  """Returns the runs of all methods, draw by draw."""
  del protocol  # there is one
  return [method.run(name, {}, _config(name, seed)) for seed in seeds for name, method in METHODS.items()]


def _config(name, seed):
  config = svhn_mnist.get_config("source_classes=5-9,plain")
  config.name = "Half of the source harms"
  config.seed = seed
  config.task = "experiments.transfer_noise:make_task"
  config.task_options = {"harm": name != "oracle"}
  config.data.shared_classes = True
  config.pretrain_epochs = 0.0
  config.num_steps = 600
  if name == "soseleto":
    config.alpha.update(step_size=0.5, transforms=("scale_by_std",), target_params="none")
  if name == BEST:
    config.alpha.update(SHARP)
  return config


def gained(records: Sequence[runs.Record], method: str) -> float | None:
  """Returns which part of the oracle's mean gain on joint training a method has; None where runs are missing."""
  means = {}
  for name in ("joint", "oracle", method):
    accuracies = tables.by_seed(records, name, {}, "test_accuracy")
    if accuracies.empty:
      return None
    means[name] = accuracies.mean()
  return (means[method] - means["joint"]) / (means["oracle"] - means["joint"])


def render(protocol: str, records: Sequence[runs.Record], folder: pathlib.Path) -> None:
  """Writes transfer_noise_PROTOCOL.md."""
  columns = {"test accuracy, %": ("test_accuracy", 100, 1), "AUC of 1 - α": ("auc", 1, 3)}
  parts = [gained(records, name) for name in METHODS]
  caption = (
    f"{SIZE:,} pictures of SVHN's 5-9, half of them with the label of the next class, and 25 target images, last step: "
    "mean ± sd over draws (how many)"
  )
  shares = [[method.title, tables.NOT_RUN if part is None else f"{part:.0%}"]
            for method, part in zip(METHODS.values(), parts, strict=True)]  # fmt: skip
  tables.write(
    folder / f"transfer_noise_{protocol}.md",
    (caption, tables.metrics_table(METHODS, records, {}, columns)),
    ("How much of what the oracle gains on joint training, on the means", tables.markdown(["", "part"], shares)),
    (
      "SOSELETO, at its best, minus the method, in points, on the same draws: mean ± sd (how many); 95 % interval of "
      "the mean; draws on which it is ahead",
      tables.paired(METHODS, BEST, records, [{}], ["test"], interval=True),
    ),
    methods=METHODS,
    records=records,
  )


EXPERIMENT = runs.Experiment("transfer_noise", make_runs, render, seeds=tuple(range(10)), protocols=("full",))

if __name__ == "__main__":
  runs.main(EXPERIMENT)
