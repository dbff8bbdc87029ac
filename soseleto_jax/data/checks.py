"""Checks of what a user gives to `soseleto_jax.data`: a ValueError that names the cure."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from soseleto_jax.core.suggest import did_you_mean
from soseleto_jax.data import lazy
from soseleto_jax.data.labels import is_number


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


def texts(field: str, names: Iterable[Any]) -> None:
  """Raises ValueError for names that are no texts, or such as no file can hold."""
  for name in names:
    try:
      name.encode()
    except (AttributeError, UnicodeEncodeError) as error:
      raise ValueError(f"{field}: {name!r} is no UTF-8 text; give such") from error


def no_empty_class(field: str, values: np.ndarray, class_names: Sequence[str], cure: str) -> None:
  """Raises ValueError where a class has no example among the labels `values`, or there is one class alone."""
  empty = np.flatnonzero(np.bincount(values, minlength=len(class_names)) == 0)
  if empty.size:
    raise ValueError(f"{field} has no example of {called(class_names, empty)}; {cure}")
  if len(class_names) < 2:
    raise ValueError(
      f"{field} has one class alone, {class_names[0]!r}; there is nothing to tell apart: give two or more"
    )


def called(class_names: Sequence[str], numbers: np.ndarray) -> str:
  """Names some classes: "class 3 ('cat')", or "classes 'cat', 'dog'"."""
  if len(numbers) > 1:
    return f"classes {listed([class_names[c] for c in numbers])}"
  name = class_names[numbers[0]]
  return f"class {numbers[0]}" + ("" if name == str(numbers[0]) else f" ({name!r})")


def listed(names: Sequence[str], most: int = 8) -> str:
  """Lists names, in quotes."""
  more = f" and {len(names) - most} more" if len(names) > most else ""
  return ", ".join(map(repr, names[:most])) + more


def numbers(field: str, values: np.ndarray, shape: tuple[int, ...]) -> None:
  """Raises ValueError where labels that are no classes are not finite numbers `[N, *shape]`."""
  if values.ndim < 1 or values.shape[1:] != shape or values.dtype.kind not in "biuf":
    raise ValueError(
      f"{field} has shape {values.shape} and dtype {values.dtype}; give numbers of shape {('N', *shape)}"
    )
  broken = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
  if broken.size:
    raise ValueError(f"{field}[{broken[0]}] is not finite ({broken.size} such examples); repair or remove them")


def flags(field: str, values: np.ndarray) -> None:
  """Raises ValueError where values are not bools `[N]`."""
  if values.ndim != 1 or values.dtype != bool:
    raise ValueError(f"{field} has shape {values.shape} and dtype {values.dtype}; give bools of shape [N]")


def pixels(field: str, x: Any, any_shape: bool = False) -> None:
  """Raises ValueError where x is no numeric `[N, H, W, C]` or `[N, D]`, or of any shape, is empty, or not finite."""
  gray = len(x.shape) == 3 and x.dtype == np.uint8
  of_shape = len(x.shape) > 0 if any_shape else len(x.shape) in (2, 3, 4) and not gray
  if not of_shape or 0 in x.shape or x.dtype.kind not in "uif":
    raise ValueError(
      f"{field} has shape {x.shape} and dtype {x.dtype}; give numbers of shape [N, H, W, C] "
      "(add a last axis to images of one channel: x[..., None]), [N, D], or sequences [N, T, D]"
    )
  if x.dtype.kind == "f":
    finite = [np.isfinite(part).reshape(len(part), -1).all(axis=1) for part in lazy.chunks(x)]
    broken = np.flatnonzero(~np.concatenate(finite))
    if broken.size:
      raise ValueError(
        f"{field}[{broken[0]}] has pixels that are not finite ({broken.size} such examples); repair or remove them"
      )


def names_match(names: tuple[str, ...], others: tuple[str, ...]) -> bool:
  """Whether two lists can name the same classes; the numbers from 0 match any names that are no numbers."""
  if len(names) != len(others) or names == others:
    return names == others
  numbers = tuple(str(c) for c in range(len(names)))
  return numbers in (names, others) and not all(map(is_number, (*names, *others)))


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
