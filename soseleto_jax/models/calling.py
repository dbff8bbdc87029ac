"""How a network of anybody's is called: which of its arguments say that it is in training."""

import inspect
from collections.abc import Callable
from typing import Any

NO_FEATURES = "this method needs the features of a network: give a Flax module that returns them [B, F]"
_IN_TRAINING = {"train": True, "training": True, "is_training": True, "deterministic": False}


def parameter_names(function: Callable[..., Any]) -> list[str]:
  """Returns the names of a function's parameters, in order."""
  return list(inspect.signature(function).parameters)


def mode_options(function: Callable[..., Any], train: bool) -> dict[str, bool]:
  """Returns the arguments that put a call in training or in evaluation mode: none for a function that has none.

  >>> mode_options(lambda x, *, deterministic: x, train=True)
  {'deterministic': False}
  """
  return {name: _IN_TRAINING[name] == train for name in parameter_names(function) if name in _IN_TRAINING}
