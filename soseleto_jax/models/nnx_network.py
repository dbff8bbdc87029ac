"""A Flax NNX module as a `Network`: with classifiers for its features, or whole."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from soseleto_jax.models.calling import NO_FEATURES, mode_options, parameter_names
from soseleto_jax.models.two_headed import (
  NumClasses,
  check_features,
  check_num_classes,
  classifier_of,
  head_inits,
  heads_of,
)

_HEADS_KEY = 2**31  # keeps the keys of the heads apart from those that nnx.Rngs makes of the same seed
_CARRIED = nnx.All(nnx.Variable, nnx.Not(nnx.Any(nnx.Param, nnx.RngState, nnx.Intermediate)))


@dataclasses.dataclass(frozen=True, eq=False)
class WholeNnxNetwork:
  """A Flax NNX module from inputs to what the loss takes.

  It starts from the values that the module has: its seed is the `nnx.Rngs` that it was built with. Its `nnx.Param`
  variables are trained; its others (the statistics of BatchNorm, a frozen part) are the `model_state`, except for
  intermediates, which are dropped. Arrays that are no variables are constants. In training every stream of random
  numbers starts anew from the step's key. The module itself never changes.

  Attributes:
    module: called with the inputs, in `train()` or `eval()` mode; also with `rngs`, `head` and what tells training,
      where its `__call__` has such arguments.
  """

  module: nnx.Module

  def init(self, key: jax.Array, x: jax.Array) -> tuple[Any, Any]:
    """Returns copies of the module's parameters and other state."""
    del key, x
    _, params, state, _ = self._split()
    return jax.tree.map(_copy, (params, state or None))

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
    outputs, model_state = self.call(params, model_state, x, head=head, train=train, rng=rng)
    return outputs.astype(jnp.float32), model_state

  def features(
    self, params: Any, model_state: Any, x: jax.Array, *, train: bool = False, rng: jax.Array | None = None
  ) -> tuple[jax.Array, Any]:
    """Raises ValueError: a whole network has none that anybody knows of."""
    raise ValueError(NO_FEATURES)

  def call(
    self, params: Any, model_state: Any, x: jax.Array, *, head: str | None, train: bool, rng: jax.Array | None
  ) -> tuple[Any, Any]:
    """Returns what the module does, and the new state."""
    graph, own_params, own_state, constants = self._split()
    if own_state and model_state is None:
      raise ValueError("the network has a model_state: give the one that init returned, or that of the step before")
    values = [_values(own_params, params, "params")]
    if own_state:
      values.append(_values(own_state, model_state, "model_state"))
    module = nnx.merge(graph, *values, constants, copy=True)
    module.train() if train else module.eval()
    if rng is not None:
      _reseed(module, rng)
    options: dict[str, Any] = mode_options(type(module).__call__, train)
    if "rngs" in parameter_names(type(module).__call__):
      options["rngs"] = None if rng is None else nnx.Rngs(rng)
    if head is not None:
      options["head"] = head
    outputs = module(x, **options)
    if own_state and train:
      model_state = _restricted(nnx.to_pure_dict(nnx.state(module, _CARRIED)), own_state)
    return outputs, model_state

  def _split(self):
    """Returns the module's graph, pure dicts of its parameters and of its other state, and what stays as it is."""
    graph, params, state, constants = nnx.split(self.module, nnx.Param, _CARRIED, ...)
    return graph, nnx.to_pure_dict(params), nnx.to_pure_dict(state), constants


@dataclasses.dataclass(frozen=True, eq=False)
class NnxNetwork:
  """A Flax NNX module from inputs to features `[B, F]`, followed by Dense heads.

  Attributes:
    module: as for `WholeNnxNetwork`. `head_kernel_init` and `head_bias_init` are its say in how the heads start.
    num_classes: as for `HeadedNetwork`.
  """

  module: nnx.Module
  num_classes: NumClasses

  def __post_init__(self):
    check_num_classes(self.num_classes)

  @property
  def _representation(self) -> WholeNnxNetwork:
    return WholeNnxNetwork(self.module)

  def init(self, key: jax.Array, x: jax.Array) -> tuple[Any, Any]:
    """Returns copies of the module's parameters and other state, with heads for its features."""
    own_params, own_state = self._representation.init(key, x)
    params: dict[str, Any] = {"representation": own_params}
    state = None if own_state is None else {"representation": own_state}
    features = jax.eval_shape(lambda params, state: self.features(params, state, x)[0], params, state)
    kernel_init, bias_init = head_inits(self.module)
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
    state = None if model_state is None else model_state["representation"]
    features, state = self._representation.call(params["representation"], state, x, head=None, train=train, rng=rng)
    check_features(features, x)
    return features, None if state is None else {"representation": state}


def _copy(leaf):
  """A copy on the device, since the trainer's steps donate what they are given; not of a weak type, or they retrace."""
  leaf = jnp.asarray(leaf)
  return jnp.array(leaf, dtype=leaf.dtype, copy=True)


def _values(own, given, name):
  """Returns the given values, once they have the paths of the module's own: merging goes by order alone."""
  try:
    return jax.tree.map(lambda _, value: value, own, given)
  except ValueError as error:
    raise ValueError(f"{name} has not the arrays of the network's module: {error}") from error


def _restricted(tree, like):
  """Returns the part of nested dicts that is also in others: a call may leave variables that were not there before."""
  return {key: _restricted(tree[key], value) if isinstance(value, dict) else tree[key] for key, value in like.items()}


def _reseed(module, rng):
  keys = nnx.to_flat_state(nnx.state(module, nnx.RngKey))
  tags = sorted({variable.tag for _, variable in keys})
  streams: dict[str, Any] = {tag: jax.random.fold_in(rng, number) for number, tag in enumerate(tags)}
  nnx.reseed(module, policy="match_shape", **streams)
