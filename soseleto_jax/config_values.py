"""Checks of a config's values that hold for every field, whatever it is for."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

# Infinity in these is "at the end alone".
_MAY_BE_INFINITE = ("eval_every_epochs", "checkpoint_every_epochs")
_LARGEST = {
  "num_epochs": 2**31 - 1,
  "num_steps": 2**31 - 1,
  "batch_size": 2**24,
  "target_batch_size": 2**24,
  "eval_batch_size": 2**24,
}
# What the elements of a field may be; the data's are checked with the data.
_ELEMENTS = {
  "optimizer.drop_epochs": ((int, float), "epochs, such as (20, 30)"),
  "alpha.params": ((str,), "names of layers"),
  "alpha.transforms": ((str,), "names"),
}


def check(fields: Mapping[str, Any]) -> None:
  """Raises ValueError for a number that is not finite, a text that no file can hold, and elements of another type.

  Args:
    fields: values by their dotted names.
  """
  for field, value in fields.items():
    for part in _parts(value):
      if isinstance(part, float):
        _check_finite(field, value, part)
      if isinstance(part, str):
        _check_text(field, part)
    if field in _LARGEST and value > _LARGEST[field]:
      raise ValueError(f"config.{field}={value!r}: give at most {_LARGEST[field]}")
    if field in _ELEMENTS:
      kinds, what = _ELEMENTS[field]
      if not isinstance(value, (list, tuple)):
        raise ValueError(f"config.{field}={value!r}: give {what}, or ()")
      if not all(isinstance(part, kinds) and not isinstance(part, bool) for part in value):
        raise ValueError(f"config.{field}={value!r}: give {what}")


def _parts(value) -> Iterable[Any]:
  if isinstance(value, Mapping):
    for part in value.values():
      yield from _parts(part)
  elif isinstance(value, (list, tuple)):
    for part in value:
      yield from _parts(part)
  else:
    yield value


def _check_finite(field, value, part):
  with np.errstate(over="ignore"):
    if np.isfinite(np.float32(part)) or (field in _MAY_BE_INFINITE and part > 0):
      return
  raise ValueError(f"config.{field}={value!r}: give a finite number, below 3.4e38")


def _check_text(field, text):
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise ValueError(f"config.{field}={text!r}: no UTF-8 text; write it so") from error
  if "\0" in text:
    raise ValueError(f"config.{field}={text!r}: a text with a zero byte; take it out")
