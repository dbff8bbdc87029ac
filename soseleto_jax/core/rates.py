"""A rate of a step: a number, or an optax schedule of the step."""

from collections.abc import Callable
from typing import Any

import jax

from soseleto_jax.core import calls

Rate = float | Callable[[Any], Any]


def check_rate(name: str, rate: Any) -> None:
  """Raises ValueError for what is neither a number of at least 0 nor a schedule; arrays may be traced."""
  if callable(rate):
    calls.check_takes(rate, ("step",), name, "a schedule is a function of the step")
  elif not calls.is_number(rate):
    raise ValueError(f"{name}={rate!r}: give a number, 0 or more, or a schedule, a function of the step")


def at(rate: Rate, step: jax.Array) -> Any:
  """The rate at a step."""
  return rate(step) if callable(rate) else rate
