"""What methods need of a network, whichever library it is written with: Flax Linen, Flax NNX, or two functions."""

import dataclasses
import functools
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from soseleto_jax.core.compiling import jit_once
from soseleto_jax.models.calling import NO_FEATURES, mode_options, parameter_names
from soseleto_jax.models.function_network import FunctionNetwork, has_init_and_apply
from soseleto_jax.models.nnx_network import NnxNetwork, WholeNnxNetwork
from soseleto_jax.models.two_headed import HeadedNetwork, NumClasses, head_inits, heads_of

_OTHER_STREAMS_KEY = 2**31  # keeps the keys of other streams apart from that of dropout


class Network(Protocol):
  """A network with one classifier, or with two of the names "source" and "target".

  `params` is a pytree that an optimizer trains; `model_state` is what else the network carries from step to step, such
  as the statistics of BatchNorm, or None. All methods are pure functions of arrays.
  """

  def init(self, key: jax.Array, x: jax.Array) -> tuple[Any, Any]:
    """Returns `(params, model_state)` at the start, for inputs float32 `[B, ...]`."""
    ...

  def apply(
    self,
    params: Any,
    model_state: Any,
    x: jax.Array,
    *,
    head: str | None = None,
    train: bool = False,
    rng: jax.Array | None = None,
  ) -> tuple[jax.Array, Any]:
    """Returns `(logits float32 [B, K], new model_state)`; the state changes in training alone."""
    ...

  def features(
    self, params: Any, model_state: Any, x: jax.Array, *, train: bool = False, rng: jax.Array | None = None
  ) -> tuple[jax.Array, Any]:
    """Returns `(what the classifiers see [B, F], new model_state)`."""
    ...


@dataclasses.dataclass(frozen=True)
class LinenNetwork:
  """A Flax Linen module that is called as `HeadedNetwork` is. Parameters start from the run's seed.

  In training, the key is that of the module's "dropout" stream; what it draws from other streams has keys as well.
  """

  module: nn.Module

  def init(self, key: jax.Array, x: jax.Array) -> tuple[Any, Any]:
    """Returns the variables at the start, "params" and the other collections apart."""
    init: Any = functools.partial(self.module.init, **cast(Any, mode_options(type(self.module).__call__, False)))
    variables = dict(jit_once(init)(key, x))
    params = variables.pop("params", {})
    return params, variables or None

  def apply(
    self,
    params: Any,
    model_state: Any,
    x: jax.Array,
    *,
    head: str | None = None,
    train: bool = False,
    rng: jax.Array | None = None,
  ) -> tuple[jax.Array, Any]:
    """Applies the module."""
    options: dict[str, Any] = {} if head is None else {"head": head}
    options |= mode_options(type(self.module).__call__, train)
    logits, model_state = self._call(params, model_state, x, rng, train, **options)
    return logits.astype(jnp.float32), model_state

  def features(
    self, params: Any, model_state: Any, x: jax.Array, *, train: bool = False, rng: jax.Array | None = None
  ) -> tuple[jax.Array, Any]:
    """Applies the module's `features`."""
    if not callable(getattr(type(self.module), "features", None)):
      raise ValueError(f"{NO_FEATURES}, or give {type(self.module).__name__} a method features(x, train)")
    return self._call(params, model_state, x, rng, train, train=train, method="features")

  def _call(self, params, model_state, x, rng, mutable, **options) -> tuple[Any, Any]:
    variables = {"params": params, **(model_state or {})}
    # Flax takes the key of a stream that it is not given from "params".
    rngs = {} if rng is None else {"dropout": rng, "params": jax.random.fold_in(rng, _OTHER_STREAMS_KEY)}
    if not (mutable and model_state):
      return self.module.apply(variables, x, rngs=rngs, **options), model_state
    result: Any = self.module.apply(variables, x, rngs=rngs, mutable=list(model_state), **options)
    return result


def as_network(model: Any, num_classes: NumClasses | None = None) -> Network:
  """Makes a `Network` of whatever describes one.

  Args:
    model: a `Network`; a `HeadedNetwork`; a Flax module, Linen or NNX; or an object with `init` and `apply`, see
      `FunctionNetwork`.
    num_classes: an int, or one for each of "source" and "target": a Flax module then goes from `[B, ...]` to features
      `[B, F]`, which get heads. None takes it whole: what it returns is what the loss gets.

  Raises:
    ValueError: for anything else, or a network made for other classes.
  """
  if isinstance(model, (LinenNetwork, NnxNetwork, WholeNnxNetwork, FunctionNetwork, HeadedNetwork)):
    made_for = getattr(model.module if isinstance(model, LinenNetwork) else model, "num_classes", None)
    if num_classes is not None and made_for is not None and heads_of(made_for) != heads_of(num_classes):
      found = {name: int(classes) for name, classes in heads_of(made_for).items()}
      raise ValueError(
        f"network was made for the classifiers {found}, and here they are {heads_of(num_classes)}: make it for these, "
        "or give the representation alone"
      )
    return LinenNetwork(model) if isinstance(model, HeadedNetwork) else model
  if isinstance(model, nnx.Module):
    return WholeNnxNetwork(model) if num_classes is None else NnxNetwork(model, num_classes)
  if isinstance(model, nn.Module):
    return LinenNetwork(model if num_classes is None else with_heads(model, num_classes))
  if isinstance(model, type) and issubclass(model, (nn.Module, nnx.Module)):
    raise ValueError(f"network={model.__name__} is a class: give a module that it makes, {model.__name__}(...)")
  if has_init_and_apply(model):
    is_network = "model_state" in parameter_names(model.apply)
    return cast(Network, model) if is_network else FunctionNetwork(model, num_classes)
  raise ValueError(
    f"network={model!r}: give a Flax module, Linen or NNX, from [B, ...] to features [B, F], or an object with "
    "init(key, x) and apply(params, x)"
  )


def is_whole(model: Any) -> bool:
  """Whether a network brings classifiers of its own; Flax modules get ours."""
  return not isinstance(model, (nn.Module, nnx.Module))


def with_heads(
  representation: nn.Module, num_classes: NumClasses, *, feature_norm: float | None = None
) -> HeadedNetwork:
  """Puts classifiers on a Linen representation, initialised as it says, by LeCun's normal where it says nothing."""
  kernel_init, bias_init = head_inits(representation)
  return HeadedNetwork(
    representation=representation,
    num_classes=num_classes,
    kernel_init=kernel_init,
    bias_init=bias_init,
    dtype=getattr(representation, "dtype", None) or jnp.float32,
    feature_norm=feature_norm,
  )
