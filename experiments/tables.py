"""Tables in Markdown from records: mean and standard deviation over seeds beside the published number."""

import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.runs import Record

NOT_RUN = "not run"


def values_of(records: Sequence[Record], method: str, conditions: Mapping[str, Any], metric: str) -> list[float]:
  """Returns a metric of all seeds of a method under some conditions, in the order of the records."""
  return [
      record["metrics"][metric]
      for record in records
      if record["method"] == method and record["conditions"] == dict(conditions) and metric in record["metrics"]
  ]


def percent(records: Sequence[Record], method: str, conditions: Mapping[str, Any], metric: str) -> list[float]:
  """Returns `values_of` a metric that is a fraction, in %."""
  return [100 * value for value in values_of(records, method, conditions, metric)]


def mean_sd(values: Sequence[float], digits: int = 1) -> str:
  """Formats mean, sample standard deviation and number of values.

  >>> mean_sd([1.0, 2.0, 3.0]), mean_sd([1.25]), mean_sd([])
  ('2.0 ± 1.0 (3)', '1.2 (1)', 'not run')
  """
  if not values:
    return NOT_RUN
  spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
  return f"{statistics.mean(values):.{digits}f}{spread} ({len(values)})"


def against(values: Sequence[float], published: float | None) -> list[str]:
  """Returns the cells ours, published, difference."""
  difference = f"{statistics.mean(values) - published:+.1f}" if values and published is not None else ""
  return [mean_sd(values), "" if published is None else f"{published:.1f}", difference]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Returns a table; the first column to the left, numbers to the right.

  >>> print(markdown(["method", "%"], [["a", "1.0"]]))
  | method | % |
  |---|--:|
  | a | 1.0 |
  """
  line = lambda cells: f"| {' | '.join(cells)} |"
  return "\n".join([line(header), "|---|" + "--:|" * (len(header) - 1), *map(line, rows)])


def write(path: pathlib.Path, *parts: tuple[str, str]) -> None:
  """Writes a file of tables, each under a line that says what it holds."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("\n\n".join(f"{caption}:\n\n{table}" for caption, table in parts) + "\n", encoding="utf-8")
