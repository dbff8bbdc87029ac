"""Tables in Markdown from records: mean and standard deviation over seeds beside the published number."""

import dataclasses
import pathlib
import statistics
import types
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from ml_collections import ConfigDict

from experiments import provenance
from experiments.runs import Record, Run, Train, train_run

NOT_RUN = "not run"


@dataclasses.dataclass(frozen=True)
class Method:
  """A method as a table's row.

  Attributes:
    title: its name there.
    published: accuracies in %, one for each column of the table; None where there is none.
    method: `config.method`; None: the row's key.
    options: `config.method_options`.
    train: as in `runs.Run`.
    settings: likewise.
    tries: how many settings of it were compared, on validation data or seeds that are not reported; None: not counted.
  """

  title: str
  published: Sequence[float | None] = ()
  method: str | None = None
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  train: Train = train_run
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  tries: int | None = None

  def run(self, key: str, conditions: Mapping[str, Any], config: ConfigDict) -> Run:
    """Returns the run of this row, whose key it is, with a config that is told its method."""
    config.method, config.method_options = self.method or key, dict(self.options)
    return Run(key, conditions, config, self.train, self.settings)


def by_seed(records: Sequence[Record], method: str, conditions: Mapping[str, Any], metric: str) -> pd.Series:
  """Returns a metric of a method, by seed."""
  found = [record for record in _of(records, method, conditions) if metric in record["metrics"]]
  values = [record["metrics"][metric] for record in found]
  return pd.Series(values, [record["config"]["seed"] for record in found], dtype=None if values else float)


def _of(records, method, conditions):
  return [record for record in records if record["method"] == method and record["conditions"] == dict(conditions)]


def mean_sd(values: Sequence[float] | pd.Series, digits: int = 1) -> str:
  """Formats mean, sample standard deviation and number of values.

  >>> mean_sd([1.0, 2.0, 3.0]), mean_sd([1.25]), mean_sd([])
  ('2.0 ± 1.0 (3)', '1.2 (1)', 'not run')
  """
  if not len(values):
    return NOT_RUN
  spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
  return f"{statistics.mean(values):.{digits}f}{spread} ({len(values)})"  # exact, or halves would round at random


def interval(values: Sequence[float]) -> str:
  """Formats the mean and its 95 % interval by Student's t; the mean alone of one value.

  >>> interval([1.0, 2.0, 3.0]), interval([2.0]), interval([])
  ('+2.0 [-0.5, 4.5] (3)', '+2.0 (1)', 'not run')
  """
  if not len(values):
    return NOT_RUN
  within = " [{:.1f}, {:.1f}]".format(*_ends(values)) if len(values) > 1 else ""
  return f"{statistics.mean(values):+.1f}{within} ({len(values)})"


def against(values: Sequence[float] | pd.Series, published: float | None) -> list[str]:
  """Returns the cells ours, published, difference."""
  difference = f"{statistics.mean(values) - published:+.1f}" if len(values) and published is not None else ""
  return [mean_sd(values), "" if published is None else f"{published:.1f}", difference]


def rows(
  methods: Mapping[str, Method],
  records: Sequence[Record],
  conditions: Sequence[Mapping[str, Any]],
  metric: str,
  scale: float = 100,
  digits: int = 1,
) -> list[list[str]]:
  """Returns a row for each method: its title, then a metric under each of the conditions; "" where it has no such."""

  def cell(name, at):
    values = scale * by_seed(records, name, at, metric)
    return "" if _of(records, name, at) and values.empty else mean_sd(values, digits)

  return [[method.title, *(cell(name, at) for at in conditions)] for name, method in methods.items()]


def metrics_table(
  methods: Mapping[str, Method],
  records: Sequence[Record],
  at: Mapping[str, Any],
  columns: Mapping[str, tuple[str, float, int]],
) -> str:
  """Returns a table of one condition: a row for each method, and under each column's name its metric, scale, digits."""
  parts = [rows(methods, records, [at], *column) for column in columns.values()]
  body = [[row[0][0], *(cell for _, cell in row)] for row in zip(*parts, strict=True)]
  return markdown(["", *columns], body)


def beside(
  methods: Mapping[str, Method],
  records: Sequence[Record],
  conditions: Sequence[Mapping[str, Any]],
  names: Sequence[str],
  metric: str = "test_accuracy",
) -> str:
  """Returns the table of a metric in %, published numbers and differences beside ours.

  Args:
    methods: the rows.
    records: of one protocol.
    conditions: for each group of columns.
    names: of the groups.
    metric: a fraction.
  """
  body = []
  for key, method in methods.items():
    body.append([method.title])
    for at, published in zip(conditions, method.published or [None] * len(conditions), strict=True):
      body[-1] += against(100 * by_seed(records, key, at, metric), published)
  return markdown(["", *(f"{name}: {what}" for name in names for what in ("ours", "published", "difference"))], body)


def paired(
  methods: Mapping[str, Method],
  best: str,
  records: Sequence[Record],
  conditions: Sequence[Mapping[str, Any]],
  names: Sequence[str],
  metric: str = "test_accuracy",
  scale: float = 100,
  digits: int = 1,
  interval: bool = False,
) -> str:
  """Returns the table of differences of a metric, by default of test accuracy in points, seed by seed.

  They are those of the method `best` minus each other, times `scale`, which is below 0 for a metric that is the better
  the smaller it is; with `interval`, beside them the 95 % interval of their mean, by Student's t.
  """
  body = []
  for key, method in methods.items():
    if key == best:
      continue
    body.append([method.title])
    for at in conditions:
      ours, theirs = (by_seed(records, name, at, metric) for name in (best, key))
      differences = (scale * (ours - theirs)).dropna()  # the index, the seed, says which go together
      ahead = f"{(differences > 0).sum()} of {len(differences)}" if len(differences) else ""
      body[-1] += [mean_sd(differences, digits), *([mean_interval(differences, digits)] if interval else []), ahead]
  columns = ("difference", "95 %", "ahead") if interval else ("difference", "ahead")
  return markdown(["", *(f"{name}: {what}" for name in names for what in columns)], body)


def paired_with_caption(
  methods: Mapping[str, Method],
  best: str,
  records: Sequence[Record],
  conditions: Sequence[Mapping[str, Any]],
  names: Sequence[str],
  how: str = "",
  by: str = "seeds",
) -> tuple[str, str]:
  """Returns what the table of `paired` with intervals holds, and the table.

  Args:
    methods, best, records, conditions, names: of `paired`.
    how: what all of its runs have in common.
    by: what the seeds are called, "draws" where they draw the target.
  """
  what = f"{methods[best].title}, minus the method, in points, on the same {by}" + (f", {how}" if how else "")
  caption = f"{what}: mean ± sd (how many); 95 % interval of the mean; {by} on which it is ahead"
  return caption, paired(methods, best, records, conditions, names, interval=True)


def mean_interval(values: Sequence[float] | pd.Series, digits: int = 1) -> str:
  """Formats the 95 % interval of a mean by Student's t; "" of fewer than two values.

  >>> mean_interval([1.0, 2.0, 3.0]), mean_interval([1.0])
  ('-0.5 to 4.5', '')
  """
  if len(values) < 2:
    return ""
  low, high = _ends(values)
  return f"{low:.{digits}f} to {high:.{digits}f}"


def _ends(values: Sequence[float] | pd.Series) -> tuple[float, float]:
  from scipy import stats

  half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
  mean = statistics.mean(values)
  return mean - half, mean + half


def source_sizes(records: Sequence[Record]) -> str:
  """Returns the numbers of source examples that occur, such as "37,172"."""
  return " or ".join(f"{size:,}" for size in sorted({record["metrics"]["num_source"] for record in records})) or "No"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Returns a table; the first column to the left, numbers to the right.

  >>> print(markdown(["method", "%"], [["a", "1.0"]]))
  | method | % |
  |---|--:|
  | a | 1.0 |
  """

  def line(cells):
    return f"| {' | '.join(cells)} |"

  return "\n".join([line(header), "|---|" + "--:|" * (len(header) - 1), *map(line, rows)])


def write(
  path: pathlib.Path,
  *parts: tuple[str, str],
  records: Sequence[Record] = (),
  methods: Mapping[str, Method] = types.MappingProxyType({}),
) -> None:
  """Writes a file of tables, each under a line that says what it holds.

  Args:
    path: the file.
    *parts: of each table what it holds, and the table.
    records: what they are made of; the end of the file says where these are from.
    methods: and how many settings of these were tried.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  notes = filter(None, (provenance.origin(records), provenance.tries(methods)))
  paragraphs = [*(f"{caption}:\n\n{table}" for caption, table in parts), *notes]
  path.write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")
