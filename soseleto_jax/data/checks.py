"""Checks of what a user gives to `soseleto_jax.data`: a ValueError that names the cure."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from soseleto_jax.core.suggest import did_you_mean
from soseleto_jax.data import lazy


def choice(field: str, value: str, choices: Iterable[str]) -> None:
  """Raises ValueError where `value` is not one of `choices`, suggesting the nearest."""
  choices = list(choices)
  if value not in choices:
    raise ValueError(f"{field}={value!r} is unknown; choose from {', '.join(choices)}{did_you_mean(value, choices)}")


def labels(field: str, values: np.ndarray, num_classes: int) -> None:
  """Raises ValueError where labels are not integers `[N]` in 0..num_classes-1."""
  if values.ndim != 1 or values.dtype.kind not in "iu":
    raise ValueError(f"{field} has shape {values.shape} and dtype {values.dtype}; give integers of shape [N]")
  outside = np.flatnonzero((values < 0) | (values >= num_classes))
  if outside.size:
    raise ValueError(
      f"{field}[{outside[0]}]={values[outside[0]]} is outside the {num_classes} classes "
      f"0..{num_classes - 1} ({outside.size} such labels); remove or relabel these examples"
    )


def no_empty_class(field: str, values: np.ndarray, num_classes: int, cure: str) -> None:
  """Raises ValueError where a class has no example among the labels `values`."""
  empty = np.flatnonzero(np.bincount(values, minlength=num_classes) == 0)
  if empty.size:
    raise ValueError(f"{field} has no example of class {empty[0]}; {cure}")


def pixels(field: str, x: Any) -> None:
  """Raises ValueError where x is no numeric `[N, H, W, C]` or `[N, D]`, is empty, or not finite."""
  if len(x.shape) not in (2, 4) or 0 in x.shape or x.dtype.kind not in "uif":
    raise ValueError(
      f"{field} has shape {x.shape} and dtype {x.dtype}; give numbers of shape [N, H, W, C] "
      "(add a last axis to images of one channel) or [N, D]"
    )
  if x.dtype.kind == "f":
    finite = [np.isfinite(part).reshape(len(part), -1).all(axis=1) for part in lazy.chunks(x)]
    broken = np.flatnonzero(~np.concatenate(finite))
    if broken.size:
      raise ValueError(
        f"{field}[{broken[0]}] has pixels that are not finite ({broken.size} such examples); repair or remove them"
      )


def names_match(names: tuple[str, ...], others: tuple[str, ...]) -> bool:
  """Whether two lists can name the same classes; numbers match any names."""
  numbers = tuple(str(c) for c in range(len(names)))
  return len(names) == len(others) and (names == others or numbers in (names, others))


def same_classes(source: tuple[str, ...], target: tuple[str, ...]) -> None:
  """Raises ValueError where two sets cannot share classes."""
  if not names_match(source, target):
    raise ValueError(
      f"config.data.shared_classes=True but source classes are {source} and target classes are "
      f"{target}; choose the same `classes` on both sides, or shared_classes=False"
    )


@contextlib.contextmanager
def prefix(text: str) -> Iterator[None]:
  """Puts `text` (the config field) before the message of a ValueError raised inside."""
  try:
    yield
  except ValueError as error:
    raise ValueError(f"{text}{error}") from error
