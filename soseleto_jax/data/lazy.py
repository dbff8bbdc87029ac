"""Sets that stay on disk: examples are read when a batch, or a pass in chunks, asks for them.

Such a set stands in for the array `x` of `Task.source`. It has `shape`, `dtype`, `__len__`, and `__getitem__` that
takes integers `[n]` and returns an array of those n rows: a NumPy memory map, an `Images`, or a class of your own.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # takes seconds to import, so only those who read ahead do
  import grain

FEEDS = ("auto", "resident", "streaming")

# With feed="auto", sets whose pixels take more bytes stay on disk; smaller ones live in memory and on the devices.
MOST_RESIDENT_BYTES = 2**31

# Numbers handled at once, so that temporaries, float64 too, stay small.
_CHUNK = 2**21


class Rows:
  """Some rows of a set on disk, in an order of one's own and perhaps as another dtype; itself such a set."""

  def __init__(self, base: Any, rows: np.ndarray | None = None, dtype: Any = None):
    """Sets the view up.

    Args:
      base: the set.
      rows: integers `[n]`; None: all.
      dtype: what to convert to on reading; None: the set's own.
    """
    self._base, self._rows = base, rows
    self.dtype = np.dtype(base.dtype if dtype is None else dtype)
    self.shape = (len(base) if rows is None else len(rows), *base.shape[1:])

  def __len__(self) -> int:
    return self.shape[0]

  def __getitem__(self, index: np.ndarray) -> np.ndarray:
    rows = index if self._rows is None else self._rows[index]
    return np.asarray(self._base[rows]).astype(self.dtype, copy=False)

  def take(self, index: np.ndarray) -> "Rows":
    """Returns the rows of this view at an index (integers or a mask)."""
    rows = np.arange(len(self)) if self._rows is None else self._rows
    return Rows(self._base, rows[index], self.dtype)


def is_lazy(x: Any) -> bool:
  """Whether a set stays on disk."""
  return isinstance(x, np.memmap) or not isinstance(x, np.ndarray)


def num_bytes(x: Any) -> int:
  """Bytes that a set takes, or would take, in memory."""
  return math.prod(x.shape) * np.dtype(x.dtype).itemsize


def memory_limit(feed: str, num_processes: int) -> float:
  """Bytes that a set may take in memory: `MOST_RESIDENT_BYTES` for "auto" in one process; none, or any, elsewhere."""
  if feed == "resident":
    return math.inf
  return MOST_RESIDENT_BYTES if feed == "auto" and num_processes == 1 else -1


def streams(x: Any, feed: str, num_processes: int) -> bool:
  """Whether batches of `x` are read step by step, for a value of `config.data.feed`."""
  return feed != "resident" and (is_lazy(x) or num_bytes(x) > memory_limit(feed, num_processes))


def take(x: Any, index: np.ndarray) -> Any:
  """Returns the examples at an index (integers or a mask); a set on disk stays there."""
  if not is_lazy(x):
    return x[index]
  return (x if isinstance(x, Rows) else Rows(x)).take(index)


def read_options() -> "grain.ReadOptions":
  """Threads that read ahead, each one element of a Grain data set at a time."""
  import grain

  threads = min(8, os.cpu_count() or 1)
  return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)


def chunks(x: Any) -> Iterator[np.ndarray]:
  """Yields the rows of a set in order, some at a time; a set on disk is read by threads ahead of what is asked for."""
  rows = max(1, _CHUNK // max(1, math.prod(x.shape[1:])))
  if not is_lazy(x):
    yield from (x[start : start + rows] for start in range(0, len(x), rows))
    return
  yield from reads(x, -(-len(x) // rows), lambda part: np.arange(part * rows, min((part + 1) * rows, len(x))))


def reads(x: Any, count: int, rows: Callable[[int], np.ndarray]) -> Iterator[np.ndarray]:
  """Yields the examples at `rows(0)`, ... `rows(count - 1)`, integers `[n]`; as `chunks`, a set on disk read ahead."""
  if not is_lazy(x):
    yield from (x[rows(part)] for part in range(count))
    return
  import grain

  dataset = grain.MapDataset.source(range(count)).map(lambda part: x[rows(part)]).to_iter_dataset(read_options())
  with contextlib.closing(iter(dataset)) as parts:
    yield from parts


def load(x: Any) -> np.ndarray:
  """Returns a set as an array in memory."""
  if not is_lazy(x):
    return x
  loaded, start = np.empty(x.shape, x.dtype), 0
  for part in chunks(x):
    loaded[start : start + len(part)] = part
    start += len(part)
  return loaded
