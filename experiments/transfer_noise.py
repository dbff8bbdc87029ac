"""Beyond the paper: a transfer source of which half harms, `python -m experiments.transfer_noise`.

Pictures of SVHN's digits 0-4, and as many of MNIST's digits 5-9, the target's own, that bear the labels 0-4 at random:
a network that learns these by heart unlearns what the target's classes differ by. All of 14x14 pixels, and the network
is a perceptron, so that each image is seen many times in a few seconds. Everything is trained at once, source and all
25 target images in every step, without pretraining, so that the harm is in all that is learned; an oracle drops the
harmful half. Beside accuracy the table says how much of what the oracle gains on joint training selection gains, and
how well 1 - alpha tells the harmful images. Settings were chosen on draws of another program.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import numpy as np

from configs import svhn_mnist
from experiments import runs, tables, transfer
from experiments.tables import Method
from soseleto_jax.data import draws, sides
from soseleto_jax.data.get_task import get_task
from soseleto_jax.data.task import Task
from soseleto_jax.data.unlabelled import get_unlabelled

BEST = "soseleto_best"
SIZE = 1000  # of each half
PIXELS = 14

SHARP = dict(
  first=False, step_size=0.0125, gain=8.0, transforms=("residual_normalize", "scale_by_std", "add_agreement")
)

_read = functools.cache(sides.read)


def _method(title, method=None, tries=None):
  return Method(title, (), method, train=transfer.train, tries=tries)


METHODS = {
  "target_only": _method("target only", tries=1),
  "joint": _method("source and target jointly", tries=1),
  "oracle": _method("the same without the harmful half: an oracle", "joint", tries=1),
  "soseleto": _method("SOSELETO, published rule", tries=1),
  BEST: _method("SOSELETO, at its best", "soseleto", tries=21),
}


def make_task(seed: int, harm: bool = True) -> Task:
  """Returns the task of Table 2 with few source images, and small ones; with harm, beside them as many that are the
  target's digits under any label, and marked as `wrong`."""
  config = svhn_mnist.get_config("plain").data
  config.source.update(split="train[:10000]", num_examples=SIZE, size=PIXELS)
  config.target.size = PIXELS
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
  return [method.run(name, {}, _config(name, seed)) for seed in seeds for name, method in METHODS.items()]


def _config(name, seed):
  config = svhn_mnist.get_config("plain")
  config.name = "Half of the source harms"
  config.seed = seed
  config.task = "experiments.transfer_noise:make_task"
  config.task_options = {"harm": name != "oracle"}
  config.augment.source = ()
  config.model = dict(name="mlp", hidden=(128,), dtype="float32")
  config.pretrain_epochs = 0.0
  config.num_steps = 2000
  config.optimizer.learning_rate = 0.05
  config.eval_every_epochs = config.checkpoint_every_epochs = 1000.0  # at the end alone
  if name == "soseleto":
    config.alpha.update(step_size=0.5, transforms=("scale_by_std",), target_params="none")
  if name == BEST:
    config.alpha.update(SHARP)
  return config


def gained(records: Sequence[runs.Record], method: str) -> float | None:
  """Returns which part of the oracle's mean gain on joint training a method has, on the draws that all three have; None
  where there are none."""
  names = ("joint", "oracle", method)
  joint, oracle, own = (tables.by_seed(records, name, {}, "test_accuracy") for name in names)
  draws_of_all = joint.index.intersection(oracle.index).intersection(own.index)
  if draws_of_all.empty:
    return None
  base = joint[draws_of_all].mean()
  return (own[draws_of_all].mean() - base) / (oracle[draws_of_all].mean() - base)


def render(protocol: str, records: Sequence[runs.Record], folder: pathlib.Path) -> None:
  """Writes transfer_noise_PROTOCOL.md."""
  columns = {"test accuracy, %": ("test_accuracy", 100, 1), "AUC of 1 - α": ("auc", 1, 3)}
  parts = [gained(records, name) for name in METHODS]
  caption = (
    f"{SIZE:,} pictures of SVHN's 0-4 and {SIZE:,} of MNIST's 5-9 with the labels 0-4 at random, 25 target images, "
    "last step: mean ± sd over draws (how many)"
  )
  shares = [[method.title, tables.NOT_RUN if part is None else f"{part:.0%}"]
            for method, part in zip(METHODS.values(), parts, strict=True)]  # fmt: skip
  tables.write(
    folder / f"transfer_noise_{protocol}.md",
    (caption, tables.metrics_table(METHODS, records, {}, columns)),
    (
      "How much of what the oracle gains on joint training, on the means of the draws that both and the method have",
      tables.markdown(["", "part"], shares),
    ),
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
