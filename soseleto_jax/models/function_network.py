"""A network of two functions as a `Network`."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from soseleto_jax.models.calling import NO_FEATURES, mode_options, parameter_names
from soseleto_jax.models.two_headed import HEADS, NumClasses, check_features, check_num_classes


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
      raise ValueError(f"{NO_FEATURES}, or an object that also has features(params, x)")
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


def has_init_and_apply(model: Any) -> bool:
  """Whether an object is a network by its two functions."""
  return callable(getattr(model, "init", None)) and callable(getattr(model, "apply", None))


def _classes_of_heads(num_classes):
  """Returns what `head` may be, with the number of classes of each."""
  if num_classes is None or isinstance(num_classes, Mapping):
    return {} if num_classes is None else {head: num_classes[head] for head in HEADS}
  return {None: num_classes}
