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

STORED = ("h5py", "zarr")
_CONTRACT = "a set has a shape, a NumPy dtype, a length, and gives the rows of integers [n] as an array [n, ...]"


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
    found = np.asarray(self._base[rows])
    if found.shape != (len(rows), *self.shape[1:]):
      raise ValueError(
        f"a set of shape {tuple(self.shape)} gave {found.shape} for {len(rows)} of its rows; {_CONTRACT}"
      )
    return found.astype(self.dtype, copy=False)

  def take(self, index: np.ndarray) -> "Rows":
    """Returns the rows of this view at an index (integers or a mask)."""
    rows = np.arange(len(self)) if self._rows is None else self._rows
    return Rows(self._base, rows[index], self.dtype)


class _Stored:
  """An array of h5py or Zarr, which take their rows in order and each once."""

  def __init__(self, base: Any):
    self._base = getattr(base, "oindex", base)
    self.dtype, self.shape = np.dtype(base.dtype), tuple(base.shape)

  def __len__(self) -> int:
    return self.shape[0]

  def __getitem__(self, index: np.ndarray) -> np.ndarray:
    rows, places = np.unique(index, return_inverse=True)
    return np.asarray(self._base[rows])[places]


def as_set(x: Any) -> Any:
  """Returns a set on disk as one that gives what it says; one of NumPy, or of this package, as it is.

  Raises:
    ValueError: its shape, dtype and length do not fit together, or are none.
  """
  if isinstance(x, (np.ndarray, Rows)) or type(x).__module__.startswith("soseleto_jax."):
    return x
  if type(x).__module__.split(".")[0] in STORED:
    x = _Stored(x)
  try:
    dtype, shape = np.dtype(x.dtype), tuple(int(size) for size in x.shape)
    if not shape or len(x) != shape[0]:
      raise ValueError(f"it has shape {shape} and length {len(x)}")
    return Rows(x, dtype=dtype)
  except (TypeError, AttributeError, ValueError, LookupError) as error:
    raise ValueError(f"a set of type {type(x).__name__} cannot be read: {error}; {_CONTRACT}") from error


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
