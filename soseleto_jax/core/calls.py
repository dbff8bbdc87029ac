"""Whether what was given is what it is to be: a function of certain arguments, a number."""

import inspect
import math
import numbers
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np


def check_takes(function: Any, arguments: Sequence[str], name: str, cure: str, example: str = "") -> None:
  """Raises ValueError for what cannot be called with these arguments, by position.

  Args:
    function: anything; of some functions it is not known what they take, and these pass.
    arguments: their names, for the message.
    name: what the message calls the function.
    cure: what to do about one that takes others.
    example: of what to give in place of what is no function.
  """
  wanted = f"({', '.join(arguments)})"
  if not callable(function):
    raise ValueError(f"{name}={function!r}: give a function of {wanted}{example and ', such as ' + example}")
  try:
    signature = inspect.signature(function)
  except (TypeError, ValueError):
    return
  try:
    signature.bind(*arguments)
  except TypeError as error:
    raise ValueError(f"{name}={name_of(function)} does not take {wanted}: {cure}") from error


def name_of(function: Any) -> str:
  """What a message calls a function."""
  return getattr(function, "__name__", repr(function))


def is_whole(value: Any) -> bool:
  """Whether it is a whole number, of Python or NumPy, and no bool."""
  return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
  """Whether it is a whole number, at least 1."""
  return is_whole(value) and value >= 1


def is_number(value: Any) -> bool:
  """Whether it is a finite number, 0 or more and no bool, or an array of one; or is being traced."""
  if isinstance(value, jax.core.Tracer):
    return True
  if isinstance(value, (jax.Array, np.ndarray)) and value.ndim == 0:
    value = value.item()
  return isinstance(value, numbers.Real) and not isinstance(value, bool) and 0 <= float(value) < math.inf
