"""Labels of any kind as numbers from 0, with the names that they stand for."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Names = tuple[str, ...]

# Whole numbers that lie closer together than this are counted rather than sorted.
_MOST_COUNTED = 2**20


def encode(field: str, labels: Any) -> tuple[np.ndarray, Names]:
  """Returns labels as numbers, and the name of each.

  Args:
    field: what to call them in messages.
    labels: `[N]` strings, whole numbers, bools, or a pandas Categorical; a list, an array, a Series.

  Returns:
    int32 `[N]` in 0..K-1, and the K names of those that occur: numbers by value, categories in their own order, other
    names by the alphabet.

  Raises:
    ValueError: labels that are missing, whole numbers written as floats, one-hot rows, or of several kinds.
  """
  categories = getattr(getattr(labels, "dtype", None), "categories", None)
  if categories is not None:
    return _encode_categories(field, labels, categories)
  values = np.asarray(labels)
  _check_one_column(field, values)
  if values.dtype.kind == "b":
    return _occurring(values.astype(np.int64), ("False", "True"))
  if values.dtype.kind in "iu":
    return _encode_integers(values)
  if values.dtype.kind not in "OUST":
    raise ValueError(f"{field} have dtype {values.dtype}; give strings, whole numbers or bools{_floats_cure(values)}")
  return _encode_objects(field, values)


def meanings(labels: Any, names: Names) -> dict[str, Any]:
  """Returns, for the names that `encode` gave labels, the labels themselves: strings, Python ints or bools."""
  categories = getattr(getattr(labels, "dtype", None), "categories", None)
  if categories is not None:
    return {str(category): category for category in categories.tolist()}
  first = np.asarray(labels)[0]
  if isinstance(first, (bool, np.bool_)):
    return {name: name == "True" for name in names}
  return {name: int(name) if isinstance(first, (int, np.integer)) else name for name in names}


def ordered(names: Iterable[str]) -> Names:
  """Returns names by value where all are whole numbers ("2" before "10"), else by the alphabet."""
  names = list(names)
  return tuple(sorted(names, key=int) if all(map(is_number, names)) else sorted(names))


def same_spelling(names: Sequence[str], others: Sequence[str]) -> Names:
  """Returns names as `others` spells them: where all are whole numbers, "02" of the one is "2" of the other."""
  if not all(map(is_number, (*names, *others))):
    return tuple(names)
  spelling = {int(name): name for name in others}
  return tuple(spelling.get(int(name), name) for name in names)


def union(first: Sequence[str], second: Sequence[str]) -> Names:
  """Returns the names of two lists: in order where both are, else those of the first and then the second's own."""
  names = (*first, *(name for name in second if name not in set(first)))
  in_order = tuple(first) == ordered(first) and tuple(second) == ordered(second)
  return ordered(names) if in_order else names


def is_number(name: str) -> bool:
  """Whether a name is a whole number."""
  return name.removeprefix("-").isascii() and name.removeprefix("-").isdigit()


def _check_one_column(field, values):
  if values.ndim == 1 and len(values):
    return
  cure = "give one for each example, [N]"
  if values.ndim == 2 and values.shape[1] == 1:
    cure = "label.ravel() makes one column of them"
  elif values.ndim == 2 and values.dtype.kind in "biuf" and np.all(np.sum(values != 0, axis=1) == 1):
    cure = "one-hot rows become numbers by label.argmax(axis=1)"
  raise ValueError(f"{field} have shape {values.shape}; {cure}")


def _floats_cure(values):
  if values.dtype.kind != "f":
    return ""
  missing = np.flatnonzero(np.isnan(values))
  if missing.size:
    return f"; {missing.size} are missing, the first of example {missing[0]}: leave these examples out"
  if np.all(values == np.round(values)):
    return "; these are whole numbers: label.astype(int) converts them"
  return "; these are no whole numbers, so no classes"


def _encode_categories(field, labels, categories):
  codes = np.asarray(getattr(labels, "cat", labels).codes)
  _check_one_column(field, codes)
  _check_none_missing(field, codes < 0)
  return _occurring(codes.astype(np.int64), tuple(str(category) for category in categories))


def _encode_integers(values):
  low, high = int(values.min()), int(values.max())
  if high - low < _MOST_COUNTED:
    codes = values - values.min() if values.dtype.kind == "u" else values.astype(np.int64) - low
    return _occurring(codes.astype(np.int64), range(low, high + 1))
  found, codes = np.unique(values, return_inverse=True)
  return codes.astype(np.int32), tuple(str(value) for value in found)


def _occurring(codes, names):
  """Drops the names that no code stands for."""
  found = np.flatnonzero(np.bincount(codes, minlength=len(names)))
  place = np.zeros(len(names), np.int32)
  place[found] = np.arange(len(found))
  return place[codes], tuple(str(names[code]) for code in found)


def _encode_objects(field, values):
  if values.dtype.kind == "S":
    values = np.char.decode(values, "utf-8")
  rows = values.tolist()
  _check_none_missing(field, np.fromiter(map(_is_missing, rows), bool, len(rows)))
  kinds = {type(row) for row in rows}
  if all(issubclass(kind, (bool, np.bool_)) for kind in kinds):
    return encode(field, np.asarray(rows, bool))
  if all(issubclass(kind, (int, np.integer)) and kind is not bool for kind in kinds):
    return encode(field, np.asarray(rows, np.int64))
  if not all(issubclass(kind, str) for kind in kinds):
    found = ", ".join(sorted(kind.__name__ for kind in kinds))
    raise ValueError(f"{field} are of kind {found}; give strings, whole numbers or bools, all of one kind")
  names = ordered(set(rows))
  place = {name: number for number, name in enumerate(names)}
  return np.fromiter((place[row] for row in rows), np.int32, len(rows)), names


def _is_missing(row):
  return row is None or type(row).__name__ in ("NAType", "NaTType") or isinstance(row, float) and row != row


def _check_none_missing(field, missing):
  rows = np.flatnonzero(missing)
  if rows.size:
    raise ValueError(f"{field}: {rows.size} are missing, the first of example {rows[0]}; leave these examples out")
