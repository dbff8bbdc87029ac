"""The look that all figures share."""

import io
import os
from typing import Any

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from soseleto_jax import storage

# Colours of Okabe and Ito, told apart by colour-blind readers too. Right labels are blue and wrong ones vermilion in
# every figure.
BLUE, VERMILION, GREEN, AMBER, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7"
INK, GREY, FAINT = "#222222", "#6b6b6b", "#dddddd"
CLASS_LOOKS = ((PURPLE, "o"), (GREEN, "s"), (AMBER, "^"), ("#56B4E9", "D"), (INK, "v"))


def new_figure(width: float, height: float) -> Figure:
  """Returns an empty figure, sizes in inches."""
  layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
  return Figure(figsize=(width, height), dpi=200, layout=layout, facecolor="white")


@ticker.FuncFormatter
def percent(fraction: float, _) -> str:
  """Formats the ticks of an axis of fractions."""
  return f"{100 * fraction:.3g}%"


def style_axes(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
  """Titles, labels and grid."""
  axes.set_title(title, fontsize=11, loc="left", color=INK, fontweight="bold", wrap=True)
  axes.set_xlabel(xlabel, fontsize=10, color=INK)
  axes.set_ylabel(ylabel, fontsize=10, color=INK)
  axes.tick_params(labelsize=9, colors=GREY, length=0)
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_locator(ticker.MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
  axes.grid(color=FAINT, linewidth=0.7)
  axes.set_axisbelow(True)
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["left", "bottom"]].set_color(FAINT)


def add_legend(axes: Axes, loc: Any = "best") -> None:
  """Names what was drawn with a label."""
  axes.legend(loc=loc, fontsize=9, frameon=True, framealpha=0.8, edgecolor="none")


def save(figure: Figure, path: str | os.PathLike) -> None:
  """Writes a PNG; equal figures are equal files, for the drawing program leaves its name out."""
  metadata: dict[str, Any] = {"Software": None}
  png = io.BytesIO()
  figure.savefig(png, format="png", metadata=metadata)
  storage.write_bytes(storage.as_path(path), png.getvalue())
