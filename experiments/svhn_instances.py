"""The paper's Figures 3 to 5: which images of SVHN 0-9 help MNIST 5-9, `python -m experiments.svhn_instances`.

SOSELETO with 25 labelled target images, by the settings of Table 2 (`experiments.table2`), but from all ten digits of
SVHN: by the published rule and at its best, without and with augmentation of the target, beside fine-tuning and joint
training from the same pretraining. Figure 3 is the share of each digit's images with α > 0.8, Figures 4 and 5 are the
images of the largest and smallest α; all three count the images that were drawn while α was learned (one in nine, or
with the target augmented all), and are of the runs at their best, target augmented.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from experiments import runs, table2, tables, transfer
from experiments.tables import Method
from soseleto_jax.data import tfds
from soseleto_jax.report import figure_style, figures

PUBLISHED = 90.3
SVHN_IMAGES = 73_257  # of the whole training split, which a copy may have in part
HIGH = 0.8
PER_CLASS = 10  # images on a sheet
CONDITIONS = ({"augmented": False}, {"augmented": True})
DRAWN = (table2.BEST, CONDITIONS[1])  # of which the figures are

_NAMES = ("target as it is", "target augmented")
_LOGGER = logging.getLogger("soseleto_jax.experiments")


def make_runs(protocol: str, seeds: Sequence[int]) -> list[runs.Run]:
  """Returns the runs of each seed, which have one pretraining."""
  del protocol  # there is one
  return [
    method.run(name, at, table2.config_of(name, num_target=25, seed=seed, source_classes="0-9", **at))
    for seed in seeds
    for at in reversed(CONDITIONS)
    for name, method in METHODS.items()
  ]


def train(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
  """Trains, and returns beside the usual metrics what the weights say of each class, in the order of the classes.

  Of the images whose α left its start: "num_seen" of each class, their "mean_alpha", and "high_share", the share with
  α > `HIGH`. "highest" and "lowest" hold "row", the places of images in the data set's split, and "alpha".
  """
  task = runs.task_of(config)
  result = transfer.train_from(config, workdir, task)
  source = task.source
  found = instances(result.alpha, source["label"], source["row"], task.source_class_names, config.alpha.init)
  return runs.recorded_metrics(result, source) | found


WEIGHTED = {
  name: Method(table2.METHODS[name].title, (PUBLISHED, PUBLISHED), "soseleto", train=train)
  for name in ("soseleto", table2.BEST)
}
METHODS = {name: dataclasses.replace(table2.METHODS[name], published=()) for name in ("finetune", "joint")} | WEIGHTED


def instances(
  alpha: np.ndarray, label: np.ndarray, row: np.ndarray, class_names: Sequence[str], init: float
) -> dict[str, Any]:
  """Returns what `train` adds, for weights, labels and rows `[N]`. Among equal weights the draw is random.

  Args:
    alpha: weights.
    label: of K classes.
    row: places in the split.
    class_names: K.
    init: the weights' start; images that still have it were not drawn, and do not count.
  """
  shuffled = np.random.default_rng(0).permutation(len(alpha))
  shuffled = shuffled[alpha[shuffled] != np.float32(init)]
  order = shuffled[np.argsort(alpha[shuffled], kind="stable")]
  by_class = [order[label[order] == c] for c in range(len(class_names))]

  def listed(chosen):
    return {"row": row[chosen].tolist(), "alpha": np.round(alpha[chosen].astype(float), 4).tolist()}

  return {
    "class_names": list(class_names),
    "num_seen": [len(of_class) for of_class in by_class],
    "mean_alpha": [float(np.mean(alpha[of_class])) for of_class in by_class],
    "high_share": [float(np.mean(alpha[of_class] > HIGH)) for of_class in by_class],
    "highest": [listed(of_class[::-1][:PER_CLASS]) for of_class in by_class],
    "lowest": [listed(of_class[:PER_CLASS]) for of_class in by_class],
  }


def render(protocol: str, records: Sequence[runs.Record], folder: pathlib.Path) -> None:
  """Writes svhn_instances_PROTOCOL.md, and PNGs: _figure3, and where SVHN is at hand _figure4 and _figure5."""
  caption = (
    "Test accuracy in % on MNIST 5-9 with 25 labelled images, last step: mean ± sd over draws (how many). "
    f"{tables.source_sizes(records)} SVHN images, of {SVHN_IMAGES:,}"
  )
  parts = [
    (caption, tables.beside(METHODS, records, CONDITIONS, _NAMES)),
    tables.paired_with_caption(METHODS, table2.BEST, records, CONDITIONS, _NAMES, by="draws"),
  ]
  weighted = [record for record in records if record["method"] in WEIGHTED]
  if weighted:
    for title, metric, scale, digits in (
      (f"Share of each digit's images with α > {HIGH}, in %, of those drawn", "high_share", 100, 1),
      ("Mean α of each digit's images that were drawn", "mean_alpha", 1, 3),
    ):
      parts.append((title, _by_digit(weighted, metric, scale, digits)))
  drawn = _of(records, *DRAWN)
  if drawn:
    shares = np.array([record["metrics"]["high_share"] for record in drawn])
    figure = draw_shares(drawn[0]["metrics"]["class_names"], shares, _also_target(drawn[0]))
    figure_style.save(figure, _path(folder, protocol, 3))
    _draw_sheets(drawn[0], protocol, folder)
  tables.write(folder / f"svhn_instances_{protocol}.md", *parts, records=records)


def _of(records, name, at):
  return [record for record in records if (record["method"], record["conditions"]) == (name, at)]


def _also_target(record):
  """Which of the source's classes, bool `[K]`, the target has too."""
  return np.isin(record["metrics"]["class_names"], [str(c) for c in record["config"]["data"]["target"]["classes"]])


def _by_digit(records, metric, scale, digits):
  """Returns a table of a metric of each class, [K] in each record, a column for each method and condition."""
  also_target = _also_target(records[0])
  rows = [[name] for name in (*records[0]["metrics"]["class_names"], "5-9, mean", "0-4, mean", "5-9 minus 0-4")]
  header = ["digit"]
  for at, where in zip(CONDITIONS, _NAMES, strict=True):
    for name, method in WEIGHTED.items():
      header.append(f"{method.title}, {where}")
      found = [record["metrics"][metric] for record in _of(records, name, at)]
      values = scale * np.array(found).reshape(-1, len(also_target))
      groups = [values[:, chosen].mean(axis=1) for chosen in (also_target, ~also_target)]
      for row, of_draws in zip(rows, [*values.T, *groups, groups[0] - groups[1]], strict=True):
        row.append(tables.mean_sd(of_draws.tolist(), digits))
  return tables.markdown(header, rows)


def draw_shares(names: Sequence[str], shares: np.ndarray, also_target: np.ndarray) -> Figure:
  """Draws Figure 3.

  Args:
    names: of K classes.
    shares: `[S, K]`, of S draws of the target.
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
  title = f"Images of large weight, {len(shares)} draw{'s' * (len(shares) > 1)} of the target"
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


EXPERIMENT = runs.Experiment("svhn_instances", make_runs, render, seeds=tuple(range(10)), protocols=("full",))

if __name__ == "__main__":
  runs.main(EXPERIMENT)
