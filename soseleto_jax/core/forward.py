"""The forward pass of a batch, and what is taken of its Jacobian: weighted sums of its rows, or products with them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from soseleto_jax.core import axis, trees
from soseleto_jax.core.axis import AxisName
from soseleto_jax.core.losses import BoundLoss


@dataclasses.dataclass(frozen=True)
class Forward:
  """A batch's losses at some parameters, with Q, the Jacobian of the losses by the parameters, at hand both ways.

  Attributes:
    params: the parameters.
    losses: `[B]`.
    model_state: what the loss returned, or None.
    pull: `weights [B] -> Σ_j w_j ∂ℓ_j`, a pytree as the parameters: reverse mode.
    push: `direction -> <∂ℓ_j, direction> [B]`, see `directional_derivative`: forward mode.
  """

  params: Any
  losses: jax.Array
  model_state: Any
  pull: Callable[[jax.Array], Any]
  push: Callable[[Any], jax.Array]


def forward(loss: BoundLoss, params: Any) -> Forward:
  """Evaluates a batch's losses. XLA shares the forward pass among `losses`, `pull` and `push`."""
  losses, pullback, model_state = jax.vjp(loss, params, has_aux=True)

  def pull(weights):
    return pullback(weights.astype(losses.dtype))[0]

  def push(direction):
    return directional_derivative(lambda params: loss(params)[0], params, direction)

  return Forward(params, losses, model_state, pull, push)


def directional_derivative(losses_of: Callable[[Any], jax.Array], params: Any, direction: Any) -> jax.Array:
  """`Qᵀ v` by one forward-mode pass: the derivative of the losses `[B]` along `direction`.

  Leaves of `direction` that are None count as zero and cost no tangent pass.
  """
  marked = trees.alike(direction, params)
  tangent = jax.tree.map(lambda d, p: d.astype(p.dtype), direction, marked)
  return jax.jvp(lambda m: losses_of(trees.fill(m, params)), (marked,), (tangent,))[1]


def mean_and_gradient(loss: BoundLoss, params: Any, mask: jax.Array, axis_name: AxisName) -> tuple[Any, Any, Any]:
  """The mean of a batch's unmasked losses, its gradient by `params`, and the new model state.

  Leaves of `params` that are None stay None in the gradient. The mean and the gradient are those of the whole batch,
  the model state is this device's.
  """
  number = axis.count(mask, axis_name)

  def mean(params):
    losses, model_state = loss(params)
    return jnp.sum(jnp.where(mask, losses, 0.0)) / number, model_state

  (value, model_state), gradient = jax.value_and_grad(mean, has_aux=True)(axis.varying(params, axis_name))
  value, gradient = axis.total((value, gradient), axis_name)
  return value, gradient, model_state
