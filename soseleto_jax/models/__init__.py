"""The networks: a representation by name, with one shared classifier or with two heads."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from soseleto_jax.models.cifar_quick import CifarQuick
from soseleto_jax.models.lenet import LeNet
from soseleto_jax.models.mlp import MLP
from soseleto_jax.models.resnet import ResNet
from soseleto_jax.models.two_headed import HeadedNetwork

__all__ = ["CifarQuick", "HeadedNetwork", "LeNet", "MLP", "ResNet", "get_model"]

_REPRESENTATIONS = {"mlp": MLP, "cifar_quick": CifarQuick, "lenet": LeNet, "resnet": ResNet}


def get_model(name: str, num_classes: int | Mapping[str, int], **options: Any) -> nn.Module:
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
      ("float32" or "bfloat16", for instance); "mlp" has `hidden`, "cifar_quick" has `init`,
      "resnet" has `norm`, `width` and `stage_sizes`.

  Returns:
    A Flax module that takes float images `[B, H, W, C]` ("mlp": any `[B, ...]`).

  Raises:
    ValueError: an unknown network or option, or a value that the network cannot have.
  """
  if name not in _REPRESENTATIONS:
    raise ValueError(_unknown(f"model name {name!r}", name, _REPRESENTATIONS))
  network = _REPRESENTATIONS[name]
  valid = [field.name for field in dataclasses.fields(network)]
  valid = sorted(set(valid) - {"name", "parent"})
  for option in options:
    if option not in valid:
      raise ValueError(_unknown(f"option {option!r} of model {name!r}", option, valid))
  options = {key: tuple(v) if isinstance(v, list) else v for key, v in options.items()}
  if "dtype" in options:
    options["dtype"] = _float_dtype(options["dtype"])
  representation = network(**options)
  return HeadedNetwork(
    representation=representation,
    num_classes=num_classes,
    kernel_init=representation.head_kernel_init,
    bias_init=getattr(representation, "head_bias_init", nn.initializers.zeros_init()),
    dtype=representation.dtype,
  )


def _unknown(what, word, valid):
  close = difflib.get_close_matches(str(word), valid, n=1)
  hint = f"; did you mean {close[0]!r}?" if close else ""
  return f"unknown {what}; valid are {', '.join(sorted(valid))}{hint}"


def _float_dtype(dtype):
  try:
    result = jnp.dtype(dtype)
  except TypeError:
    result = None
  if result is None or not jnp.issubdtype(result, jnp.floating):
    raise ValueError(f'dtype={dtype!r} is no floating type; use "float32" or "bfloat16"')
  return result
