"""Figures of a run, as `matplotlib.figure.Figure` objects: no global state is read or changed."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import image as matplotlib_image
from matplotlib.figure import Figure

from soseleto_jax.report import source_weights
from soseleto_jax.report.figure_style import (
  AMBER,
  BLUE,
  CLASS_LOOKS,
  GREEN,
  GREY,
  INK,
  PURPLE,
  VERMILION,
  add_legend,
  new_figure,
  percent,
  style_axes,
)

_MOST_VERTICES = 200

# (title, axis label) of a panel -> its lines: (record key, name, colour, line style).
_Panels = dict[tuple[str, str], tuple[tuple[str, str, str, str], ...]]
_PANELS: _Panels = {
  ("Loss", "loss per example"): (
    ("source_loss", "source (weighted)", INK, "-"),
    ("target_loss", "target", GREEN, "-"),
    ("loss", "both, as descended", GREY, ":"),
    ("validation_loss", "validation", PURPLE, "--"),
    ("test_loss", "test", AMBER, "--"),
  ),
  ("Accuracy", "classified right"): (
    ("validation_accuracy", "validation", PURPLE, "--"),
    ("test_accuracy", "test", AMBER, "-"),
  ),
  ("Weights of right and wrong labels", "mean α"): (
    ("alpha_right", "right labels", BLUE, "-"),
    ("alpha_mean", "all", GREY, ":"),
    ("alpha_wrong", "wrong labels", VERMILION, "--"),
  ),
  ("1 − α as detector of wrong labels", "score"): (
    ("auc", "area under ROC curve", BLUE, "-"),
    ("average_precision", "average precision", PURPLE, "--"),
  ),
  ("Step of α", "step, log"): (
    ("alpha_step_size", "in use", BLUE, "-"),
    ("alpha_step_bound", "sufficient (Appendix C)", GREY, "--"),
  ),
}

_MEAN_WEIGHT = ("Mean weight of the source", "mean α")  # where no truth is known

# What records hold beside these and is not drawn.
_NOT_DRAWN = frozenset({
  "step", "epoch", "steps_per_second", "grad_norm", "target_grad_norm", "alignment_mean", "valid_rows", "skipped_rows",
  "skipped_step", "wrong_fraction",
})  # fmt: skip
_MOST_OWN = 8


def own_numbers(records: Sequence[Mapping[str, Any]]) -> list[str]:
  """Returns the names of numbers in the records that no part of this package writes: a user's, in their order."""
  known = _NOT_DRAWN | {key for lines in _PANELS.values() for key, *_ in lines}
  return list(dict.fromkeys(key for record in records for key in record if key not in known and _number(record, key)))


def curves(records: Sequence[Mapping[str, Any]]) -> Figure | None:
  """Losses, accuracies, mean weights, detection scores and a user's own numbers in the course of a run.

  Args:
    records: the records of `writers.read_metrics`. Missing and null values are passed over.

  Returns:
    A figure with a panel for each of the five that has data, and for each of a user's first few numbers; None if there
    is none. The horizontal axis is "epoch" where every record has one, else "step".
  """
  time_key = "epoch" if all(_number(record, "epoch") for record in records) else "step"
  own: _Panels = {(name, name): ((name, name, BLUE, "-"),) for name in own_numbers(records)[:_MOST_OWN]}
  panels = {}
  for heading, lines in {**_PANELS, **own}.items():
    drawn = [(series(records, time_key, key), {"label": name, "color": color, "linestyle": style})
             for key, name, color, style in lines]  # fmt: skip
    if shown := [line for line in drawn if len(line[0][0])]:
      panels[_MEAN_WEIGHT if [look["label"] for _, look in shown] == ["all"] else heading] = shown
  if not panels:
    return None
  columns = min(2, len(panels))
  rows = math.ceil(len(panels) / columns)
  figure = new_figure(4.5 * columns, 3.1 * rows)
  for position, ((title, ylabel), shown) in enumerate(panels.items(), start=1):
    axes = figure.add_subplot(rows, columns, position)
    for (times, values), look in shown:
      _draw_line(axes, times, values, **look)
    if ylabel == "classified right":
      axes.yaxis.set_major_formatter(percent)
    elif ylabel == "mean α":
      axes.set_ylim(-0.03, 1.03)
    elif ylabel == "score":
      axes.axhline(0.5, color=GREY, linewidth=1.2, linestyle=":", label="chance (ROC)")
    style_axes(axes, title, time_key, ylabel)
    if ylabel == "step, log":
      axes.set_yscale("log")
    if (title, ylabel) not in own:
      add_legend(axes)
  return figure


def alpha_histogram(alpha: np.ndarray, wrong: np.ndarray | None = None) -> Figure:
  """Histogram of the weights; of right and wrong labels separately where `wrong` is known.

  Args:
    alpha: float `[N]`, the weights, in [0, 1].
    wrong: bool `[N]`, True where the given label is not the true one.

  Returns:
    The figure. Heights are shares of each kind of example, so that few wrong labels show as well as
    many right ones.
  """
  alpha = np.asarray(alpha)
  groups = [("all examples", alpha, BLUE)]
  if wrong is not None:
    wrong = np.asarray(wrong, bool)
    groups = [("right labels", alpha[~wrong], BLUE), ("wrong labels", alpha[wrong], VERMILION)]
  figure = new_figure(4.5, 3.3)
  axes = figure.add_subplot()
  highest = 0.0
  for name, values, color in groups:
    if not len(values):
      continue
    counts, edges = np.histogram(values, bins=40, range=(0, 1))
    share = counts / len(values)
    highest = max(highest, share.max())
    label = f"{name}: {len(values):,}, mean {values.mean():.2f}"
    axes.stairs(share, edges, fill=True, color=color, alpha=0.25)
    axes.stairs(share, edges, color=color, linewidth=1.6, label=label)
  axes.set_xlim(-0.02, 1.02)
  # Room for the legend above the bars, which are often highest at both ends.
  axes.set_ylim(0, 1.3 * highest)
  axes.yaxis.set_major_formatter(percent)
  style_axes(axes, "Learned weights", "weight α", "share" if wrong is None else "share of each kind")
  add_legend(axes, loc="upper center")
  return figure


def retention(alpha: np.ndarray, wrong: np.ndarray) -> Figure:
  """Wrong labels left among the examples of largest weight, against how many are kept (Figure 2).

  Args:
    alpha: float `[N]`, the weights.
    wrong: bool `[N]`, True where the given label is not the true one.

  Returns:
    The figure, with the curves of a random and of a perfect order for comparison.
  """
  kept, remaining = source_weights.retention_curve(alpha, wrong)
  fraction = float(np.mean(wrong))
  perfect = np.maximum(kept - (1 - fraction), 0) / np.maximum(kept, 1e-12)
  figure = new_figure(4.5, 3.3)
  axes = figure.add_subplot()
  axes.plot(kept, remaining, color=BLUE, linewidth=2, zorder=3, label="largest α first")
  axes.axhline(fraction, color=GREY, linewidth=1.2, linestyle=":", label="random order")
  axes.plot(kept, perfect, color=GREY, linewidth=1.2, linestyle="--", label="perfect order")
  axes.xaxis.set_major_formatter(percent)
  axes.yaxis.set_major_formatter(percent)
  axes.set_xlim(0, 1)
  axes.set_ylim(0, 1.5 * max(fraction, remaining.max()))
  style_axes(axes, "Wrong labels left", "source examples kept", "wrong among the kept")
  add_legend(axes, loc="upper left")
  return figure


def points(x: np.ndarray, label: np.ndarray, alpha: np.ndarray, wrong: np.ndarray | None = None) -> Figure:
  """Source examples in the plane: the labels they were given, and the weights they ended with.

  Args:
    x: float `[N, 2]`.
    label: int `[N]`, the given labels.
    alpha: float `[N]`, the weights, in [0, 1].
    wrong: bool `[N]`, True where the given label is not the true one.

  Returns:
    The figure, two panels side by side.
  """
  x, label, alpha = np.asarray(x), np.asarray(label), np.asarray(alpha)
  size = float(np.clip(6000 / len(x), 3, 30))
  figure = new_figure(9, 4.3)
  left, right = figure.subplots(1, 2, sharex=True, sharey=True)
  for number, value in enumerate(np.unique(label)):
    rows = label == value
    color, marker = CLASS_LOOKS[number % len(CLASS_LOOKS)]
    left.scatter(*x[rows].T, s=size, c=color, marker=marker, linewidths=0, label=f"label {value}")
  # Low weights last, so that they lie on top.
  order = np.argsort(-alpha, kind="stable")
  drawn = right.scatter(*x[order].T, s=size, c=alpha[order], cmap="cividis", vmin=0, vmax=1, linewidths=0)
  if wrong is not None and np.any(wrong):
    ring = {"facecolors": "none", "edgecolors": VERMILION, "linewidths": 1, "label": "wrong label"}
    for axes in (left, right):
      axes.scatter(*x[np.asarray(wrong, bool)].T, s=3 * size, **ring)
  bar = figure.colorbar(drawn, ax=right, fraction=0.05, pad=0.02)
  bar.outline.set_visible(False)
  bar.ax.tick_params(labelsize=9, colors=GREY, length=0)
  for axes, title in ((left, "Given labels"), (right, "Learned weight α")):
    style_axes(axes, title, "$x_1$", "$x_2$")
    axes.set_aspect("equal")
    axes.grid(visible=False)
  handles = left.get_legend_handles_labels()
  figure.legend(*handles, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
  return figure


def example_sheet(images: np.ndarray, captions: Sequence[str], columns: int = 8) -> Figure:
  """Small pictures in rows, each with a caption.

  Args:
    images: `[n, H, W, C]`, as for `displayable`.
    captions: n strings, drawn as they are (dollar signs start no formula).
    columns: pictures in a row.

  Returns:
    The figure.
  """
  images = displayable(images)
  rows = math.ceil(len(images) / columns)
  width, gap, line = 1.0, 0.11, 0.14  # Of a picture, between two, and of text; all in inches.
  head = line * max(caption.count("\n") + 1 for caption in captions) + gap
  tall = width * images.shape[1] / images.shape[2]
  size = (columns * (width + gap) + gap, rows * (head + tall) + gap)
  # One pair of axes in inches: laying out 32 takes seconds.
  figure = Figure(figsize=size, dpi=200, facecolor="white")
  axes = figure.add_axes((0, 0, 1, 1))
  for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
    left = gap + (number % columns) * (width + gap)
    top = number // columns * (head + tall) + head
    axes.imshow(image, extent=(left, left + width, top + tall, top), interpolation="nearest")
    look: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 7.5, "linespacing": 1.15, "color": INK}
    axes.text(left + width / 2, top - 0.04, caption, parse_math=False, **look)
  axes.set(xlim=(0, size[0]), ylim=(size[1], 0), aspect="auto")
  axes.set_axis_off()
  return figure


def displayable(images: np.ndarray) -> np.ndarray:
  """Scales pictures of any usual range to bytes.

  Args:
    images: `[n, H, W, 1]` or `[n, H, W, 3]`. uint8 is taken as it is. Floats within [0, 1] or, when
      they exceed 1, [0, 255] keep that scale; others, such as mean-subtracted ones, are stretched
      from their least to their largest value, all alike.

  Returns:
    uint8 `[n, H, W, 3]`.
  """
  images = np.asarray(images)
  if images.dtype != np.uint8:
    images = np.nan_to_num(images.astype(np.float64))
    low, high = images.min(), images.max()
    if low >= 0 and high <= 255:
      low, high = 0.0, 1.0 if high <= 1 else 255.0
    images = np.round((images - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
  return np.broadcast_to(images, (*images.shape[:-1], 3))


def png(picture: np.ndarray) -> bytes:
  """Returns a picture uint8 `[H, W, 3]` as a PNG, pixel for pixel."""
  buffer = io.BytesIO()
  metadata: dict[str, Any] = {"Software": None}
  matplotlib_image.imsave(buffer, picture, format="png", metadata=metadata)
  return buffer.getvalue()


def series(records: Sequence[Mapping[str, Any]], time_key: str, key: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns the values of two keys, float64, of the records that have numbers for both."""
  pairs = [(r[time_key], r[key]) for r in records if _number(r, time_key) and _number(r, key)]
  times, values = np.array(pairs, float).reshape(-1, 2).T
  return times, values


def _number(record: Mapping[str, Any], key: str) -> bool:
  value = record.get(key)
  return isinstance(value, (int, float)) and math.isfinite(value)


def _draw_line(axes, times, values, **look) -> None:
  """Draws a line; of a long one the means of stretches, over a faint line of all values."""
  if len(times) > _MOST_VERTICES:
    axes.plot(times, values, color=look["color"], linewidth=0.6, alpha=0.25)
    times, values = (
      np.array([part.mean() for part in np.array_split(column, _MOST_VERTICES // 2)]) for column in (times, values)
    )
  axes.plot(times, values, linewidth=1.8, marker="o" if len(times) <= 25 else "", ms=3.5, **look)
