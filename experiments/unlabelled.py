"""The paper's use of unlabelled target images, with 25 labelled ones of MNIST 5-9: `python -m experiments.unlabelled`.

As published (`--methods=soseleto`): SOSELETO takes SVHN 0-4 to MNIST 5-9 with 25 labelled images, by the published rule
of Table 2. The network then classifies other training images of MNIST's 5-9, and SOSELETO, from new initial weights,
takes these with the predicted labels for a source whose labels may be wrong, and the 25 labelled ones for its target.

At its best (`--methods=spread`): the first network learns from the 25 images alone, strongly augmented. Each
unlabelled image then takes the probabilities of its neighbours on that network's features, with classes kept in balance
(`experiments.neighbours`), which puts most of the wrong labels right; and the second stage starts from this network.

Beside SOSELETO's second stage stands plain training as the second stage, on the same labels, from the same network,
with the same augmentation and steps: what the weights add. Luo et al. have the same labelled images, augmentation and
network, and SVHN as Table 2 has it. `small` draws 6,000 unlabelled images, `full` takes them all. How settings were
chosen: docs/lab_notes.md.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import svhn_mnist
from experiments import neighbours, runs, table2, tables, transfer
from experiments.tables import Method
from soseleto_jax.config import default_config
from soseleto_jax.core.train_state import TrainState
from soseleto_jax.data import lazy
from soseleto_jax.data.task import Task
from soseleto_jax.models import make_network
from soseleto_jax.models.losses import predict_fn
from soseleto_jax.train import Result, train_and_evaluate

STRONG = svhn_mnist.TARGET_AUGMENTATION

NUM_UNLABELLED = {"small": 6000, "full": 0}  # of a protocol; 0: all

# Of the second stage, by the fields of its config: what tells the labels of a network that are wrong.
_WEIGHTS = {
  "target_weight": 0.4,
  "alpha.gain": 8.0,
  "alpha.step_size": 0.03,
  "alpha.target_loss": "margin",
  "alpha.direction": "orthogonal",
  "alpha.params": ("classifier",),
  "alpha.transforms": ("residual_normalize", "scale_by_std", "add_agreement"),
  "alpha.target_params": "all",
}

# As published, and at its best.
SECOND = _WEIGHTS | {
  "batch_size": 32,
  "target_batch_size": 25,
  "num_epochs": 5,
  "optimizer.learning_rate": 1e-2,
  "optimizer.momentum": 0.9,
}
SECOND_ON_SPREAD = _WEIGHTS | {"num_steps": 300, "augment.source": STRONG, "alpha.init": 0.6}

COMPARATORS = {
  "label_efficient": Method(
    "with SVHN 0-4 and unlabelled images: reconstruction of Luo et al. (2017)",
    (95.0,),
    options={"adversarial_weight": 0.01, "adaptation_epochs": 0.25},
    train=transfer.train,
  ),
}

# Run -> metric -> its name in the table and the published number.
_ROWS = {
  "soseleto": {
    "first_test_accuracy": ("as published: SVHN 0-4 to MNIST 5-9", 87.9),
    "test_accuracy": ("then SOSELETO on the predicted labels", 92.0),
    "unweighted_test_accuracy": ("then plain training on the predicted labels", None),
    "joint_test_accuracy": ("then plain training on these and the 25 labelled images jointly", None),
  },
  "spread": {
    "first_test_accuracy": ("at its best: 25 labelled images alone, augmented", None),
    "test_accuracy": ("then SOSELETO on the spread labels", 92.0),
    "unweighted_test_accuracy": ("then plain training on the spread labels", None),
    "joint_test_accuracy": ("then plain training on these and the 25 labelled images jointly", None),
  },
} | {name: {"test_accuracy": (method.title, *method.published)} for name, method in COMPARATORS.items()}


def make_runs(protocol: str, seeds: Sequence[int]) -> list[runs.Run]:
  """Returns the runs of each seed: of all stages, as published and at its best, and of what they are compared with."""
  chosen = []
  for seed in seeds:
    first = table2.config_of("soseleto", num_target=25, augmented=False, seed=seed)
    second = SECOND | {"data.source.num_examples": NUM_UNLABELLED[protocol]}
    chosen.append(runs.Run("soseleto", {}, first, train, {"second": second}))
    best = spread_config(protocol, seed)
    chosen.append(runs.Run("spread", {}, best, train_on_spread, {"second": SECOND_ON_SPREAD}))
    chosen += [method.run(name, {}, _compared_config(seed)) for name, method in COMPARATORS.items()]
  return chosen


def spread_config(protocol: str, seed: int) -> ConfigDict:
  """Returns the config of the first stage on the target alone."""
  config = default_config()
  config.name, config.seed, config.method = "MNIST 5-9, unlabelled", seed, "target_only"
  images = svhn_mnist.MNIST | {"dataset": "mnist", "classes": (5, 6, 7, 8, 9)}
  config.data.source.update(images | {"num_examples": NUM_UNLABELLED[protocol]})
  config.data.target.update(images | {"num_examples": 25, "num_validation": 1000})
  config.augment.target = STRONG
  config.model = dict(name="lenet", relu=True, dtype="float32")
  config.update(batch_size=64, target_batch_size=25, num_steps=300)
  config.update(eval_every_epochs=1e3, checkpoint_every_epochs=1e3)
  config.optimizer.update(learning_rate=0.02, momentum=0.9, schedule="cosine")
  return config


def _compared_config(seed):
  config = svhn_mnist.get_config("num_target=25,source_classes=0-4")
  config.seed = seed
  config.num_steps = 300  # as the first stage on the target alone has
  return config


def second_config(first: ConfigDict, fields: dict[str, Any]) -> ConfigDict:
  """Returns the second stage's config: the first's network and target, whose other images become the source."""
  config = default_config()
  config.name = "Predicted labels"
  config.seed = first.seed
  config.data.data_dir = first.data.data_dir
  config.data.target = first.data.target
  images = {field: value for field, value in first.data.target.items() if field in config.data.source}
  config.data.source.update(images | {"num_examples": 0})
  config.model = first.model
  config.update_from_flattened_dict(fields)
  return config


def train(config: ConfigDict, workdir: pathlib.Path, second: dict[str, Any]) -> dict[str, Any]:
  """Trains all stages as published, each in a folder of its own.

  Args:
    config: of the first stage.
    workdir: the run's folder.
    second: fields of the second stage's config.

  Returns:
    The metrics of SOSELETO's second stage; "first_", "unweighted_" and "joint_" accuracies are of the first, and of
    plain and of joint training as the second.
  """
  task = runs.task_of(config)
  first = train_and_evaluate(config, workdir / "first", task)
  of_second = second_config(config, second)
  rest = runs.task_of(of_second)
  label = predict(config, task, first.state, rest.source["x"])
  return _train_second(of_second, workdir, rest, label, first)


def train_on_spread(config: ConfigDict, workdir: pathlib.Path, second: dict[str, Any]) -> dict[str, Any]:
  """Trains all stages at their best; as `train`, with "own_wrong_fraction" of the first network's own labels too."""
  task = runs.task_of(config)
  first = train_and_evaluate(config, workdir / "first", task)
  probabilities, features = look(config, task, first.state, task.source["x"])
  label = np.argmax(neighbours.spread(features, probabilities), axis=1).astype(np.int32)
  of_second = config.copy_and_resolve_references()
  of_second.init_from = str(workdir / "first")
  of_second.update_from_flattened_dict(second)
  own = np.mean(np.argmax(probabilities, axis=1) != task.source["label"])
  return _train_second(of_second, workdir, task, label, first) | {"own_wrong_fraction": float(own)}


def _train_second(
  config: ConfigDict, workdir: pathlib.Path, task: Task, label: np.ndarray, first: Result
) -> dict[str, Any]:
  labelled = dataclasses.replace(task, source=task.source | {"label": label, "true_label": task.source["label"]})
  stages = {"first": first}
  for method, stage in (("soseleto", "soseleto"), ("source_only", "unweighted"), ("joint", "joint")):
    of_method = config.copy_and_resolve_references()
    of_method.method = method
    stages[stage] = train_and_evaluate(of_method, workdir / method, labelled)
  values = runs.recorded_metrics(stages.pop("soseleto"), labelled.source)
  for stage, result in stages.items():
    accuracies = {name: result.summary.get(name) for name in ("test_accuracy", "validation_accuracy")}
    values |= {f"{stage}_{name}": accuracy for name, accuracy in accuracies.items() if accuracy is not None}
  return values


def look(config: ConfigDict, task: Task, state: TrainState, x: Any) -> tuple[np.ndarray, np.ndarray]:
  """Returns what a network with one classifier makes of images: probabilities `[N, K]`, and features `[N, F]`."""
  network = make_network(config.model.to_dict(), task.num_target_classes, seed=config.seed)

  @jax.jit
  def of_images(params, model_state, images):
    logits, _ = network.apply(params, model_state, images)
    return jax.nn.softmax(logits), network.features(params, model_state, images)[0]

  parts = [of_images(state.params, state.model_state, task.target_normalization.apply(p)) for p in lazy.chunks(x)]
  probabilities, features = (np.concatenate(part) for part in zip(*parts, strict=True))
  return probabilities, features


def predict(config: ConfigDict, task: Task, state: TrainState, x: Any) -> np.ndarray:
  """Returns the target classes, int32 `[N]`, that a network trained on a task gives images like the target's."""
  each = {"source": task.num_source_classes, "target": task.num_target_classes}
  classes, head = (task.num_target_classes, None) if task.shared_classes else (each, "target")
  logits = jax.jit(predict_fn(make_network(config.model.to_dict(), classes, seed=config.seed), head=head))
  parts = [logits(state.params, state.model_state, task.target_normalization.apply(part)) for part in lazy.chunks(x)]
  return np.concatenate([np.argmax(part, axis=-1) for part in parts]).astype(np.int32)


def render(protocol: str, records: Sequence[runs.Record], folder: pathlib.Path) -> None:
  """Writes unlabelled_PROTOCOL.md."""

  def of(run, metric, scale=1):
    found = [record["metrics"] for record in records if record["method"] == run]
    return [scale * metrics[metric] for metrics in found if metric in metrics]

  accuracies = [
    [title, *tables.against(of(run, metric, 100), published)]
    for run, lines in _ROWS.items()
    for metric, (title, published) in lines.items()
  ]
  columns = ("soseleto", "spread")
  own = ("wrong_fraction", "own_wrong_fraction")  # as published the second stage has the first network's own
  found = [
    [title, *(tables.mean_sd(of(run, metric, scale), digits) for run, metric in zip(columns, metrics, strict=True))]
    for title, metrics, scale, digits in (
      ("unlabelled images", ["num_source"] * 2, 1, 0),
      ("wrong among the first network's own labels, %", own, 100, 1),
      ("wrong among the labels of the second stage, %", ["wrong_fraction"] * 2, 100, 1),
      ("area under the ROC curve of 1 - α as detector of these", ["auc"] * 2, 1, 3),
    )
  ]

  def gain(run, metric):
    pairs = zip(of(run, "test_accuracy", 100), of(run, metric, 100), strict=True)
    return tables.interval([ours - theirs for ours, theirs in pairs])

  gains = [
    [title, *(gain(run, metric) for run in columns)]
    for title, metric in (
      ("the first network", "first_test_accuracy"),
      ("plain training on the same labels", "unweighted_test_accuracy"),
      ("plain training on these and the 25 labelled images", "joint_test_accuracy"),
    )
  ]
  tables.write(
    folder / f"unlabelled_{protocol}.md",
    (
      "Test accuracy in % on MNIST 5-9 with 25 labelled images, last epoch: mean ± sd over seeds (how many). "
      "Of the second stage the paper says above 92",
      tables.markdown(["", "ours", "published", "difference"], accuracies),
    ),
    ("The second stage's source", tables.markdown(["", "as published", "at its best"], found)),
    (
      "SOSELETO's second stage minus what follows, in points, draw by draw: mean with its 95 % interval by Student's t "
      "(how many)",
      tables.markdown(["", "as published", "at its best"], gains),
    ),
    records=records,
  )


EXPERIMENT = runs.Experiment("unlabelled", make_runs, render, seeds=tuple(range(10)))

if __name__ == "__main__":
  runs.main(EXPERIMENT)
