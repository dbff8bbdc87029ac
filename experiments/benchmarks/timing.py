"""Timing of programs that take turns, so that whatever else the machine does meets each alike."""

import time
from collections.abc import Callable, Mapping

import jax
import numpy as np


def clock() -> tuple[str, Callable[[], float]]:
  """Returns what is measured: on CPUs the processor's time, which other programs add little to; elsewhere time."""
  if jax.default_backend() == "cpu":
    return "processor time", time.process_time
  return "time", time.perf_counter


def take_turns(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
  """Returns the seconds `[rounds]` of each call, which returns when its work is done; a first round is not counted."""
  _, now = clock()
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  for _ in range(rounds + 1):
    for name, call in calls.items():
      began = now()
      call()
      seconds[name].append(now() - began)
  return {name: np.asarray(values[1:]) for name, values in seconds.items()}


def ratio(seconds: np.ndarray, to: np.ndarray) -> float:
  """Median, over rounds, of one call's time over another's in the same round."""
  return float(np.median(seconds / to))
