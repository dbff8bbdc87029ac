"""The paper's Figure 2, wrong labels among the CIFAR-10 images that are kept: `python -m experiments.figure2`.

The runs are SOSELETO's of Table 1, and their records those of table1.jsonl.
"""

import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments import runs, table1, tables
from soseleto_jax.report import figure_style

METHODS = {
  name: tables.Method(table1.METHODS[name].title, (4.0, 10.0, 20.0))
  for name in ("soseleto_paper", "soseleto", "soseleto_joint")
}
_COLORS = (figure_style.BLUE, figure_style.GREEN, figure_style.VERMILION)


def make_runs(protocol: str, seeds: Sequence[int]) -> list[runs.Run]:
  """Returns the runs of Table 1 that have weights."""
  return [
    run for run in table1.make_runs(protocol, seeds) if run.method in METHODS and run.conditions in table1.CONDITIONS
  ]


def draw(records: Sequence[runs.Record]) -> Figure:
  """Draws the wrong fraction of the labels against the kept fraction of the source, the largest weights first.

  Lines are means over seeds; the bands reach from the lowest to the highest seed. Dots: published, best half.
  """
  figure = figure_style.new_figure(4.5 * len(METHODS), 3.6)
  for number, (name, method) in enumerate(METHODS.items(), start=1):
    axes = figure.add_subplot(1, len(METHODS), number)
    figure_style.style_axes(axes, method.title, "source examples kept, largest α first (%)", "wrong labels (%)")
    for noise, color, published in zip(table1.NOISE, _COLORS, method.published, strict=True):
      axes.plot(50, published, "o", color=color, markerfacecolor="none")
      curves = 100 * np.array(tables.by_seed(records, name, {"noise": noise}, "retention").tolist())
      if len(curves):
        kept = np.linspace(0, 100, curves.shape[1] + 1)[1:]
        axes.plot(kept, curves.mean(axis=0), color=color, label=f"{noise:.0%} wrong labels")
        axes.fill_between(kept, curves.min(axis=0), curves.max(axis=0), color=color, alpha=0.2, linewidth=0)
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 55)
    if axes.get_legend_handles_labels()[0]:
      axes.legend(frameon=False)
  return figure


def render(protocol: str, records: Sequence[runs.Record], folder: pathlib.Path) -> None:
  """Writes figure2_PROTOCOL.png and figure2_PROTOCOL.md."""
  halves = [table1.with_best_half(record) for record in records]
  caption = "Wrong labels in % among the half of the source with the largest weights: mean ± sd over seeds (how many)"
  table = tables.beside(METHODS, halves, table1.CONDITIONS, table1.LEVELS, "best_half")
  tables.write(folder / f"figure2_{protocol}.md", (caption, table), records=records)
  figure_style.save(draw(records), folder / f"figure2_{protocol}.png")


EXPERIMENT = runs.Experiment("table1", make_runs, render)

if __name__ == "__main__":
  runs.main(EXPERIMENT)
