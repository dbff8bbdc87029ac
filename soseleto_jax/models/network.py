"""What methods need of a network, whichever library it is written with: Flax Linen, Flax NNX, or two functions."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from soseleto_jax.models.calling import mode_options, parameter_names
from soseleto_jax.models.two_headed import (
  HEADS,
  HeadedNetwork,
  check_features,
  check_num_classes,
  classifier_of,
  heads_of,
)

NumClasses = int | Mapping[str, int]  # one classifier that source and target share, or one for each

_HEADS_KEY = 2**31  # keeps the keys of the heads apart from those that nnx.Rngs makes of the same seed
_OTHER_STREAMS_KEY = 2**31 + 1
_CARRIED = nnx.All(nnx.Variable, nnx.Not(nnx.Any(nnx.Param, nnx.RngState, nnx.Intermediate)))
_NO_FEATURES = "this method needs the features of a network: give a Flax module that returns them [B, F]"


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
    init = functools.partial(self.module.init, **mode_options(type(self.module).__call__, False))
    variables = dict(jax.jit(init)(key, x))
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
      raise ValueError(f"{_NO_FEATURES}, or give {type(self.module).__name__} a method features(x, train)")
    return self._call(params, model_state, x, rng, train, train=train, method="features")

  def _call(self, params, model_state, x, rng, mutable, **options) -> tuple[Any, Any]:
    variables = {"params": params, **(model_state or {})}
    # Flax takes the key of a stream that it is not given from "params".
    rngs = {} if rng is None else {"dropout": rng, "params": jax.random.fold_in(rng, _OTHER_STREAMS_KEY)}
    if not (mutable and model_state):
      return self.module.apply(variables, x, rngs=rngs, **options), model_state
    result: Any = self.module.apply(variables, x, rngs=rngs, mutable=list(model_state), **options)
    return result


@dataclasses.dataclass(frozen=True, eq=False)
class NnxNetwork:
  """A Flax NNX module from inputs to features `[B, F]`, followed by Dense heads.

  The representation starts from the values that the module has: its seed is the `nnx.Rngs` that it was built with.
  Its `nnx.Param` variables are trained; its others (the statistics of BatchNorm, a frozen part) are the `model_state`,
  except for intermediates, which are dropped. Arrays that are no variables are constants. In training every stream of
  random numbers starts anew from the step's key. The module itself never changes.

  Attributes:
    module: called with the inputs, in `train()` or `eval()` mode; also with `rngs` and what tells training, where its
      `__call__` has such arguments. `head_kernel_init` and `head_bias_init` are its say in how the heads start.
    num_classes: as for `HeadedNetwork`.
  """

  module: nnx.Module
  num_classes: NumClasses

  def __post_init__(self):
    check_num_classes(self.num_classes)

  def init(self, key: jax.Array, x: jax.Array) -> tuple[Any, Any]:
    """Returns copies of the module's parameters and other state, with heads for its features."""
    _, params, state, _ = self._split()
    params, state = jax.tree.map(_copy, ({"representation": params}, {"representation": state} if state else None))
    features = jax.eval_shape(lambda params, state: self.features(params, state, x)[0], params, state)
    kernel_init, bias_init = _head_inits(self.module)
    key = jax.random.fold_in(key, _HEADS_KEY)
    for number, (name, classes) in enumerate(heads_of(self.num_classes).items()):
      kernel_key, bias_key = jax.random.split(jax.random.fold_in(key, number))
      params[name] = {
        "kernel": kernel_init(kernel_key, (features.shape[1], classes), jnp.float32),
        "bias": bias_init(bias_key, (classes,), jnp.float32),
      }
    return params, state

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
    """Applies representation and classifier."""
    classifier = params[classifier_of(self.num_classes, head)]
    features, model_state = self.features(params, model_state, x, train=train, rng=rng)
    return (features @ classifier["kernel"] + classifier["bias"]).astype(jnp.float32), model_state

  def features(
    self, params: Any, model_state: Any, x: jax.Array, *, train: bool = False, rng: jax.Array | None = None
  ) -> tuple[jax.Array, Any]:
    """Applies the module."""
    graph, own_params, own_state, constants = self._split()
    if own_state and model_state is None:
      raise ValueError("the network has a model_state: give the one that init returned, or that of the step before")
    values = [_values(own_params, params["representation"], "params")]
    if own_state:
      values.append(_values(own_state, model_state["representation"], "model_state"))
    module = nnx.merge(graph, *values, constants, copy=True)
    module.train() if train else module.eval()
    if rng is not None:
      _reseed(module, rng)
    options: dict[str, Any] = mode_options(type(module).__call__, train)
    if "rngs" in parameter_names(type(module).__call__):
      options["rngs"] = None if rng is None else nnx.Rngs(rng)
    features = module(x, **options)
    check_features(features, x)
    if own_state and train:
      new_state = nnx.to_pure_dict(nnx.state(module, _CARRIED))
      model_state = {"representation": _restricted(new_state, own_state)}
    return features, model_state

  def _split(self):
    """Returns the module's graph, pure dicts of its parameters and of its other state, and what stays as it is."""
    graph, params, state, constants = nnx.split(self.module, nnx.Param, _CARRIED, ...)
    return graph, nnx.to_pure_dict(params), nnx.to_pure_dict(state), constants


def _copy(leaf):
  """A copy on the device, since the trainer's steps donate what they are given; not of a weak type, or they retrace."""
  leaf = jnp.asarray(leaf)
  return jnp.array(leaf, dtype=leaf.dtype, copy=True)


def _values(own, given, name):
  """Returns the given values, once they have the paths of the module's own: merging goes by order alone."""
  try:
    return jax.tree.map(lambda _, value: value, own, given)
  except ValueError as error:
    raise ValueError(f"{name}['representation'] has not the arrays of the network: {error}") from error


def _restricted(tree, like):
  """Returns the part of nested dicts that is also in others: a call may leave variables that were not there before."""
  return {key: _restricted(tree[key], value) if isinstance(value, dict) else tree[key] for key, value in like.items()}


def _reseed(module, rng):
  keys = nnx.to_flat_state(nnx.state(module, nnx.RngKey))
  tags = sorted({variable.tag for _, variable in keys})
  streams: dict[str, Any] = {tag: jax.random.fold_in(rng, number) for number, tag in enumerate(tags)}
  nnx.reseed(module, policy="match_shape", **streams)


@dataclasses.dataclass(frozen=True, eq=False)
class FunctionNetwork:
  """A whole network, heads and all, as an object with two functions: a pair made by Haiku, or one of one's own.

  `init(key, x) -> params` and `apply(params, x) -> logits`. With two heads, `apply` is also given `head="source"` or
  `head="target"`. Where it has parameters of these names it is also given: `rng` or `key`, the step's key, None in
  evaluation, and `state`, both between the parameters and x or by name; `train`, `training`, `is_training` or
  `deterministic`. With `state`, `init` returns `(params, state)` and `apply` `(logits, state)`. An optional `features`
  is called as `apply` is, without a head.

  Attributes:
    functions: the object.
    num_classes: as for `HeadedNetwork`, to check the logits with; None: whatever they are.
  """

  functions: Any
  num_classes: NumClasses | None = None

  def __post_init__(self):
    if self.num_classes is not None:
      check_num_classes(self.num_classes)

  def init(self, key: jax.Array, x: jax.Array) -> tuple[Any, Any]:
    """Returns what the object's `init` does.

    Raises:
      ValueError: `apply` returns another number of logits than there are classes.
    """
    # In training, or Haiku's BatchNorm makes no statistics.
    start = self.functions.init(key, x, **mode_options(self.functions.init, True))
    params, state = start if "state" in parameter_names(self.functions.apply) else (start, None)
    state = state if jax.tree.leaves(state) else None
    for head, classes in _classes_of_heads(self.num_classes).items():
      logits = jax.eval_shape(
        lambda params, state, head=head: self.apply(params, state, x, head=head)[0], params, state
      )
      if logits.shape != (x.shape[0], classes):
        raise ValueError(
          f"network={self.functions!r}: apply returned logits of shape {logits.shape}"
          f"{f' for head={head!r}' if head else ''}; for {x.shape[0]} examples of {classes} classes return "
          f"{(x.shape[0], classes)}"
        )
    return params, state

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
    """Applies the object."""
    options = {} if head is None else {"head": head}
    logits, model_state = self._call(self.functions.apply, params, model_state, x, train, rng, options)
    return logits.astype(jnp.float32), model_state

  def features(
    self, params: Any, model_state: Any, x: jax.Array, *, train: bool = False, rng: jax.Array | None = None
  ) -> tuple[jax.Array, Any]:
    """Calls the object's own `features`, if it has one."""
    function = getattr(self.functions, "features", None)
    if not callable(function):
      raise ValueError(f"{_NO_FEATURES}, or an object that also has features(params, x)")
    features, model_state = self._call(function, params, model_state, x, train, rng, {})
    check_features(features, x)
    return features, model_state

  def _call(self, function, params, state, x, train, rng, options):
    extra = {"state": state, "rng": rng, "key": rng}
    names = parameter_names(function)[1:]
    before_x = list(itertools.takewhile(extra.__contains__, names))
    by_name = {name: extra[name] for name in names[len(before_x) + 1 :] if name in extra}
    result = function(
      params, *[extra[name] for name in before_x], x, **by_name, **mode_options(function, train), **options
    )
    if "state" not in names:
      return result, state
    result, new_state = result
    return result, new_state if train and state is not None else state


def as_network(model: Any, num_classes: NumClasses | None = None) -> Network:
  """Makes a `Network` of whatever describes one.

  Args:
    model: a `Network`; a `HeadedNetwork`; with `num_classes`, a Flax module, Linen or NNX, from `[B, ...]` to features
      `[B, F]`, which get heads; or an object with `init` and `apply`, see `FunctionNetwork`.
    num_classes: an int, or one for each of "source" and "target".

  Raises:
    ValueError: for anything else, or a network made for other classes.
  """
  if isinstance(model, (LinenNetwork, NnxNetwork, FunctionNetwork, HeadedNetwork)):
    made_for = getattr(model.module if isinstance(model, LinenNetwork) else model, "num_classes", None)
    if num_classes is not None and made_for is not None and heads_of(made_for) != heads_of(num_classes):
      found = {name: int(classes) for name, classes in heads_of(made_for).items()}
      raise ValueError(
        f"network was made for the classifiers {found}, and here they are {heads_of(num_classes)}: make it for these, "
        "or give the representation alone"
      )
    return LinenNetwork(model) if isinstance(model, HeadedNetwork) else model
  if isinstance(model, nnx.Module):
    if num_classes is None:
      raise ValueError(f"network={type(model).__name__} returns features: give num_classes too, for its classifiers")
    return NnxNetwork(model, num_classes)
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


def has_init_and_apply(model: Any) -> bool:
  """Whether an object is a network by its two functions."""
  return callable(getattr(model, "init", None)) and callable(getattr(model, "apply", None))


def with_heads(representation: nn.Module, num_classes: NumClasses) -> HeadedNetwork:
  """Puts classifiers on a Linen representation, initialised as it says, by LeCun's normal where it says nothing."""
  kernel_init, bias_init = _head_inits(representation)
  return HeadedNetwork(
    representation=representation,
    num_classes=num_classes,
    kernel_init=kernel_init,
    bias_init=bias_init,
    dtype=getattr(representation, "dtype", None) or jnp.float32,
  )


def _head_inits(representation: Any) -> tuple[Any, Any]:
  kernel_init = getattr(representation, "head_kernel_init", nn.initializers.lecun_normal())
  return kernel_init, getattr(representation, "head_bias_init", nn.initializers.zeros_init())


def _classes_of_heads(num_classes):
  """Returns what `head` may be, with the number of classes of each."""
  if num_classes is None or isinstance(num_classes, Mapping):
    return {} if num_classes is None else {head: num_classes[head] for head in HEADS}
  return {None: num_classes}
