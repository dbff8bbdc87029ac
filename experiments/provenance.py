"""What a record was computed by, and what a file of tables says of its records."""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from soseleto_jax.methods.base import version_of
from soseleto_jax.run import trial
from soseleto_jax.run.given import Given

UNCOUNTED = "not counted"


def versions(config: ConfigDict, train: Callable[..., Any]) -> dict[str, int]:
  """Returns the `VERSION` of a method's and of a training function's module, by its name; 1 where it has none.

  That of the trial stands beside them where the run takes one.

  A record counts while these are what it was computed by. A module without one, or a record of before, has 1.

  Args:
    config: of the run.
    train: of `runs.Run`.
  """
  while isinstance(train, functools.partial):
    train = train.func
  module = sys.modules[getattr(train, "__module__", type(train).__module__)]
  name = module.__name__ if module.__spec__ is None else module.__spec__.name  # also of what `python -m` runs
  counted = {f"method {config.method}": version_of(config.method), name: getattr(module, "VERSION", 1)}
  if trial.is_wanted(config, Given()):
    counted["trial"] = trial.VERSION
  return counted


def agree(record: Mapping[str, Any], current: Mapping[str, int]) -> bool:
  """Whether a record was computed by these versions."""
  recorded = record.get("versions", {})
  return all(recorded.get(module, 1) == version for module, version in current.items())


def origin(records: Sequence[Mapping[str, Any]]) -> str:
  """Returns which dates, commits and versions records are from, as a sentence or two; "" of none.

  >>> origin([{"commit": "a", "date": "2026-01-02"}, {"commit": "b", "date": "2026-01-01", "versions": {"m": 2}}])
  'From 2 records of 2026-01-01 to 2026-01-02, commits b to a (2). Versions other than 1: m 2.'
  """
  if not records:
    return ""
  written = sorted((record["date"], record["commit"]) for record in records if "date" in record)
  text = f"From {len(records)} record{'s' * (len(records) > 1)}"
  if written:
    dates = _span([date for date, _ in written])
    commits = list(dict.fromkeys(commit for _, commit in written if commit))
    text += f" of {dates}" + (f", commit{'s' * (len(commits) > 1)} {_span(commits)}" if commits else "")
    text += f" ({len(commits)})" * (len(commits) > 1)
  newer = dict.fromkeys((m, v) for record in records for m, v in record.get("versions", {}).items() if v != 1)
  others = ", ".join(f"{module} {version}" for module, version in sorted(newer))
  return f"{text}. Versions other than 1: {others or 'none'}."


def tries(methods: Mapping[str, Any]) -> str:
  """Returns how many settings were tried of each of `tables.Method`s, as a sentence; "" where none were counted."""
  counted = [f"{method.title}: {method.tries}" for method in methods.values() if method.tries is not None]
  if not counted:
    return ""
  rest = "" if len(counted) == len(methods) else f"; others: {UNCOUNTED}"
  return f"Settings tried before these, none on what is reported: {'; '.join(counted)}{rest}."


def _span(values: Sequence[str]) -> str:
  return values[0] if values[0] == values[-1] else f"{values[0]} to {values[-1]}"
