"""What a person sees while training runs, and at its end."""

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from soseleto_jax.report.source_list import SourceList
from soseleto_jax.run import processes

_LOGGER = logging.getLogger(__name__)
_SHOWN = ("source_loss", "target_loss", "alpha_mean")
_MOST_SUSPECTS = 10
_ROWS = {
    "test_accuracy": ("test accuracy", "{:.2%}"),
    "test_accuracy_at_best": ("test accuracy at best validation", "{:.2%}"),
    "test_loss": ("test loss", "{:.4f}"),
    "test_loss_at_best": ("test loss at best validation", "{:.4f}"),
    "auc": ("AUC of 1 - alpha for wrong labels", "{:.3f}"),
    "list_auc": ("AUC of the list for wrong labels", "{:.3f}"),
    "alpha_right": ("mean alpha of right labels", "{:.3f}"),
    "alpha_wrong": ("mean alpha of wrong labels", "{:.3f}"),
    "steps": ("steps", "{:d}"),
    "seconds": ("seconds", "{:.1f}"),
}  # fmt: skip


class Progress:
  """A bar with steps/s and time left on a terminal; one log line an evaluation elsewhere. A context manager."""

  def __init__(self, num_steps: int, step: int):
    """Starts at `step` of `num_steps`."""
    shown = sys.stderr.isatty() and processes.is_main()
    self._bar = tqdm(total=num_steps, initial=step, unit="step", disable=not shown, dynamic_ncols=True)
    self._num_steps = num_steps
    self._shown: dict[str, str] = {}
    self._mark = (step, time.monotonic())

  def __enter__(self) -> "Progress":
    return self

  def __exit__(self, *exc_info) -> None:
    self._bar.close()

  def advance(self, step: int, metrics: Mapping[str, float]) -> None:
    """Moves to `step`, and shows the losses among these metrics of an earlier one."""
    self._bar.update(step - self._bar.n)
    self._show({name: f"{metrics[name]:.3f}" for name in _SHOWN if name in metrics})

  def record(self, step: int, record: Mapping[str, float]) -> float:
    """Shows an evaluation, and returns the steps per second since the last one."""
    (last_step, last_time), now = self._mark, time.monotonic()
    self._mark = (step, now)
    rate = (step - last_step) / max(now - last_time, 1e-9)
    accuracies = {name: f"{100 * record[name]:.1f}%" for name in record if name.endswith("_accuracy")}
    if not accuracies:  # labels are no classes
      accuracies = {name: f"{record[name]:.3f}" for name in ("validation_loss", "test_loss") if name in record}
    self._show(accuracies)
    if self._bar.disable:
      losses = {name: f"{record[name]:.3f}" for name in (*_SHOWN, "auc") if name in record}
      text = ", ".join(f"{name} {value}" for name, value in (losses | accuracies).items())
      left = (self._num_steps - step) / rate
      _LOGGER.info("step %d of %d: %s; %.1f steps/s, %.0f s left", step, self._num_steps, text, rate, left)
    return rate

  def _show(self, values):
    self._shown |= values
    self._bar.set_postfix(self._shown, refresh=False)


def summary_table(summary: Mapping[str, Any]) -> str:
  """Returns the headline numbers among the contents of summary.json, a line each."""
  rows = [(label, form.format(summary[key])) for key, (label, form) in _ROWS.items() if key in summary]
  width = max(len(label) for label, _ in rows)
  return "\n".join(f"{label:<{width}}  {value:>8}" for label, value in rows)


def suspects_table(listed: SourceList) -> str:
  """Returns the ten most suspect examples of a source, a line each below a heading."""
  columns = listed.columns(0, _MOST_SUSPECTS)
  suggested, probability = columns.get("suggested_name"), columns.get("suggested_probability", ())
  shown = {"alpha": [f"{alpha:.3f}" for alpha in columns["alpha"]]}
  if "label_name" in columns:
    shown["label"] = columns["label_name"].tolist()
  if "value" in columns:
    shown["value"] = [f"{value:.4g}" for value in columns["value"]]
  if suggested is not None:
    shown["network says"] = [f"{name} {p:.0%}" for name, p in zip(suggested, probability, strict=True)]
  shown |= {"row": [str(row) for row in columns["row"]]} if columns["file"] is None else {"file": list(columns["file"])}
  widths = [max(map(len, (name, *column))) for name, column in shown.items()]
  lines = [shown.keys(), *zip(*shown.values(), strict=True)]
  return "\n".join(
    "  ".join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
  )
