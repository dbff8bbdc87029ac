"""Examples and labels as a Python program holds them: arrays, lists, data frames, memory maps."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from soseleto_jax.data import checks, labels, lazy
from soseleto_jax.data.selection import Subset


def read(field: str, x: Any, label: Any, true_label: Any = None, *, positions: int = 0) -> Subset:
  """Returns examples and their labels as a set.

  Args:
    field: "source", "target", ...: what to call them in messages.
    x: `[N, ...]` numbers: an array, a list, a DataFrame of numeric columns, a Series of vectors; uint8 is kept, other
      numbers become float32. A memory map, or another set of `soseleto_jax.data.lazy`, stays on disk.
    label: `[N]`, see `soseleto_jax.data.labels.encode`.
    true_label: the right ones `[N]`, if known.
    positions: where the labels are whole numbers in 0..K-1 that number classes named elsewhere, K; 0: they are names.

  Raises:
    ValueError: labels or examples that cannot be used, or as many of the one as there are not of the other; the index
      of a DataFrame and of its labels that differ.
  """
  _check_index(field, x, label)
  examples: dict[str, Any] = {"x": _numbers(field, x)}
  given = {"label": label} if true_label is None else {"label": label, "true_label": true_label}
  encoded = {}
  for column, values in given.items():
    # NumPy would ask anything else that gives items for one after the other, perhaps without end.
    if not (hasattr(values, "__array__") or isinstance(values, Sequence)) or np.ndim(values) == 0:
      raise ValueError(f"{field} {column}s are of type {type(values).__name__}; give one for each example, [N]")
    if np.ma.is_masked(values):
      raise ValueError(f"{field} {column}s have masked elements; leave these examples out")
    if len(values) != len(examples["x"]):
      raise ValueError(
        f"{field} has {len(examples['x'])} examples but {len(values)} of {column}; give one label for each example"
      )
    encoded[column] = labels.encode(f"{field} {column}s", values)
  names = encoded["label"][1]
  if true_label is not None:
    names = labels.union(names, encoded["true_label"][1])
  if positions:
    examples |= {column: _whole(values) for column, values in given.items()}
    names = tuple(map(str, range(positions)))
  else:
    place = {name: number for number, name in enumerate(names)}
    for column, (codes, own) in encoded.items():
      examples[column] = np.array([place[name] for name in own], np.int32)[codes]
  examples["row"] = np.arange(len(examples["label"]), dtype=np.int32)
  meanings = {} if positions else labels.meanings(label, encoded["label"][1])
  return Subset(examples, names, f"{field} arrays", "all", meanings=meanings or None)


def _whole(values):
  values = np.asarray(values)
  if values.dtype.kind not in "iub":
    raise ValueError(f"labels have dtype {values.dtype}; give whole numbers, the places of their classes' names")
  return values.astype(np.int32)


def _check_index(field, x, label):
  own, others = getattr(x, "index", None), getattr(label, "index", None)
  if hasattr(own, "equals") and hasattr(others, "equals") and len(own) == len(others) and not own.equals(others):
    raise ValueError(
      f"{field}: the index of the examples and that of the labels differ, so that rows would be mixed up; take both "
      "from one DataFrame, or give label.loc[x.index] or, where the order is right, label.to_numpy()"
    )


def _numbers(field, x):
  if hasattr(x, "toarray"):
    raise ValueError(f"{field} x is a sparse matrix; x.toarray(), or a TruncatedSVD of it, is what a network can read")
  if hasattr(x, "select_dtypes"):
    x = _columns(field, x)
  elif hasattr(x, "to_numpy"):
    x = x.to_numpy()
  stored = type(x).__module__.split(".")[0] in lazy.STORED
  if not stored and (hasattr(x, "__array__") or not hasattr(x, "shape")):
    x = _array(field, x)
  with checks.prefix(f"{field} x: "):
    x = lazy.as_set(x)
  if not x.shape:
    raise ValueError(f"{field} x is one number or object, {type(x[()]).__name__}; give an array [N, ...]")
  if x.dtype == object:
    x = _stacked(field, x)
  if x.dtype.kind in "uif" and x.dtype not in (np.uint8, np.float32):
    x = lazy.Rows(x, dtype=np.float32) if lazy.is_lazy(x) else x.astype(np.float32)
  return x


def _array(field, x):
  try:
    x = np.asanyarray(x)  # which leaves a memory map one
  except (TypeError, ValueError, OverflowError) as error:  # such as lists of unequal length
    raise ValueError(f"{field} x is no array of numbers: {error}") from error
  if isinstance(x, np.ma.MaskedArray):
    if np.ma.is_masked(x):
      raise ValueError(f"{field} x has masked elements; x.filled(...) says what they are to be")
    x = x.filled()
  return x


def _columns(field, frame):
  others = [str(name) for name in frame.columns if frame[name].dtype.kind not in "uifb"]
  if others:
    raise ValueError(
      f"{field} x: the columns {', '.join(map(repr, others[:8]))} hold no plain numbers; drop them, or make numbers of "
      "them with pandas.get_dummies(x)"
    )
  return frame.to_numpy(np.float32)


def _stacked(field, x):
  try:
    stacked = np.stack([np.asarray(row, np.float32) for row in x])
  except (TypeError, ValueError) as error:
    raise ValueError(f"{field} x holds no numbers, or examples of unequal shape: {error}") from error
  return stacked
