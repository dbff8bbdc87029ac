"""One's own data, by the defaults, beside cleanlab's: `python -m experiments.own_data --seeds=0,1,2`.

Four sets, as someone may bring them: folders of photographs of which 28 % are in the wrong class (of CIFAR-10), with
120 checked ones; embeddings (digits by their 32 principal components, 30 % wrong) with 100; digits as images, 30 %
wrong, with 100; and CIFAR-10N, where people gave the labels, with 1,000. SOSELETO has the settings that
`soseleto_jax.choices` finds for each; cleanlab has a logistic regression on the vectors, of images on 64 principal
components, cross-validated on the source, and then trained on what is left of it and on the checked examples.

Of each stands how well its list finds the wrong labels: the area under the ROC curve, how many of its worst 10, 32 and
100 are wrong, and the accuracy of the classifier after it. Seconds are those of the processor, on all cores.
"""

import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs import cifar10n, digits_noise
from experiments import runs, tables
from experiments.tables import Method
from soseleto_jax import choices
from soseleto_jax.choices import Facts
from soseleto_jax.config import default_config
from soseleto_jax.data import draws, own, tfds
from soseleto_jax.data.get_task import data_config
from soseleto_jax.data.task import Task, from_arrays
from soseleto_jax.train import train_and_evaluate

_CIFAR_CLASSES = {0: "airplane", 1: "car", 3: "cat", 8: "ship"}
_WORST = (10, 32, 100)
_COMPONENTS = 64

# Of each set: its name in the table, and what its settings follow from.
SETS = {
  "photos": ("photographs, 28 % wrong", Facts(800, (30,) * 4, (32, 32, 3))),
  "embeddings": ("embeddings, 30 % wrong", Facts(1200, (10,) * 10, (32,))),
  "digits": ("digits, 30 % wrong", Facts(1137, (10,) * 10, (8, 8, 1), held_out=True)),
  "cifar10n": ("CIFAR-10N, 40 % wrong", Facts(10_000, (100,) * 10, (32, 32, 3), held_out=True)),
}

# Lines of Python from arrays or folders to the list and a classifier, as in docs/your_data.md.
_LINES = {"soseleto": 3, "clean_learning": 6, "datalab": 9}


def make_runs(protocol: str, seeds: Sequence[int]) -> list[runs.Run]:
  """Returns the runs of all methods, set by set and seed by seed; there is one size of each set."""
  return [
    dataclasses.replace(method, settings={**method.settings, "data": data}).run(
      name, {"data": data}, _config(name, data, seed)
    )
    for data in SETS
    for seed in seeds
    for name, method in METHODS.items()
  ]


def _config(name, data, seed) -> ConfigDict:
  config = default_config()
  config.seed = seed
  if name in ("soseleto", "source_only"):
    choices.choose(config, SETS[data][1])
  return config


def make_task(data: str, seed: int, folder: pathlib.Path) -> Task:
  """Returns one of the four sets; the photographs are written into a folder first."""
  if data == "photos":
    return _photos(seed, folder)
  if data == "embeddings":
    return _embeddings(seed)
  config = digits_noise.get_config() if data == "digits" else cifar10n.get_config("small")
  config.seed = seed
  return runs.task_of(config)


def _photos(seed: int, folder: pathlib.Path) -> Task:
  from PIL import Image

  stored = tfds.load("cifar10", "train")
  right = {}
  for number, name in _CIFAR_CLASSES.items():
    rows = np.flatnonzero(stored["label"] == number)
    chosen = rows[draws.permutation(len(rows), seed, "own_data", name)[:300]]
    wrong = draws.uniform(300, seed, "own_data", name, "wrong") < 0.28
    others = [other for other in _CIFAR_CLASSES.values() if other != name]
    given = draws.integers(300, len(others), seed, "own_data", name, "given")
    for place, row in enumerate(chosen):
      part = f"web/{others[given[place]] if wrong[place] else name}" if place < 200 else f"clean/train/{name}"
      path = folder / (part if place < 230 else f"clean/test/{name}") / f"{name}_{place:03}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(stored["x"][row]).save(path)
      right[str(path)] = name
  task = own.make_task(str(folder / "web"), str(folder / "clean"), None, None, data_config(), seed)
  label = [task.source_class_names.index(right[file]) for file in task.source["file"].tolist()]
  task.source["true_label"] = np.array(label, np.int32)
  return task


def _embeddings(seed: int) -> Task:
  from sklearn import datasets, decomposition

  x, label = datasets.load_digits(return_X_y=True)
  order = draws.permutation(len(x), seed, "own_data", "embeddings")
  x, label = decomposition.PCA(32, random_state=0).fit_transform(x)[order], label[order]
  clean = np.concatenate([np.flatnonzero(label == digit)[:10] for digit in range(10)])
  rest = np.delete(np.arange(len(x)), clean)
  source, test = rest[:1200], rest[1200:]
  wrong = draws.uniform(1200, seed, "own_data", "wrong") < 0.3
  given = (label[source] + wrong * (1 + draws.integers(1200, 9, seed, "own_data", "given"))) % 10
  pairs = [part for rows in (clean, test) for part in (x[rows], label[rows])]
  return from_arrays(x[source], given, *pairs, true_label=label[source])


def train(config: ConfigDict, workdir: pathlib.Path, *, rank: str, data: str) -> dict[str, Any]:
  """Ranks the source of a set by a method, and returns what to record.

  Args:
    config: of the run, with its seed.
    workdir: the run's folder.
    rank: of `_RANKS`.
    data: of `SETS`.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  task = make_task(data, config.seed, workdir / "photos")
  started = time.process_time()
  order, accuracy = _RANKS[rank](config, workdir / "run", task)
  metrics = {"test_accuracy": float(accuracy), "seconds": round(time.process_time() - started, 1)}
  return metrics if order is None else metrics | found(task, order)


def found(task: Task, order: np.ndarray) -> dict[str, float]:
  """Returns how well an order of the source, most suspect first, finds the wrong labels."""
  from sklearn import metrics

  wrong = (task.source["label"] != task.source["true_label"])[order]
  worst = {f"worst_{count}": int(wrong[:count].sum()) for count in _WORST}
  return {"auc": float(metrics.roc_auc_score(wrong, -np.arange(len(wrong)))), **worst}


def by_list(config: ConfigDict, workdir: pathlib.Path, task: Task) -> tuple[np.ndarray, float]:
  """Trains by `config.method`; returns the order of its list, and the test accuracy."""
  result = train_and_evaluate(config, workdir, task)
  return result.suspects()["index"].to_numpy(), result.summary["test_accuracy"]


def by_network(config: ConfigDict, workdir: pathlib.Path, task: Task) -> tuple[None, float]:
  """Trains by a method that has no list."""
  return None, train_and_evaluate(config, workdir, task).summary["test_accuracy"]


def by_clean_learning(config: ConfigDict, workdir: pathlib.Path, task: Task) -> tuple[np.ndarray, float]:
  """cleanlab's CleanLearning."""
  from cleanlab.classification import CleanLearning

  source, target, test = _vectors(task)
  issues = CleanLearning(_classifier(), seed=config.seed).find_label_issues(source, task.source["label"])
  scores, is_wrong = issues["label_quality"].to_numpy(), issues["is_label_issue"].to_numpy()
  return np.argsort(scores, kind="stable"), _after_cleaning(task, source, target, test, is_wrong)


def by_datalab(config: ConfigDict, workdir: pathlib.Path, task: Task) -> tuple[np.ndarray, float]:
  """cleanlab's Datalab, by probabilities from the cross-validation and by neighbours."""
  from cleanlab import Datalab
  from sklearn import model_selection

  source, target, test = _vectors(task)
  label = task.source["label"]
  folds = model_selection.StratifiedKFold(5, shuffle=True, random_state=config.seed)
  probabilities = model_selection.cross_val_predict(_classifier(), source, label, cv=folds, method="predict_proba")
  lab = Datalab({"label": label.tolist()}, label_name="label", verbosity=0)
  lab.find_issues(pred_probs=probabilities, features=source, issue_types={"label": {}})
  issues = lab.get_issues("label")
  scores, is_wrong = issues["label_score"].to_numpy(), issues["is_label_issue"].to_numpy()
  return np.argsort(scores, kind="stable"), _after_cleaning(task, source, target, test, is_wrong)


def _classifier():
  from sklearn import linear_model, pipeline, preprocessing

  return pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression(max_iter=1000))


def _vectors(task: Task) -> list[np.ndarray]:
  """Returns source, target and test as vectors; of images the principal components."""
  from sklearn import decomposition

  parts = [part["x"] for part in (task.source, task.target, task.test) if part is not None]
  if parts[0].ndim == 2:
    return parts
  parts = [part.reshape(len(part), -1) / np.float32(255) for part in parts]
  components = decomposition.PCA(min(_COMPONENTS, parts[0].shape[1]), random_state=0).fit(parts[0])
  return [components.transform(part) for part in parts]


def _after_cleaning(task, source, target, test, is_wrong):
  x, label = np.concatenate([source[~is_wrong], target]), task.source["label"][~is_wrong]
  model = _classifier().fit(x, np.concatenate([label, task.target["label"]]))
  return np.mean(model.predict(test) == task.test["label"])


METHODS = {
  "soseleto": Method("SOSELETO, by default", train=train, settings={"rank": "list"}),
  "clean_learning": Method("cleanlab, CleanLearning", method="joint", train=train, settings={"rank": "clean_learning"}),
  "datalab": Method("cleanlab, Datalab", method="joint", train=train, settings={"rank": "datalab"}),
  "source_only": Method("every weight 1, the same network", train=train, settings={"rank": "network"}),
}
_RANKS = {"list": by_list, "network": by_network, "clean_learning": by_clean_learning, "datalab": by_datalab}


def render(protocol: str, records: Sequence[runs.Record], folder: pathlib.Path) -> None:
  """Writes own_data_PROTOCOL.md: a table for each set."""
  columns = {"AUC": ("auc", 1, 3)}
  columns |= {f"wrong among the worst {count}": (f"worst_{count}", 1, 1) for count in _WORST}
  columns |= {"test accuracy, %": ("test_accuracy", 100, 1), "seconds": ("seconds", 1, 1)}
  parts = []
  for data, (title, facts) in SETS.items():
    if any(record["conditions"]["data"] == data for record in records):
      about = f"{title}: {facts.num_source} source examples, {facts.num_target} clean; mean ± sd over seeds (how many)"
      parts.append((about, tables.metrics_table(METHODS, records, {"data": data}, columns)))
  lines = [[METHODS[name].title, str(count)] for name, count in _LINES.items()]
  parts.append(("Lines of Python, from arrays to the list and a classifier", tables.markdown(["", "lines"], lines)))
  tables.write(folder / f"own_data_{protocol}.md", *parts, records=records)


EXPERIMENT = runs.Experiment("own_data", make_runs, render)

if __name__ == "__main__":
  runs.main(EXPERIMENT)
