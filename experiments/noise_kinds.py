"""Wrong labels of every kind: `python -m experiments.noise_kinds --seeds=0,1,2,3,4,5,6,7,8,9`.

Nobody knows how the labels of his data went wrong: at random, between classes that look alike, as a weak annotator or a
model trained on little sees things, or as people do. Here every method meets each of them, on handwritten digits and on
CIFAR-10, with the same network, source, wrong labels, clean target and epochs. `small` has the digits, in seconds a
run, and CIFAR-10 as configs/cifar_noise.py:small; `full` has CIFAR-10 at full size alone. The network's labels differ
by a few from one kind of machine to another: there all methods of a seed have to be run on one.

Of every method that tells wrong labels from right ones stands how well: for SOSELETO by 1 - α, for confident learning
by cleanlab's label quality score, from networks trained on the same source.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from configs import cifar10n, cifar_noise, digits_noise
from experiments import runs, table1, tables
from experiments.tables import Method
from experiments.unlabelled import predict
from soseleto_jax.config import default_config
from soseleto_jax.data.task import Task
from soseleto_jax.train import train_and_evaluate

BEST = "soseleto"
ALONE = "target_only"  # never meets the labels of the source: made once, and stands in every column

# Condition -> the column's name. "labels" are noise kinds of the configs, with their arguments; columns of CIFAR-10N;
# or "network", the labels that a network trained on the target alone gives.
COLUMNS = {
  "digits": {
    "kind=symmetric,noise=0.3": "symmetric 30 %",
    "kind=asymmetric,noise=0.4": "asymmetric 40 %",
    "kind=instance,noise=1,images=8": "annotator, 8 images",
    "kind=instance,noise=1,images=32": "annotator, 32 images",
    "network": "the target's network",
  },
  "cifar10": {
    "kind=symmetric,noise=0.3": "symmetric 30 %",
    "kind=asymmetric,noise=0.4": "asymmetric 40 %",
    "kind=instance,noise=0.3,images=1000": "annotator, 30 %",
    "kind=instance,noise=0.5,images=1000": "annotator, 50 %",
    "worse_label": "people, worst",
    "aggre_label": "people, majority",
    "network": "the target's network",
  },
}
_TITLES = {"digits": "Handwritten digits", "cifar10": "CIFAR-10"}

# How often the runs of a set are repeated, or of a column where few labels are wrong and differences are small; and the
# folds of confident learning.
_SEEDS = {"digits": 10, "cifar10": 6, "aggre_label": 10}
_FOLDS = {"digits": {"num_folds": 3}, "cifar10": {"num_folds": 3, "fold_epochs": 9}}


def make_runs(protocol: str, seeds: Sequence[int]) -> list[runs.Run]:
  """Returns the runs of all methods, set by set and seed by seed, as far as `_SEEDS` allows."""
  return [
    dataclasses.replace(method, settings=_settings(name, data, labels)).run(
      name, {"data": data, "labels": labels}, config_of(data, labels, name, protocol, seed)
    )
    for data in (("cifar10",) if protocol == "full" else COLUMNS)
    for seed in seeds
    for labels in COLUMNS[data]
    if seed < _SEEDS.get(labels, _SEEDS[data])
    for name, method in METHODS.items()
    if name != ALONE or labels == next(iter(COLUMNS[data]))
  ]


def _settings(name, data, labels):
  folds = _FOLDS[data] if name == "confident_learning" else {}
  return folds | {"labels_of_network": True} if labels == "network" else folds


def config_of(data: str, labels: str, name: str, protocol: str, seed: int) -> ConfigDict:
  """Returns the config of a method on the labels of a column, with the target batches and rates of that method.

  Args:
    data: "digits" or "cifar10".
    labels: of `COLUMNS[data]`, or other arguments of the same form.
    name: of `METHODS`, or of those of Table 1.
    protocol: of runs.PROTOCOLS.
    seed: the experiment's.
  """
  arguments, module = [labels], digits_noise if data == "digits" else cifar_noise
  if labels == "network":
    arguments = []
  elif labels.endswith("_label"):
    arguments, module = [f"labels={labels}"], cifar10n
  if name == "soseleto_paper":
    arguments.append("paper")
  elif name != BEST and (data == "cifar10" or name == "soseleto_symmetric"):  # as in Table 1
    arguments.append("symmetric")
  if data == "cifar10":
    arguments += ["joint"] * (name == "soseleto_symmetric") + ["small"] * (protocol == "small")
  config = module.get_config(",".join(arguments))
  if labels == "network":
    config.data.source.update(noise="none", noise_rate=0.0)
  config.seed = seed
  if not name.startswith("soseleto"):
    table1.without_alpha(config, name)
  return config


def train(
  config: ConfigDict, workdir: pathlib.Path, *, labels_of_network: bool = False, **folds: Any
) -> dict[str, Any]:
  """Trains one method; by confident learning where `folds` are given.

  Args:
    config: of the method.
    workdir: the run's folder.
    labels_of_network: the source has the labels that a network trained on the target alone gives, with the target's
      batches, for as many steps.
    **folds: of `table1.train_confident_learning`.
  """
  task = runs.task_of(config)
  if labels_of_network:
    name = f"labels-{config.data.target.dataset}-seed={config.seed}"  # the same for every method
    task = _labelled_by_network(config, workdir.parent / name, task)
  if folds:
    return table1.train_confident_learning(config, workdir, task, **folds)
  return runs.recorded_metrics(train_and_evaluate(config, workdir, task), task.source)


def _labelled_by_network(config: ConfigDict, workdir: pathlib.Path, task: Task) -> Task:
  config = config.copy_and_resolve_references()
  config.update(method="target_only", target_batch_size=100, target_balanced=True, target_weight=1.0)
  config.alpha = default_config().alpha
  config.eval_every_epochs = float(config.num_epochs)
  state = train_and_evaluate(config, workdir, task).state
  source = task.source | {"label": predict(config, task, state, task.source["x"]), "true_label": task.source["label"]}
  return dataclasses.replace(task, source=source)


METHODS = {
  "source_only": Method("every weight 1", train=train),
  ALONE: Method("clean target alone", train=train),
  "joint": Method("source and target jointly", train=train),
  "noise_layer": Method("noise layer (Sukhbaatar et al. 2014)", train=train),
  "confident_learning": Method("confident learning (Northcutt et al. 2021)", method="joint", train=train),
  "soseleto_paper": Method("SOSELETO, published rule", method="soseleto", train=train),
  "soseleto_symmetric": Method("SOSELETO, for symmetric noise", method="soseleto", train=train),
  BEST: Method("SOSELETO", train=train),
}
SHORT = ("source_only", ALONE, "joint", "confident_learning", BEST)
DETECTORS = ("confident_learning", "soseleto_paper", "soseleto_symmetric", BEST)


def in_every_column(records: Sequence[runs.Record]) -> list[runs.Record]:
  """Returns the records, with those of ALONE once more in each other column of their set."""
  return [
    record | {"conditions": record["conditions"] | {"labels": labels}}
    for record in records
    for labels in _columns_of(record)
  ]


def _columns_of(record):
  conditions = record["conditions"]
  return COLUMNS[conditions["data"]] if record["method"] == ALONE else [conditions["labels"]]


def differences(records: Sequence[runs.Record], columns: Sequence[Mapping[str, Any]]) -> list[list[str]]:
  """Returns a row for each other method: SOSELETO's accuracy less its, in points, on the same data."""

  def cell(name, at):
    ours, theirs = (tables.by_seed(records, method, at, "test_accuracy") for method in (BEST, name))
    return tables.interval(list((100 * (ours - theirs)).dropna()))

  return [[method.title, *(cell(name, at) for at in columns)] for name, method in METHODS.items() if name != BEST]


def in_short(records: Sequence[runs.Record], columns: Sequence[Mapping[str, Any]]) -> list[list[str]]:
  """Returns a row for each of SHORT: the mean accuracy in %, and that of the area where it is a detector's."""

  def cell(name, at):
    accuracy, auc = (tables.by_seed(records, name, at, metric) for metric in ("test_accuracy", "auc"))
    if accuracy.empty:
      return tables.NOT_RUN
    return f"{100 * accuracy.mean():.1f}" + (f"/{auc.mean():.3f}" if name in DETECTORS else "")

  return [[METHODS[name].title, *(cell(name, at) for at in columns)] for name in SHORT]


def render(protocol: str, records: Sequence[runs.Record], folder: pathlib.Path) -> None:
  """Writes noise_kinds_PROTOCOL.md: of each set a short table, accuracies, areas and differences."""
  parts, shown = [], in_every_column(records)
  for data, columns in COLUMNS.items():
    if not any(record["conditions"]["data"] == data for record in records):
      continue
    at = [{"data": data, "labels": labels} for labels in columns]
    header = ["", *columns.values()]
    detectors = {name: METHODS[name] for name in DETECTORS}
    wrong = tables.rows({BEST: Method("wrong labels, %")}, shown, at, "wrong_fraction")
    parts += [
      (
        f"{_TITLES[data]}: test accuracy in %, and after a stroke the area under the ROC curve of 1 - α, or of "
        "cleanlab's score, as detector of wrong labels; means over seeds",
        tables.markdown(header, in_short(shown, at)),
      ),
      (
        f"{_TITLES[data]}: test accuracy in %, last epoch, mean ± sd over seeds (how many)",
        tables.markdown(header, tables.rows(METHODS, shown, at, "test_accuracy") + wrong),
      ),
      (
        f"{_TITLES[data]}: area under the ROC curve of 1 - α, or of cleanlab's score, as detector of wrong labels",
        tables.markdown(header, tables.rows(detectors, shown, at, "auc", scale=1, digits=3)),
      ),
      (
        f"{_TITLES[data]}: accuracy of SOSELETO minus the method's, in points, on the same data: mean with its 95 % "
        "interval by Student's t (how many)",
        tables.markdown(header, differences(shown, at)),
      ),
    ]
  tables.write(folder / f"noise_kinds_{protocol}.md", *parts, records=records)


EXPERIMENT = runs.Experiment("noise_kinds", make_runs, render, seeds=(0, 1, 2, 3, 4))

if __name__ == "__main__":
  runs.main(EXPERIMENT)
