"""What a caller gives in place of what a config names."""

import dataclasses
import functools
import hashlib
import os
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from soseleto_jax.data.selection import Examples
from soseleto_jax.methods.base import MakeMethod
from soseleto_jax.models.losses import Loss
from soseleto_jax.run.evaluation import Predict

_LIBRARIES = ("jax", "flax", "optax", "chex")

Evaluate = Callable[[Predict, Mapping[str, Examples]], Mapping[str, float]]


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
  """What a caller gives in place of what the config names; None is the config's.

  Attributes:
    network: see `soseleto_jax.models.network.as_network`.
    params: a pytree, or the folder of an Orbax checkpoint: see `soseleto_jax.models.pretrained.start_from`.
    augment: {"source": f, "target": g}, either or both, f(key, x [B, H, W, C]) -> x, before normalisation.
    optimizer: any optax transformation.
    method: `(setup, **config.method_options) -> Method`.
    loss: `(outputs, label) -> float32 [B]`.
    evaluators: `f(predict, sets) -> {name: number}`: see `soseleto_jax.train.train_and_evaluate`.
  """

  network: Any = None
  params: Any = None
  augment: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] | None = None
  optimizer: optax.GradientTransformation | None = None
  method: MakeMethod | None = None
  loss: Loss | None = None
  evaluators: Sequence[Evaluate] = ()

  def names(self) -> dict[str, str]:
    """Returns what was given, by name: two runs with other names do not compute the same."""
    doors = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)[:-1]}
    return {door: _name(value) for door, value in doors.items() if value is not None}

  def settings(self) -> dict[str, str]:
    """Returns, by name, a digest of the plain values in what was given: options, fields, what functions close over.

    What is in arrays, lists and the like, and in functions of JAX's libraries, does not count.
    """
    doors = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)[:-1]}
    given = {door: value for door, value in doors.items() if value is not None and door != "params"}
    return {door: hashlib.sha256(repr(_plain(value, ())).encode()).hexdigest() for door, value in given.items()}


def _plain(value: Any, above: tuple[int, ...]) -> Any:
  """Returns the plain values in an object, nested as in the object; `above` are the objects that it lies in."""
  if value is None or isinstance(value, (bool, int, float, complex, str, bytes, os.PathLike, np.generic, np.dtype)):
    return str(value)
  if id(value) in above:
    return "itself"
  above = (*above, id(value))
  parts: Any = ()
  if isinstance(value, functools.partial):
    parts = (value.func, value.args, value.keywords)
  elif isinstance(value, Mapping):
    return [(str(key), _plain(value[key], above)) for key in sorted(value, key=str)]
  elif isinstance(value, tuple):
    parts = value
  elif isinstance(value, types.MethodType):
    parts = (value.__func__, value.__self__)
  elif isinstance(value, types.FunctionType):
    if value.__module__.split(".")[0] not in _LIBRARIES:
      cells = [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
      parts = (value.__defaults__, value.__kwdefaults__, *cells)
  elif dataclasses.is_dataclass(value) and not isinstance(value, type):
    parts = tuple(getattr(value, field.name, None) for field in dataclasses.fields(value))
  return [_name(value), *(_plain(part, above) for part in parts)]


def _name(value):
  """What to call an object given by a caller."""
  if isinstance(value, (str, os.PathLike)):
    return str(value)
  if isinstance(value, functools.partial):
    options = [
      _name(value.func),
      *map(repr, value.args),
      *(f"{key}={option!r}" for key, option in value.keywords.items()),
    ]
    return f"partial({', '.join(options)})"
  if isinstance(value, Mapping):
    return ", ".join(f"{key}: {_name(item)}" for key, item in sorted(value.items()) if callable(item)) or "a pytree"
  named = value if hasattr(value, "__qualname__") else type(value)
  return f"{named.__module__}.{named.__qualname__}"
