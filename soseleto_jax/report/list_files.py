"""The files of the list of the source's examples, as CSV or Parquet: their columns, writing and reading.

Libraries that are slow to import, or that not everybody has (pandas, pyarrow), come in where they are needed.
"""

from __future__ import annotations

import contextlib
import csv
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from soseleto_jax import storage

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


class Listed(Protocol):
  """What is written: a `SourceList`."""

  @property
  def alpha(self) -> np.ndarray:
    """float32 `[N]`, the weights."""

  def __len__(self) -> int: ...

  def columns(self, start: int = 0, stop: int | None = None) -> dict[str, Any]:
    """Returns some rows, arrays by the names of `COLUMNS`, None for a column that is unknown."""


def write(workdir: str | os.PathLike, listed: Listed) -> pathlib.Path:
  """Writes a list, and beside it `alpha.npy`; see `SourceList.write`."""
  workdir = storage.as_path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  with storage.replacing(workdir / ALPHA_FILE) as path, path.open("wb") as file:
    np.save(file, np.asarray(listed.alpha, np.float32))
  path, other = workdir / f"{NAME}.csv", workdir / f"{NAME}.parquet"
  write_list = _write_csv
  if len(listed) > MOST_ROWS_OF_CSV:
    with contextlib.suppress(ImportError):
      import pyarrow.parquet  # noqa: F401

      path, other, write_list = other, path, _write_parquet
    if write_list is _write_csv:
      _LOGGER.warning("%s: pip install pyarrow writes lists as long as this one smaller, as Parquet", path)
  with storage.replacing(path) as temporary:
    write_list(temporary, listed)
  if other.exists():
    other.unlink()
  return path


def find(workdir: str | os.PathLike) -> pathlib.Path | None:
  """Returns the path of a run's list, or None where it has none."""
  files = [storage.as_path(workdir) / f"{NAME}.{kind}" for kind in ("csv", "parquet")]
  return next((file for file in files if file.exists()), None)


def read(path: str | os.PathLike, n: int | None = None) -> pd.DataFrame:
  """Reads the first n rows of a list, or all, as `SourceList.head` gives them.

  Lists of runs of version 0.1.0 have fewer columns.
  """
  pd, path, n = _pandas(), storage.as_path(path), checked_count(n)
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


def _write_csv(path, listed):
  with path.open("w", encoding="utf-8", newline="") as file:
    writer = csv.writer(file, lineterminator="\n")
    for number, columns in enumerate(_pieces(listed, _PIECE)):
      if not number:
        writer.writerow(columns)
      count = len(columns["rank"])
      writer.writerows(zip(*(_text(column, count) for column in columns.values()), strict=True))


def _pieces(listed, rows) -> Iterator[dict[str, Any]]:
  for start in range(0, len(listed), rows):
    yield listed.columns(start, start + rows)


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
    for piece in _pieces(listed, _PIECE_OF_PARQUET):
      count = len(piece["rank"])
      arrays = [_arrow(piece[field.name], field.type, count) for field in schema]
      writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _arrow(column, kind, count):
  import pyarrow as pa

  if pa.types.is_string(kind):
    return pa.array([""] * count if column is None else column.tolist(), kind)
  return pa.nulls(count, kind) if column is None else pa.array(column.astype(kind.to_pandas_dtype(), copy=False), kind)


def frame(columns: Mapping[str, Any]) -> pd.DataFrame:
  """Returns columns, as `Listed.columns` gives them, as a DataFrame with the types of `COLUMNS`."""
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


def checked_count(n: int | None) -> int | None:
  """Returns n; raises ValueError where it is neither a number of examples nor None."""
  if n is not None and (isinstance(n, bool) or n != int(n) or n < 0):
    raise ValueError(f"n={n!r}: give a number of examples, at least 0, or None for all")
  return n
