"""The target's gradient, and which parameters descend it."""

import dataclasses
from typing import Any

import jax

from soseleto_jax.core import calls, trees
from soseleto_jax.core.forward import mean_and_gradient
from soseleto_jax.core.losses import Examples, LossFn


@dataclasses.dataclass(frozen=True)
class TargetDescent:
  """Which parameters also descend the target, beside the source.

  Attributes:
    params: prefix tree of bools over `params`, True where a leaf descends (the target's own classifier; True for all).
    loss: `LossFn` of the target batch that they descend. None: the loss that steers `alpha`, whose gradient then serves
      both; another one costs a second pass over the target batch.
    weight: factor of that gradient. With T / B an example counts the same whichever set it comes from.
  """

  params: Any
  loss: LossFn | None = None
  weight: float = 1.0

  def __post_init__(self):
    trees.check_marks(self.params, "TargetDescent.params")
    if not calls.is_number(self.weight):
      raise ValueError(f"TargetDescent.weight={self.weight!r}: give a number, 0 or more")

  def add_to(self, gradient: Any, steering: Any, params: Any, target: Examples) -> tuple[Any, Any]:
    """Returns the gradient with the target's added, and its weighted loss.

    Args:
      gradient: the source's.
      steering: value and gradient of the loss that steers `alpha`; not looked at where there is a `loss`.
      params: where these were taken.
      target: the examples.
    """
    if self.loss is not None:
      steering = target_gradient(self.loss, params, self.params, target, "target_descent.loss")
    value, g_target = steering
    return trees.add(gradient, trees.select(self.params, g_target), self.weight), self.weight * value


def target_gradient(loss_fn: LossFn, params: Any, marks: Any, target: Examples, name: str) -> tuple[jax.Array, Any]:
  """The mean loss and its gradient by the leaves that are marked, None elsewhere."""
  loss = target.bind(loss_fn, name)
  value, gradient, _ = mean_and_gradient(
    lambda marked: loss(trees.fill(marked, params)), trees.select(marks, params), target.mask, target.axis_name
  )
  return value, gradient
