"""Beyond the paper: a transfer source of which half harms, `python -m experiments.transfer_noise`.

1,000 pictures of SVHN's digits 0-4, and as many of MNIST's digits 5-9, the target's own, that bear the labels 0-4 at
random: a network that learns these by heart unlearns what the target's classes differ by. LeNet takes them as in Table
2 where the target is augmented, with and without that; a perceptron takes them at 14x14 pixels. Everything is trained
at once, source and all 25 target images in every step, without pretraining and augmentation of the source, so that each
of its images is seen 32 times, and the harm is in all that is learned; an oracle drops the harmful half. Beside
accuracy the tables say how much of what the oracle gains on joint training selection gains, and how well 1 - alpha
tells the harmful images. Settings were chosen on other draws, those of the perceptron by another program.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from configs import svhn_mnist
from experiments import runs, tables, transfer
from experiments.tables import Method
from soseleto_jax.data import draws, reading
from soseleto_jax.data.get_task import get_task
from soseleto_jax.data.task import Task
from soseleto_jax.data.unlabelled import get_unlabelled

BEST = "soseleto_best"
SIZE = 1000  # of each half
CONDITIONS = {
  "LeNet": {"network": "lenet"},
  "LeNet, target augmented": {"network": "lenet", "augmented": True},
  "perceptron": {},
}

SHARP = dict(
  first=False, step_size=0.0125, gain=8.0, transforms=("residual_normalize", "scale_by_std", "add_agreement")
)

_read = functools.cache(reading.read)


def _method(title, method=None, tries=None):
  return Method(title, (), method, train=transfer.train, tries=tries)


METHODS = {
  "target_only": _method("target only", tries=1),
  "joint": _method("source and target jointly", tries=1),
  "oracle": _method("the same without the harmful half: an oracle", "joint", tries=1),
  "soseleto": _method("SOSELETO, published rule", tries=1),
  BEST: _method("SOSELETO, at its best", "soseleto", tries=30),
}
WEIGHTED = {name: METHODS[name] for name in ("soseleto", BEST)}


def make_task(seed: int, harm: bool = True, pixels: int = 14) -> Task:
  """Returns the task of Table 2 with few source images, each `[pixels, pixels, 1]`; with harm, beside them as many that
  are the target's digits under any label, and marked as `wrong`."""
  config = svhn_mnist.get_config().data
  config.source.update(split="train[:10000]", num_examples=SIZE, size=pixels)
  config.target.size = pixels
  task = get_task(config, seed, read=_read)
  source = {"x": task.source["x"], "label": task.source["label"]}
  if harm:
    x = get_unlabelled(config, seed, SIZE, _read)["x"]
    label = draws.integers(SIZE, task.num_source_classes, seed, "transfer_noise", "label").astype(np.int32)
    source = {"x": np.concatenate([source["x"], x]), "label": np.concatenate([source["label"], label])}
    source["wrong"] = np.arange(2 * SIZE) >= SIZE
  return dataclasses.replace(task, source=source, left_out={})


def make_runs(protocol: str, seeds: Sequence[int]) -> list[runs.Run]:
  """Returns the runs of all methods, draw by draw."""
  del protocol  # there is one
  return [
    method.run(name, conditions, _config(name, seed, **conditions))
    for conditions in CONDITIONS.values()
    for seed in seeds
    for name, method in METHODS.items()
  ]


def _config(name, seed, network="mlp", augmented=False):
  config = svhn_mnist.get_config()
  config.name = "Half of the source harms"
  config.seed = seed
  config.task = "experiments.transfer_noise:make_task"
  config.task_options = {"harm": name != "oracle"}
  config.augment.source = ()
  if not augmented:
    config.augment.target = ()
  config.pretrain_epochs = 0.0
  config.num_steps = 2000
  config.eval_every_epochs = config.checkpoint_every_epochs = 1000.0  # at the end alone
  if network == "mlp":
    config.model = dict(name="mlp", hidden=(128,), dtype="float32")
    config.optimizer.learning_rate = 0.05
  else:
    config.task_options.pixels = 28
  if name == "soseleto":
    config.alpha.update(step_size=0.5, transforms=("scale_by_std",), target_params="none")
  if name == BEST:
    config.alpha.update(SHARP)
  return config


def gained(records: Sequence[runs.Record], method: str, conditions: Mapping[str, Any]) -> float | None:
  """Returns which part of the oracle's mean gain on joint training a method has, on the draws that all three have; None
  where there are none."""
  names = ("joint", "oracle", method)
  joint, oracle, own = (tables.by_seed(records, name, conditions, "test_accuracy") for name in names)
  draws_of_all = joint.index.intersection(oracle.index).intersection(own.index)
  if draws_of_all.empty:
    return None
  base = joint[draws_of_all].mean()
  return (own[draws_of_all].mean() - base) / (oracle[draws_of_all].mean() - base)


def render(protocol: str, records: Sequence[runs.Record], folder: pathlib.Path) -> None:
  """Writes transfer_noise_PROTOCOL.md."""
  at = list(CONDITIONS.values())
  shares = [
    [method.title, *(_percent(gained(records, name, conditions)) for conditions in at)]
    for name, method in METHODS.items()
  ]
  caption = (
    f"{SIZE:,} pictures of SVHN's 0-4 and {SIZE:,} of MNIST's 5-9 with the labels 0-4 at random, 25 target images: "
    "test accuracy in %, last step, mean ± sd over draws (how many)"
  )
  tables.write(
    folder / f"transfer_noise_{protocol}.md",
    (caption, tables.markdown(["", *CONDITIONS], tables.rows(METHODS, records, at, "test_accuracy"))),
    (
      "Area under the ROC curve of 1 - α as detector of the harmful half",
      tables.markdown(["", *CONDITIONS], tables.rows(WEIGHTED, records, at, "auc", 1, 3)),
    ),
    (
      "How much of what the oracle gains on joint training, on the means of the draws that both and the method have",
      tables.markdown(["", *CONDITIONS], shares),
    ),
    tables.paired_with_caption(METHODS, BEST, records, at, list(CONDITIONS), by="draws"),
    methods=METHODS,
    records=records,
  )


def _percent(part):
  return tables.NOT_RUN if part is None else f"{part:.0%}"


EXPERIMENT = runs.Experiment("transfer_noise", make_runs, render, seeds=tuple(range(10)), protocols=("full",))

if __name__ == "__main__":
  runs.main(EXPERIMENT)
