"""The paper's Table 1, CIFAR-10 with wrong labels: `python -m experiments.table1 --protocol=small --seeds=0,1,2`.

Every method has the same network, source, flipped labels, clean target and epochs, and all but two the same learning
rates; what noise types trains in advance comes on top in one row and is within the epochs in another. See
configs/cifar_noise.py for both protocols. Accuracies are those of the last epoch on the 10,000 test images.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from configs import cifar_noise
from experiments import runs, tables
from experiments.confident_learning import confident_learning
from experiments.tables import Method
from soseleto_jax.data.task import Task

NOISE = (0.3, 0.4, 0.5)
LEVELS = [f"{noise:.0%}" for noise in NOISE]
CONDITIONS = tuple({"noise": noise} for noise in NOISE)
AUGMENTED = tuple({"noise": noise, "augment": True} for noise in NOISE)
_BEST = "soseleto_joint"
MAIN = ("source_only", "noise_layer", "noise_types", "noise_types_within", _BEST)
DEFAULT = "soseleto_default"
_DETECTORS = ("soseleto_paper", "soseleto", _BEST, DEFAULT, "confident_learning")
_MAIN_COLUMNS = {
  "test accuracy, %": ("test_accuracy", 100, 1),
  "AUC of 1 - α": ("auc", 1, 3),
  "mean α of right labels": ("alpha_right", 1, 2),
  "mean α of wrong labels": ("alpha_wrong", 1, 2),
  "wrong labels in the best half, %": ("best_half", 100, 1),
}


def train_confident_learning(
  config: ConfigDict, workdir: pathlib.Path, task: Task | None = None, **folds: Any
) -> dict[str, Any]:
  """Trains by `confident_learning`, in a run's folder, and returns what to record; None takes the config's data."""
  task = runs.task_of(config) if task is None else task
  pruned = confident_learning(config, workdir, task, **folds)
  return runs.recorded_metrics(pruned.result, task.source) | pruned.summary


METHODS = {
  "source_only": Method("source only", (65.57, 62.38, 57.36), tries=2),
  "noise_layer": Method("noise layer (Sukhbaatar et al. 2014)", (69.73, 66.66, 63.39)),
  "noise_types": Method("noise types, reconstruction of Xiao et al. (2015)", (69.81, 66.76, 63.0)),
  "noise_types_within": Method("noise types, all within 18 epochs", (69.81, 66.76, 63.0), "noise_types"),
  "soseleto_paper": Method("SOSELETO, published rule", (72.41, 69.98, 66.33), "soseleto"),
  "soseleto": Method("SOSELETO, for symmetric noise", (72.41, 69.98, 66.33)),
  _BEST: Method("SOSELETO, for symmetric noise, and target jointly", (72.41, 69.98, 66.33), "soseleto", tries=29),
  DEFAULT: Method("SOSELETO, for any kind of wrong label: the default", (72.41, 69.98, 66.33), "soseleto"),
  "target_only": Method("clean target only"),
  "finetune": Method("source, then fine-tuned on the target"),
  "joint": Method("source and target jointly", tries=2),
  "learning_to_reweight": Method("Learning to Reweight (Ren et al. 2018)", tries=3),
  "meta_weight_net": Method("Meta-Weight-Net (Shu et al. 2019)", options={"meta_learning_rate": 0.1}, tries=2),
  "confident_learning": Method(
    "confident learning (Northcutt et al. 2021)",
    method="joint",  # by which the network is trained again
    train=train_confident_learning,
    settings={"num_folds": 3, "fold_epochs": 9},
  ),
}

# In whose loss an image of the target counts as one of the source.
_ALIKE = ("joint", "noise_layer", "noise_types", "noise_types_within", "confident_learning")
_IN_ADVANCE = 7  # epochs that noise types trains its two networks for before those of the config


def make_runs(protocol: str, seeds: Sequence[int]) -> list[runs.Run]:
  """Returns the runs of all methods and noise rates, the lowest rate first, and then the same with augmentation."""
  return runs_on(cifar_noise.get_config, CONDITIONS + AUGMENTED, METHODS, protocol, seeds)


def runs_on(
  get_config: Callable[[str], ConfigDict],
  conditions: Sequence[Mapping[str, Any]],
  methods: Mapping[str, Method],
  protocol: str,
  seeds: Sequence[int],
) -> list[runs.Run]:
  """Returns the runs of methods on the data of a config.

  Args:
    get_config: of configs/cifar_noise.py, or of a file with its arguments `small`, `paper` and `joint`.
    conditions: each as more arguments of the file.
    methods: their keys name them.
    protocol: of runs.PROTOCOLS.
    seeds: for each of the conditions.
  """
  return [
    method.run(name, at, _config(get_config, at, name, protocol, seed))
    for at in conditions
    for seed in seeds
    for name, method in methods.items()
  ]


def _config(get_config, conditions, name, protocol, seed):
  arguments = [f"{field}={value}" for field, value in conditions.items()]
  switches = {
    "small": protocol == "small",
    "paper": name == "soseleto_paper",
    "symmetric": name not in ("soseleto_paper", DEFAULT),
    "joint": name == _BEST,
  }
  config = get_config(",".join(arguments + [switch for switch, on in switches.items() if on]))
  config.seed = seed
  if not name.startswith("soseleto"):
    without_alpha(config, name)
  return config


def without_alpha(config: ConfigDict, name: str) -> None:
  """Gives a config the target batches, weights, rates and epochs of a method other than SOSELETO, of `METHODS`."""
  if name != "source_only":  # whose config says nothing of a target
    config.update(target_batch_size=32, target_balanced=False)
  if name in _ALIKE:
    config.target_weight = config.target_batch_size / config.batch_size
  if name == "noise_types_within":
    config.num_epochs -= _IN_ADVANCE
    config.optimizer.drop_epochs = tuple(epoch - _IN_ADVANCE for epoch in config.optimizer.drop_epochs)
  if name == "learning_to_reweight":  # whose weights come from one target batch alone
    config.update(target_batch_size=100, target_balanced=True)
  if name in ("learning_to_reweight", "meta_weight_net"):  # which diverge at the others' rate
    config.optimizer.learning_rate = 0.005


def with_best_half(record: runs.Record) -> runs.Record:
  """Returns a record with the metric "best_half", the wrong fraction of the half of the source with the largest α."""
  curve = record["metrics"].get("retention")
  if curve is None:
    return record
  return record | {"metrics": record["metrics"] | {"best_half": curve[len(curve) // 2 - 1]}}


def render(protocol: str, records: Sequence[runs.Record], folder: pathlib.Path) -> None:
  """Writes table1_PROTOCOL.md; with a block of augmented runs, of the methods that have any."""
  parts = _as_published(records)
  augmented = {record["method"] for record in records if record["conditions"] in AUGMENTED}
  if augmented:
    parts += _augmented({name: method for name, method in METHODS.items() if name in augmented | {_BEST}}, records)
  tables.write(folder / f"table1_{protocol}.md", *parts, records=records, methods=METHODS)


def _as_published(records):
  main = {name: METHODS[name] for name in MAIN}
  return [
    (
      "Test accuracy in %, last epoch: mean ± sd over seeds (how many)",
      tables.beside(METHODS, records, CONDITIONS, LEVELS),
    ),
    (
      "Test accuracy in % at the epoch of the best validation accuracy",
      _accuracies(METHODS, records, CONDITIONS, "test_accuracy_at_best"),
    ),
    tables.paired_with_caption(METHODS, _BEST, records, CONDITIONS, LEVELS),
    (
      "Area under the ROC curve of 1 - α, or of cleanlab's label quality, as detector of wrong labels",
      _areas(METHODS, records, CONDITIONS),
    ),
    (
      "30 % wrong labels, last epoch: mean ± sd over seeds (how many)",
      tables.metrics_table(main, [with_best_half(record) for record in records], CONDITIONS[0], _MAIN_COLUMNS),
    ),
  ]


def _augmented(methods, records):
  return [
    (
      "With flips and crops of source and target: test accuracy in %, last epoch, mean ± sd over seeds (how many)",
      _accuracies(methods, records, AUGMENTED, "test_accuracy"),
    ),
    tables.paired_with_caption(methods, _BEST, records, AUGMENTED, LEVELS, "with flips and crops"),
    ("With flips and crops: area under the ROC curve, likewise", _areas(methods, records, AUGMENTED)),
  ]


def _accuracies(methods, records, conditions, metric):
  return tables.markdown(["", *LEVELS], tables.rows(methods, records, conditions, metric))


def _areas(methods, records, conditions):
  detectors = {name: method for name, method in methods.items() if name in _DETECTORS}
  return tables.markdown(["", *LEVELS], tables.rows(detectors, records, conditions, "auc", scale=1, digits=3))


EXPERIMENT = runs.Experiment("table1", make_runs, render)

if __name__ == "__main__":
  runs.main(EXPERIMENT)
