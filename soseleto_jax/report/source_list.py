"""The list of the source's examples, most suspect first: what stands in it, and how it is written and read.

Libraries that are slow to import, or that not everybody has (pandas, pyarrow), come in where they are needed.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from soseleto_jax import storage
from soseleto_jax.report import source_weights

if TYPE_CHECKING:
  import pandas as pd

_LOGGER = logging.getLogger(__name__)

NAME = "source_weights"
ALPHA_FILE = "alpha.npy"
MOST_ROWS_OF_CSV = 10_000_000
_PIECE, _PIECE_OF_PARQUET = 2**17, 2**20  # rows that are handled at a time

# In the order of the file. "true_label" and "true_value" come last, where they are known; where labels are no classes,
# "value" stands for all that has to do with them, if a label is one number.
COLUMNS = {
  "rank": "int64",
  "index": "int64",
  "row": "int64",
  "file": "str",
  "label": "int64",
  "label_name": "str",
  "alpha": "float32",
  "given_probability": "float32",
  "suggested": "Int64",
  "suggested_name": "str",
  "suggested_probability": "float32",
  "true_label": "int64",
  "value": "float32",
  "true_value": "float32",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Suggestions:
  """What the trained network says of each source example, of the classes that the source has.

  Attributes:
    given_probability: float32 `[N]`, of the given label.
    suggested: int32 `[N]`, the most probable class.
    suggested_probability: float32 `[N]`, of that class.
  """

  given_probability: np.ndarray
  suggested: np.ndarray
  suggested_probability: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class SourceList:
  """The source's examples, most suspect first: by alpha, and where it ties by the probability of the given label.

  Attributes:
    alpha: float32 `[N]`, the weights.
    label: int `[N]`, the given labels.
    row: int `[N]`, the examples' places in the user's own data; None: their order here.
    file: strings `[N]`, the paths that they were read from; None where they were not.
    suggestions: of the network; None where there are none.
    true_label: int `[N]`, where known.
    class_names: one for each class; None shows numbers.
    value: numbers `[N]`, the labels where they are no classes; None where they are more than a number.
    true_value: numbers `[N]`, where known.
    known_wrong: bool `[N]`, which examples are wrong, where that is known; None: those of another `true_label`.

  Raises:
    ValueError: the arrays are empty, differ in length, or hold a weight that is not finite.
  """

  alpha: np.ndarray
  label: np.ndarray | None = None
  row: np.ndarray | None = None
  file: np.ndarray | None = None
  suggestions: Suggestions | None = None
  true_label: np.ndarray | None = None
  class_names: Sequence[str] | None = None
  value: np.ndarray | None = None
  true_value: np.ndarray | None = None
  known_wrong: np.ndarray | None = None

  def __post_init__(self):
    source_weights.check_alpha(self.alpha)
    said = {} if self.suggestions is None else vars(self.suggestions)
    columns = {"label": self.label, "row": self.row, "file": self.file, "true_label": self.true_label, **said}
    columns |= {"value": self.value, "true_value": self.true_value, "known_wrong": self.known_wrong}
    for name, column in columns.items():
      if column is not None:
        source_weights.check_column(name, column, self.alpha)

  def __len__(self) -> int:
    return len(self.alpha)

  @property
  def wrong(self) -> np.ndarray | None:
    """Which examples are wrong, bool `[N]`; None where that is not known."""
    if self.known_wrong is not None or self.true_label is None:
      return self.known_wrong
    return np.asarray(self.label != self.true_label)

  @functools.cached_property
  def order(self) -> np.ndarray:
    """The examples' indices, int64 `[N]`, most suspect first; where all else ties, ascending."""
    if self.suggestions is None:
      return np.argsort(self.alpha, kind="stable")
    return np.lexsort((self.suggestions.given_probability, self.alpha))

  def columns(self, start: int = 0, stop: int | None = None) -> dict[str, Any]:
    """Returns the rows from `start` to `stop`: arrays by the names of `COLUMNS`, None for a column that is unknown."""
    index = self.order[start:stop]
    if self.label is None:
      return self._without_classes(start, index)
    said = self.suggestions
    label, suggested = self.label[index], None if said is None else said.suggested[index]
    columns = {
      "rank": np.arange(start, start + len(index)),
      "index": index,
      "row": index if self.row is None else self.row[index],
      "file": None if self.file is None else self.file[index],
      "label": label,
      "label_name": self.names(label),
      "alpha": self.alpha[index],
      "given_probability": None if said is None else said.given_probability[index],
      "suggested": suggested,
      "suggested_name": None if suggested is None else self.names(suggested),
      "suggested_probability": None if said is None else said.suggested_probability[index],
    }
    return columns if self.true_label is None else columns | {"true_label": self.true_label[index]}

  def _without_classes(self, start, index):
    own = {"value": self.value, "true_value": self.true_value}
    return {
      "rank": np.arange(start, start + len(index)),
      "index": index,
      "row": index if self.row is None else self.row[index],
      "file": None if self.file is None else self.file[index],
      "alpha": self.alpha[index],
      **{name: np.asarray(column[index], np.float32) for name, column in own.items() if column is not None},
    }

  def names(self, label: np.ndarray) -> np.ndarray:
    """Returns the names of some labels, an array of str; of one that has no name its number."""
    table = np.array([str(name) for name in self.class_names or ()], object)
    inside = (label >= 0) & (label < len(table))
    if inside.all():
      return table[label]
    names = np.array([str(number) for number in label.tolist()], object)
    names[inside] = table[label[inside]]
    return names

  def head(self, n: int | None = None) -> pd.DataFrame:
    """Returns the first n rows, or all, as a DataFrame with the columns of `COLUMNS`."""
    return _frame(self.columns(0, _checked_count(n)))

  def write(self, workdir: str | os.PathLike) -> pathlib.Path:
    """Writes `source_weights.csv`, or above 10 million rows `source_weights.parquet`, and beside it `alpha.npy`.

    Each appears whole or not at all, and is written in pieces, so that little more than this object is in memory.
    Numbers of the CSV have the fewest digits that name their float32. Where pyarrow is missing, all lists are CSV.

    Args:
      workdir: the folder of the run; made when missing.

    Returns:
      The path of the list.
    """
    workdir = storage.as_path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    with storage.replacing(workdir / ALPHA_FILE) as path, path.open("wb") as file:
      np.save(file, np.asarray(self.alpha, np.float32))
    path, other = workdir / f"{NAME}.csv", workdir / f"{NAME}.parquet"
    write = _write_csv
    if len(self) > MOST_ROWS_OF_CSV:
      with contextlib.suppress(ImportError):
        import pyarrow.parquet  # noqa: F401

        path, other, write = other, path, _write_parquet
      if write is _write_csv:
        _LOGGER.warning("%s: pip install pyarrow writes lists as long as this one smaller, as Parquet", path)
    with storage.replacing(path) as temporary:
      write(temporary, self)
    if other.exists():
      other.unlink()
    return path

  def pieces(self, rows: int) -> Iterator[dict[str, Any]]:
    """Yields `columns`, some rows at a time."""
    for start in range(0, len(self), rows):
      yield self.columns(start, start + rows)


def find(workdir: str | os.PathLike) -> pathlib.Path | None:
  """Returns the path of a run's list, or None where it has none."""
  files = [storage.as_path(workdir) / f"{NAME}.{kind}" for kind in ("csv", "parquet")]
  return next((file for file in files if file.exists()), None)


def read(path: str | os.PathLike, n: int | None = None) -> pd.DataFrame:
  """Reads the first n rows of a list, or all, as `SourceList.head` gives them.

  Lists of runs of version 0.1.0 have fewer columns.
  """
  pd, path, n = _pandas(), storage.as_path(path), _checked_count(n)
  if path.suffix == ".csv":
    with path.open(encoding="utf-8") as file:
      present = next(csv.reader(file))
    types: Any = {name: kind for name, kind in COLUMNS.items() if name in present and kind != "str"}
    text = {name: str for name in present if COLUMNS.get(name) == "str"}
    empty = {name: [""] for name in types}  # a class may be called "NA"
    with path.open("rb") as content:
      frame = pd.read_csv(content, nrows=n, dtype=types | text, na_values=empty, keep_default_na=False)
    return frame.astype({name: COLUMNS[name] for name in present if name in COLUMNS})
  import pyarrow as pa
  import pyarrow.parquet as pq

  batches, rows = [], 0
  with path.open("rb") as content, pq.ParquetFile(content) as file:
    for batch in file.iter_batches():
      if n is not None and rows >= n:
        break
      batches.append(batch)
      rows += len(batch)
    frame = pa.Table.from_batches(batches, file.schema_arrow).slice(0, n).to_pandas()
  return frame.astype({name: COLUMNS[name] for name in frame.columns})


def left_out_line(left_out: Mapping[str, int]) -> str:
  """Returns what to say of the examples that are not in the source, such as "3 of other classes; 1 unreadable"."""
  return "; ".join(f"{count:,} {reason}" for reason, count in left_out.items())


def _write_csv(path, listed):
  with path.open("w", encoding="utf-8", newline="") as file:
    writer = csv.writer(file, lineterminator="\n")
    for number, columns in enumerate(listed.pieces(_PIECE)):
      if not number:
        writer.writerow(columns)
      count = len(columns["rank"])
      writer.writerows(zip(*(_text(column, count) for column in columns.values()), strict=True))


def _text(column, count):
  if column is None:
    return [""] * count
  # NumPy's text of a float32 has the fewest digits that name it.
  return (column.astype(str) if column.dtype == np.float32 else column).tolist()


def _write_parquet(path, listed):
  import pyarrow as pa
  import pyarrow.parquet as pq

  kinds = {"str": pa.string(), "float32": pa.float32()}
  known = listed.columns(0, 0)
  columns = [name for name in COLUMNS if name in known]
  schema = pa.schema([(name, kinds.get(COLUMNS[name], pa.int64())) for name in columns])
  with pq.ParquetWriter(path, schema) as writer:
    for piece in listed.pieces(_PIECE_OF_PARQUET):
      count = len(piece["rank"])
      arrays = [_arrow(piece[field.name], field.type, count) for field in schema]
      writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _arrow(column, kind, count):
  import pyarrow as pa

  if pa.types.is_string(kind):
    return pa.array([""] * count if column is None else column.tolist(), kind)
  return pa.nulls(count, kind) if column is None else pa.array(column.astype(kind.to_pandas_dtype(), copy=False), kind)


def _frame(columns):
  pd = _pandas()
  count = len(columns["rank"])
  empty = {"str": "", "Int64": pd.NA, "float32": np.nan}
  return pd.DataFrame({
    name: pd.Series([empty[COLUMNS[name]]] * count if column is None else column.tolist(), dtype=COLUMNS[name])
    for name, column in columns.items()
  })  # fmt: skip


def _pandas():
  try:
    import pandas
  except ImportError as error:
    raise ImportError("suspects() returns a DataFrame of pandas, which is not installed: pip install pandas") from error
  return pandas


def _checked_count(n):
  if n is not None and (isinstance(n, bool) or n != int(n) or n < 0):
    raise ValueError(f"n={n!r}: give a number of examples, at least 0, or None for all")
  return n
