"""What a caller gives in place of what a config names."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax

from soseleto_jax.data.selection import Examples
from soseleto_jax.methods.base import MakeMethod
from soseleto_jax.run.evaluation import Predict

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
    evaluators: `f(predict, sets) -> {name: number}`: see `soseleto_jax.train.train_and_evaluate`.
  """

  network: Any = None
  params: Any = None
  augment: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] | None = None
  optimizer: optax.GradientTransformation | None = None
  method: MakeMethod | None = None
  evaluators: Sequence[Evaluate] = ()

  def names(self) -> dict[str, str]:
    """Returns what was given, by name: two runs with other names do not compute the same."""
    doors = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)[:-1]}
    return {door: _name(value) for door, value in doors.items() if value is not None}


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
