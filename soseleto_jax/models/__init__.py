"""The networks: a representation by name, with one shared classifier or with two heads."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from soseleto_jax.core.suggest import did_you_mean
from soseleto_jax.models import imported
from soseleto_jax.models.cifar_quick import CifarQuick
from soseleto_jax.models.lenet import LeNet
from soseleto_jax.models.mlp import MLP
from soseleto_jax.models.network import Network, as_network, with_heads
from soseleto_jax.models.resnet import ResNet
from soseleto_jax.models.two_headed import HeadedNetwork, check_num_classes

__all__ = [
  "CifarQuick",
  "HeadedNetwork",
  "LeNet",
  "MLP",
  "Network",
  "ResNet",
  "as_network",
  "get_model",
  "make_network",
]

_HEADS_OPTION = "feature_norm"  # which is no field of a representation
_REPRESENTATIONS = {"mlp": MLP, "cifar_quick": CifarQuick, "lenet": LeNet, "resnet": ResNet}


def get_model(name: str, num_classes: int | Mapping[str, int], **options: Any) -> HeadedNetwork:
  """Builds a network.

  With an int, `num_classes`, source and target share one classifier: the parameters are
  `{"representation", "classifier"}` and `model.apply(variables, x, train=False)` returns the logits
  `[B, num_classes]`. With `{"source": Ks, "target": Kt}` there are two classifiers on one
  representation: the parameters are `{"representation", "source_head", "target_head"}` and
  `model.apply(variables, x, train=False, head="source")` returns that head's logits `[B, Ks]`;
  `model.init(rng, x)` creates both heads.

  Parameters and logits are float32 whatever the compute dtype.

  Args:
    name: "mlp", "cifar_quick", "lenet" or "resnet".
    num_classes: number of classes, or one number for each of "source" and "target".
    **options: fields of the network's class; every network has `dtype`, the dtype of its arithmetic
      ("float32" or "bfloat16", for instance), and `feature_norm` of `HeadedNetwork`; "mlp" has
      `hidden`, "cifar_quick" has `init`, "lenet" has `relu`, "resnet" has `norm`, `width` and
      `stage_sizes`.

  Returns:
    A Flax module that takes float images `[B, H, W, C]` ("mlp": any `[B, ...]`).

  Raises:
    ValueError: an unknown network or option, or a value that the network cannot have.
  """
  return _headed(name, num_classes, options)


def make_network(
  model: Mapping[str, Any], num_classes: int | Mapping[str, int], *, seed: int, whole: bool = False
) -> Network:
  """Makes the network that a config describes.

  Args:
    model: `config.model`: "name", one of ours or an import path such as "my_package.nets:Wide", a class or a function
      that returns what `as_network` takes; and its options. "dtype" goes to one that has such an argument.
    num_classes: an int for one classifier that source and target share, or `{"source": Ks, "target": Kt}`; without
      classes, how many numbers each output of one of our networks has.
    whole: whether a network of one's own is all there is, and gets no classifier.
    seed: an NNX module starts from; those of Linen start from the key of `init`.

  Raises:
    ValueError: a name that cannot be found, an option that the network has not, or a value that it cannot have.
  """
  check_num_classes(num_classes)
  options = {key: _hashable(value) for key, value in dict(model).items()}
  name = options.pop("name", None)
  try:
    if not isinstance(name, str) or ":" not in name:
      return as_network(_headed(name, num_classes, options))
    dtype = _float_dtype(options.pop("dtype", jnp.float32))
  except ValueError as error:  # which begins with the field
    raise ValueError(f"config.model.{error}") from error
  return as_network(imported.build(name, options, dtype, seed), None if whole else num_classes)


def _headed(name: Any, num_classes: int | Mapping[str, int], options: Mapping[str, Any]) -> HeadedNetwork:
  of_representation = {option: value for option, value in options.items() if option != _HEADS_OPTION}
  representation = _representation(name, of_representation)
  return with_heads(representation, num_classes, feature_norm=options.get(_HEADS_OPTION))


def _representation(name: Any, options: Mapping[str, Any]) -> nn.Module:
  if name not in _REPRESENTATIONS:
    raise ValueError(
      f"name={name!r} is no network: take one of {', '.join(sorted(_REPRESENTATIONS))}, or one of your own by its "
      f"import path, such as my_package.nets:Wide{did_you_mean(name, _REPRESENTATIONS)}"
    )
  network = _REPRESENTATIONS[name]
  valid = sorted({field.name for field in dataclasses.fields(network)} - {"name", "parent"} | {_HEADS_OPTION})
  for option, value in options.items():
    if option not in valid:
      raise ValueError(
        f"{option}={value!r}: {name} has no such option; it has {', '.join(valid)}{did_you_mean(option, valid)}"
      )
  options = {key: _hashable(value) for key, value in options.items()}
  if "dtype" in options:
    options["dtype"] = _float_dtype(options["dtype"])
  return network(**options)


def _hashable(value):
  return tuple(value) if isinstance(value, list) else value


def _float_dtype(dtype):
  try:
    result = jnp.dtype(dtype)
  except TypeError:
    result = None
  if result is None or not jnp.issubdtype(result, jnp.floating):
    raise ValueError(f'dtype={dtype!r} is no floating type; use "float32" or "bfloat16"')
  if jax.dtypes.canonicalize_dtype(result) != result:
    raise ValueError(f'dtype={dtype!r} needs JAX_ENABLE_X64=1 in the environment; else use "float32" or "bfloat16"')
  return result
