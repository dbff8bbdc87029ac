"""The report page of a run: one HTML file that needs nothing beside it.

Matplotlib, which takes a second to import, comes with `figures` once there is something to draw.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from soseleto_jax import storage
from soseleto_jax.report import list_files, sheets, source_list, writers
from soseleto_jax.report.source_list import SourceList

if TYPE_CHECKING:
  from matplotlib.figure import Figure

_TEMPLATE = "page.html.jinja"
# Summary key -> (label, kind), in the order of the table.
_KNOWN = {
  "method": ("Method", "text"),
  "task": ("Task", "text"),
  "dataset": ("Data set", "text"),
  "not_known": ("Not known", "text"),
  "test_accuracy": ("Test accuracy", "percent"),
  "validation_accuracy": ("Validation accuracy", "percent"),
  "best_validation_accuracy": ("Best validation accuracy", "percent"),
  "test_accuracy_at_best": ("Test accuracy at best validation", "percent"),
  "test_loss": ("Test loss", "number"),
  "validation_loss": ("Validation loss", "number"),
  "best_validation_loss": ("Best validation loss", "number"),
  "test_loss_at_best": ("Test loss at best validation", "number"),
  "best_step": ("Step of best validation", "count"),
  "best_checkpoint": ("Checkpoint of best validation", "count"),
  "alpha_init": ("α at the start, by a trial", "score"),
  "burn_in_weight": ("Weight of the source at first, by a trial", "score"),
  "trial_target": ("Trial: accuracy from the target alone", "percent"),
  "trial_joint": ("Trial: accuracy with the whole source", "percent"),
  "trial_agreement": ("Trial: labels of the source that the target alone agrees with", "percent"),
  "center_by_class": ("Alignment centred by class, by a trial", "text"),
  "auc": ("Area under ROC curve of 1 − α, wrong labels", "score"),
  "list_auc": ("Area under ROC curve of the list, wrong labels", "score"),
  "average_precision": ("Average precision of 1 − α, wrong labels", "score"),
  "alpha_right": ("Mean α of right labels", "score"),
  "alpha_wrong": ("Mean α of wrong labels", "score"),
  "wrong_fraction": ("Wrong labels in the source", "percent"),
  "num_source": ("Source examples", "count"),
  "left_out": ("Left out of the source", "reasons"),
  "num_target": ("Target examples", "count"),
  "epochs": ("Epochs", "count"),
  "steps": ("Steps", "count"),
  "seed": ("Seed", "count"),
  "seconds": ("Time", "seconds"),
  "device": ("Device", "text"),
}


def write_report(
  workdir: str | os.PathLike,
  *,
  title: str,
  config: Mapping[str, Any],
  records: Sequence[Mapping[str, Any]],
  listed: SourceList | None,
  x: Any = None,
  summary: Mapping[str, Any],
) -> pathlib.Path:
  """Writes `report.html` and `figures/*.png` into the folder of a run.

  Args:
    workdir: the folder; made when missing.
    title: heading of the page.
    config: what the run was asked for, shown at the end.
    records: the records of `writers.read_metrics`. Numbers that this package does not know, such as those of a user's
      evaluators, are shown too: the last of each in the table, and their course.
    listed: the source's examples with their weights; None for a method that has none.
    x: the source `[N, ...]`, drawn if it is pictures (`[N, H, W, 1]` or `[N, H, W, 3]`, uint8 or float) or points
      (`[N, 2]`).
    summary: the headline numbers by name. Accuracies are fractions, "seconds" is a time.

  Returns:
    The path of the page.
  """
  from soseleto_jax.report import figures

  workdir = storage.as_path(workdir)
  (workdir / "figures").mkdir(parents=True, exist_ok=True)
  drawn = figures.curves(records)
  own = {name: figures.series(records, "step", name)[1][-1] for name in figures.own_numbers(records)}
  page = _template().render(
    title=title,
    summary=_table({**own, **summary}),
    curves=[] if drawn is None else _plots(workdir, curves=drawn),
    weights=None if listed is None else _weights(workdir, listed, x),
    config=json.dumps(writers.to_plain(config), indent=2, ensure_ascii=False, default=str),
  )
  path = workdir / "report.html"
  writers.write_text(path, page)
  return path


@functools.cache
def _template():
  import jinja2

  folder = jinja2.FileSystemLoader(pathlib.Path(__file__).parent)
  options = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
  return jinja2.Environment(loader=folder, autoescape=True, undefined=jinja2.StrictUndefined, **options).get_template(
    _TEMPLATE
  )


def _weights(workdir, listed, x) -> dict[str, Any]:
  """Draws the figures of the weights; returns what the page shows of them."""
  from soseleto_jax.report import figures

  alpha, wrong = listed.alpha, listed.wrong
  if wrong is not None and not wrong.any():
    wrong = None
  drawn = {"alpha_histogram": figures.alpha_histogram(alpha, wrong)}
  if wrong is not None:
    drawn["retention"] = figures.retention(alpha, wrong)
  shape: tuple[int, ...] = np.shape(x) if x is not None else ()
  plane = {}
  if len(shape) == 2 and shape[1] == 2 and listed.label is not None:
    everything = x[np.arange(len(x))]  # so that x may be on disk
    plane["points"] = figures.points(everything, listed.label, alpha, wrong)
  found = sheets.sheets(workdir, listed, x)
  path = list_files.find(workdir)
  return {
    "count": len(alpha),
    "at_0": np.sum(alpha <= 0),
    "at_1": np.sum(alpha >= 1),
    "file": path and path.name,
    "known": wrong is not None,
    "suggested": listed.suggestions is not None,
    "plots": _plots(workdir, **drawn),
    "plane": _plots(workdir, **plane),
    "sheets": found,
    "chosen_by": sheets.chosen_by(found),
  }


def _table(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Returns label and text of each row."""
  known = {key: look for key, look in _KNOWN.items() if key in summary}
  looks = known | {key: (key, "text") for key in summary if key not in known}
  return [(label, _cell(summary[key], kind)) for key, (label, kind) in looks.items()]


def _cell(value: Any, kind: str) -> str:
  value = writers.to_plain(value)
  if value is None:
    return "–"
  if kind == "reasons":
    return source_list.left_out_line(value)
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return value if isinstance(value, str) else json.dumps(value, default=str)
  if kind == "percent":
    return f"{100 * value:.2f} %"
  if kind == "score":
    return f"{value:.3f}"
  if kind == "seconds" and value >= 60:
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
  if kind == "seconds":
    return f"{value:.1f} s"
  return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _plots(workdir: pathlib.Path, **drawn: Figure) -> list[dict[str, Any]]:
  """Saves figures; returns what the page needs in order to show them."""
  from soseleto_jax.report import figure_style

  plots = []
  for name, figure in drawn.items():
    path = workdir / "figures" / f"{name}.png"
    figure_style.save(figure, path)
    wide = figure.get_figwidth() > 6
    plots.append({"name": name.replace("_", " "), "uri": sheets.data_uri(path.read_bytes()), "wide": wide})
  return plots
