"""The paper's Figures 3 to 5: which images of SVHN 0-9 help MNIST 5-9, `python -m experiments.svhn_instances`.

SOSELETO on configs/svhn_mnist_released.py:source_classes=0-9 with 25 labelled target images; `small` draws 10,000 SVHN
images and takes four epochs of them. Figure 3 is the share of each digit's images with α > 0.8, Figures 4 and 5 are the
images of the largest and smallest α.
"""

import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from configs import svhn_mnist_released
from experiments import runs, tables
from soseleto_jax.data import tfds
from soseleto_jax.report import figure_style, figures
from soseleto_jax.train import train_and_evaluate

PUBLISHED = 90.3
SVHN_IMAGES = 73_257  # of the whole training split, which a copy may have in part
HIGH = 0.8
PER_CLASS = 10  # images on a sheet

_LOGGER = logging.getLogger("soseleto_jax.experiments")


def make_runs(protocol: str, seeds: Sequence[int]) -> list[runs.Run]:
  """Returns a run for each seed."""
  return [runs.Run("soseleto", {}, _config(protocol, seed), train) for seed in seeds]


def _config(protocol, seed):
  config = svhn_mnist_released.get_config("source_classes=0-9" + ",small" * (protocol == "small"))
  config.seed = seed
  return config


def train(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
  """Trains, and returns beside the usual metrics what the weights say of each class, in the order of the classes.

  "high_share" is the share of its images with α > `HIGH`; "highest" and "lowest" hold "row", the places of images in
  the data set's split, and "alpha".
  """
  task = runs.task_of(config)
  result = train_and_evaluate(config, workdir, task)
  return runs.recorded_metrics(result, task.source) | instances(
    result.alpha, task.source["label"], task.source["row"], task.source_class_names
  )


def instances(alpha: np.ndarray, label: np.ndarray, row: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
  """Returns what `train` adds, for weights, labels and rows `[N]`. Among equal weights the draw is random."""
  shuffled = np.random.default_rng(0).permutation(len(alpha))
  order = shuffled[np.argsort(alpha[shuffled], kind="stable")]
  by_class = [order[label[order] == c] for c in range(len(class_names))]

  def listed(chosen):
    return {"row": row[chosen].tolist(), "alpha": np.round(alpha[chosen].astype(float), 4).tolist()}

  return {
    "class_names": list(class_names),
    "high_share": [float(np.mean(alpha[of_class] > HIGH)) for of_class in by_class],
    "highest": [listed(of_class[::-1][:PER_CLASS]) for of_class in by_class],
    "lowest": [listed(of_class[:PER_CLASS]) for of_class in by_class],
  }


def render(protocol: str, records: Sequence[runs.Record], folder: pathlib.Path) -> None:
  """Writes svhn_instances_PROTOCOL.md, and PNGs: _figure3, and where SVHN is at hand _figure4 and _figure5."""
  used = tables.source_sizes(records)
  accuracies = []
  for title, metric in (("last epoch", "test_accuracy"), ("best validation accuracy", "test_accuracy_at_best")):
    ours = [100 * record["metrics"][metric] for record in records]
    accuracies.append([title, used, *tables.against(ours, PUBLISHED)])
  header = ["at", f"SVHN images, of {SVHN_IMAGES:,}", "ours", "published", "difference"]
  caption = "Test accuracy in % on MNIST 5-9 with 25 labelled images: mean ± sd over seeds (how many)"
  parts = [(caption, tables.markdown(header, accuracies))]
  if records:
    names, shares = records[0]["metrics"]["class_names"], np.array([r["metrics"]["high_share"] for r in records])
    also_target = np.isin(names, [str(digit) for digit in records[0]["config"]["data"]["target"]["classes"]])
    columns = [*zip(names, shares.T, strict=True)]
    columns += [("5-9, mean", shares[:, also_target].mean(axis=1)), ("0-4, mean", shares[:, ~also_target].mean(axis=1))]
    rows = [[name, tables.mean_sd([100 * share for share in of_seeds])] for name, of_seeds in columns]
    parts.append((f"Share of each digit's images with α > {HIGH}, in %", tables.markdown(["digit", "share"], rows)))
    figure_style.save(draw_shares(names, shares, also_target), _path(folder, protocol, 3))
    _draw_sheets(records[0], protocol, folder)
  tables.write(folder / f"svhn_instances_{protocol}.md", *parts, records=records)


def draw_shares(names: Sequence[str], shares: np.ndarray, also_target: np.ndarray) -> Figure:
  """Draws Figure 3.

  Args:
    names: of K classes.
    shares: `[S, K]`, of S seeds.
    also_target: bool `[K]`, whether the target has the class too.
  """
  figure = figure_style.new_figure(5.5, 3.3)
  axes = figure.add_subplot()
  places = np.arange(len(names))
  spread = shares.std(axis=0, ddof=1) if len(shares) > 1 else None
  looks = ((also_target, figure_style.BLUE, "also a target class"), (~also_target, figure_style.AMBER, "other"))
  for chosen, color, label in looks:
    axes.bar(
      places[chosen],
      shares.mean(axis=0)[chosen],
      yerr=None if spread is None else spread[chosen],
      color=color,
      ecolor=figure_style.INK,
      capsize=3,
      label=label,
    )
  title = f"Images of large weight, {len(shares)} seed{'s' * (len(shares) > 1)}"
  figure_style.style_axes(axes, title, "digit of the SVHN image", f"share with α > {HIGH}")
  axes.set_xticks(places, names)
  axes.grid(visible=False, axis="x")
  axes.yaxis.set_major_formatter(figure_style.percent)
  axes.set_ylim(0, 1.25 * max(shares.max(), 1e-3))  # room for the legend
  axes.legend(loc="upper center", ncols=2, fontsize=9, frameon=False)
  return figure


def _draw_sheets(record, protocol, folder):
  """Draws Figures 4 and 5 from the data set, or says why not."""
  source = record["config"]["data"]["source"]
  ends = {4: record["metrics"]["highest"], 5: record["metrics"]["lowest"]}
  try:
    data_dir = record["config"]["data"]["data_dir"]
    split = tfds.load(source["dataset"], source["split"], data_dir, most_bytes=0, prepare=False)
  except (RuntimeError, ValueError) as error:
    _LOGGER.warning("Figures 4 and 5 are not drawn: %s", error)
    return
  for number, by_class in ends.items():
    rows = np.concatenate([of_class["row"] for of_class in by_class])
    digits = np.repeat(source["classes"], [len(of_class["row"]) for of_class in by_class])
    if rows.max() >= len(split["label"]) or np.any(split["label"][rows] != digits):
      _LOGGER.warning("Figures 4 and 5 are not drawn: the runs had another copy of %s", source["dataset"])
      return
    weights = np.concatenate([of_class["alpha"] for of_class in by_class])
    captions = [f"{digit}: α {weight:.3f}" for digit, weight in zip(digits, weights, strict=True)]
    figure_style.save(figures.example_sheet(split["x"][rows], captions, PER_CLASS), _path(folder, protocol, number))


def _path(folder, protocol, number):
  return folder / f"svhn_instances_{protocol}_figure{number}.png"


EXPERIMENT = runs.Experiment("svhn_instances", make_runs, render)

if __name__ == "__main__":
  runs.main(EXPERIMENT)
