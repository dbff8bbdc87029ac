"""A network of one's own, by its import path: `my_package.nets:Wide`."""

import inspect
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from soseleto_jax.core import import_path
from soseleto_jax.core.suggest import did_you_mean
from soseleto_jax.models.function_network import has_init_and_apply

_OURS = ("rngs", "parent", "name")  # arguments that are not the config's to give


def build(path: str, options: Mapping[str, Any], dtype: jnp.dtype, seed: int) -> Any:
  """Calls the class or function that an import path names.

  Args:
    path: a module that can be imported, a colon, and a class or function in it that returns a network as
      `soseleto_jax.models.network.as_network` takes it.
    options: its arguments.
    dtype: an argument as well, where it takes one.
    seed: of the `nnx.Rngs` that it gets, where it takes `rngs`.

  Raises:
    ValueError: what cannot be found, does not fit, or is no network.
  """
  factory = _find(path)
  network = factory(**_arguments(path, _parameters(factory), options, dtype, seed))
  if isinstance(network, type) or not (isinstance(network, (nn.Module, nnx.Module)) or has_init_and_apply(network)):
    raise ValueError(
      f"config.model.name={path!r} made {network!r}, which is no network: return a Flax module, Linen or NNX, or an "
      "object with init and apply"
    )
  return network


def _parameters(factory: Any) -> list[inspect.Parameter]:
  if isinstance(factory, type) and issubclass(factory, nnx.Module):  # hides its arguments behind a metaclass
    return list(inspect.signature(factory.__init__).parameters.values())[1:]
  return list(inspect.signature(factory).parameters.values())


def _arguments(path, parameters, options, dtype, seed):
  """Returns the arguments that a factory is called with, once they fit it."""
  any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
  named = {p.name: p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
  known = [name for name in named if name not in _OURS]
  for option, value in options.items():
    if option in _OURS or option not in known and not any_name:
      raise ValueError(
        f"config.model.{option}={value!r}: {path} has no such argument; it takes {', '.join(known) or 'none'}"
        f"{did_you_mean(option, known)}"
      )
  arguments = dict(options)
  if "dtype" in known or any_name and dtype != jnp.float32:
    arguments["dtype"] = dtype
  elif dtype != jnp.float32:
    raise ValueError(f"config.model.dtype={dtype.name!r}: {path} takes no dtype; leave it 'float32', or give it one")
  if "rngs" in named:
    arguments["rngs"] = nnx.Rngs(seed)
  for name in known:
    if name not in arguments and named[name].default is inspect.Parameter.empty:
      raise ValueError(f"config.model has no {name!r}, which {path} needs; give it by --config.model.{name}=...")
  return arguments


def _find(path):
  factory = import_path.find("config.model.name", path)
  if isinstance(factory, (nn.Module, nnx.Module)) or not callable(factory):
    raise ValueError(f"config.model.name={path!r} is {factory!r}; name a class, or a function that returns a network")
  return factory
