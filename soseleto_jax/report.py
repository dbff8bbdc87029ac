"""The report page of a run: one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import pathlib
import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import image as matplotlib_image
from matplotlib.figure import Figure

from soseleto_jax import figure_style, figures, metrics, writers

_MOST_EXAMPLES = 32

# Summary key -> (label, kind), in the order of the table.
_KNOWN = {
  "method": ("Method", "text"),
  "task": ("Task", "text"),
  "dataset": ("Data set", "text"),
  "test_accuracy": ("Test accuracy", "percent"),
  "best_validation_accuracy": ("Best validation accuracy", "percent"),
  "test_accuracy_at_best": ("Test accuracy at best validation", "percent"),
  "best_step": ("Step of best validation", "count"),
  "auc": ("Area under ROC curve of 1 − α, wrong labels", "score"),
  "average_precision": ("Average precision of 1 − α, wrong labels", "score"),
  "alpha_right": ("Mean α of right labels", "score"),
  "alpha_wrong": ("Mean α of wrong labels", "score"),
  "wrong_fraction": ("Wrong labels in the source", "percent"),
  "num_source": ("Source examples", "count"),
  "num_target": ("Target examples", "count"),
  "epochs": ("Epochs", "count"),
  "steps": ("Steps", "count"),
  "seconds": ("Time", "seconds"),
  "device": ("Device", "text"),
}

_PAGE = string.Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1c1c1c; --soft: #666; --line: #ddd; --paper: #fff;
  --wrong: #b34700; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --soft: #a0a0a0; --line: #3a3a3a; --paper: #161616; --wrong: #ff9a52; }
}
body { margin: 0 auto; max-width: 900px; padding: 1rem 1rem 3rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .3rem; }
p { margin: .3rem 0 .8rem; color: var(--soft); max-width: 44rem; }
table { border-collapse: collapse; width: 100%; max-width: 40rem; }
th, td { padding: .3rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; overflow-wrap: anywhere; }
th { font-weight: normal; color: var(--soft); padding-right: 1rem; }
td { font-variant-numeric: tabular-nums; }
.plots { display: flex; flex-wrap: wrap; align-items: flex-start; gap: .5rem; overflow-x: auto; }
.plots img { border-radius: 6px; flex: 1 1 300px; height: auto; }
.plots .half { max-width: min(100%, 430px); }
.plots .wide { min-width: 600px; }
@media (prefers-color-scheme: dark) { .plots img { filter: invert(.91) hue-rotate(180deg); } }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(92px, 1fr)); gap: .8rem; }
.sheet figure { margin: 0; }
.sheet img { display: block; width: 100%; image-rendering: pixelated; border-radius: 3px; }
.sheet figcaption { font-size: .75rem; line-height: 1.3; margin-top: .2rem;
  overflow-wrap: anywhere; }
.wrong { color: var(--wrong); font-weight: 600; }
summary { cursor: pointer; font-size: 1.2rem; font-weight: bold; margin-top: 2.5rem; }
pre { overflow-x: auto; font-size: .8rem; line-height: 1.4; }
</style>
</head>
<body>
<h1>$title</h1>
$body
<details>
<summary>Config</summary>
<pre>$config</pre>
</details>
</body>
</html>
""")


def write_report(
  workdir: str | os.PathLike,
  *,
  title: str,
  config: Mapping[str, Any],
  records: Sequence[Mapping[str, Any]],
  source: Mapping[str, np.ndarray] | None,
  alpha: np.ndarray | None,
  summary: Mapping[str, Any],
  class_names: Sequence[str] | None,
) -> pathlib.Path:
  """Writes `report.html`, `figures/*.png` and `source_weights.csv` into the folder of a run.

  Args:
    workdir: the folder; made when missing.
    title: heading of the page.
    config: what the run was asked for, shown at the end.
    records: the records of `writers.read_metrics`.
    source: "label" int `[N]`; where label noise was injected "true_label" int `[N]`; and "x", shown
      if it is pictures (`[N, H, W, 1]` or `[N, H, W, 3]`, uint8 or float) or points (`[N, 2]`).
    alpha: float `[N]`, the weights, or None for a method that has none; `source` is then not read.
    summary: the headline numbers by name. Accuracies are fractions, "seconds" is a time.
    class_names: name of each source label; None shows the numbers.

  Returns:
    The path of the page.

  Raises:
    ValueError: alpha and the arrays of `source` differ in length, or a weight is not finite.
  """
  workdir = pathlib.Path(workdir)
  (workdir / "figures").mkdir(parents=True, exist_ok=True)
  body = [_summary_table(summary)]
  drawn = figures.curves(records)
  if drawn is not None:
    body += ["<h2>Training</h2>", _plots(workdir, curves=drawn)]
  if alpha is not None:
    body += _weights(workdir, source, np.asarray(alpha), class_names)
  settings = json.dumps(writers.to_plain(config), indent=2, ensure_ascii=False, default=str)
  page = _PAGE.substitute(
    title=html.escape(title),
    body="\n".join(body),
    config=html.escape(settings),
  )
  path = workdir / "report.html"
  writers.write_text(path, page)
  return path


def _weights(workdir, source, alpha, class_names) -> list[str]:
  label, true_label, x = source["label"], source.get("true_label"), source.get("x")
  path = workdir / "source_weights.csv"
  metrics.write_source_weights(path, alpha, label, true_label)
  wrong = None if true_label is None else np.asarray(label) != np.asarray(true_label)
  if wrong is not None and not wrong.any():
    wrong = true_label = None
  drawn = {"alpha_histogram": figures.alpha_histogram(alpha, wrong)}
  if wrong is not None:
    drawn["retention"] = figures.retention(alpha, wrong)
  body = [
    "<h2>Weights of the source examples</h2>",
    f"<p>{np.sum(alpha <= 0):,} of {len(alpha):,} examples ended at α = 0 and "
    f"{np.sum(alpha >= 1):,} at α = 1. All weights, lowest first: {path.name}.</p>",
    _plots(workdir, **drawn),
  ]
  shape = np.shape(x) if x is not None else ()
  if len(shape) == 2 and shape[1] == 2:
    plane = figures.points(x[np.arange(len(x))], label, alpha, wrong)  # so that x may be on disk
    body += ["<h2>The source in the plane</h2>", _plots(workdir, points=plane)]
  elif len(shape) == 4 and shape[3] in (1, 3):
    body += _examples(workdir, x, label, true_label, alpha, class_names)
  return body


def _examples(workdir, x, label, true_label, alpha, class_names) -> list[str]:
  count = min(_MOST_EXAMPLES, (len(alpha) + 1) // 2)
  ends = {
    "lowest": np.argsort(alpha, kind="stable")[:count],
    "highest": np.argsort(-alpha, kind="stable")[:count],
  }
  images = figures.displayable(x[np.concatenate(list(ends.values()))])

  def name(value) -> str:
    known = class_names is not None and 0 <= value < len(class_names)
    return str(class_names[int(value)] if known else value)

  body = []
  for (end, rows), pictures in zip(ends.items(), (images[:count], images[count:]), strict=True):
    captions, tiles = [], []
    for row, picture in zip(rows, pictures, strict=True):
      given, weight = name(label[row]), f"α = {alpha[row]:.3f}"
      shown = html.escape(given)
      if true_label is not None and true_label[row] != label[row]:
        given = f"{given}\n→ {name(true_label[row])}"
        shown = f'<span class="wrong">{html.escape(given)}</span>'
      captions.append(f"{given}\n{weight}")
      tiles.append(
        f'<figure><img src="{_data_uri(_png(picture))}" alt="source example {row}">'
        f"<figcaption>{shown}<br>{weight}</figcaption></figure>"
      )
    figure_style.save(figures.example_sheet(pictures, captions), workdir / "figures" / f"{end}.png")
    arrow = "" if true_label is None else " An arrow leads from a wrong label to the true one."
    body += [
      f"<h2>{end.capitalize()} weights</h2>",
      f"<p>The {count} source examples of {end} weight, with their given labels.{arrow}</p>",
      f'<div class="sheet">{"".join(tiles)}</div>',
    ]
  return body


def _summary_table(summary: Mapping[str, Any]) -> str:
  known = {key: look for key, look in _KNOWN.items() if key in summary}
  looks = known | {key: (key, "text") for key in summary if key not in known}
  rows = "\n".join(
    f'<tr><th scope="row">{html.escape(label)}</th>'
    f"<td>{html.escape(_cell(summary[key], kind))}</td></tr>"
    for key, (label, kind) in looks.items()
  )
  return f"<table>\n{rows}\n</table>"


def _cell(value: Any, kind: str) -> str:
  value = writers.to_plain(value)
  if value is None:
    return "–"
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


def _plots(workdir: pathlib.Path, **drawn: Figure) -> str:
  images = []
  for name, figure in drawn.items():
    path = workdir / "figures" / f"{name}.png"
    figure_style.save(figure, path)
    uri = _data_uri(path.read_bytes())
    look = "wide" if figure.get_figwidth() > 6 else "half"
    images.append(f'<img class="{look}" src="{uri}" alt="{name.replace("_", " ")}">')
  return f'<div class="plots">{"".join(images)}</div>'


def _png(picture: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  matplotlib_image.imsave(buffer, picture, format="png", metadata={"Software": None})
  return buffer.getvalue()


def _data_uri(png: bytes) -> str:
  return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
