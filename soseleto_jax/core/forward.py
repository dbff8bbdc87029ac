"""The forward pass of a batch, and what is taken of its Jacobian: weighted sums of its rows, or products with them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from soseleto_jax.core import axis, trees
from soseleto_jax.core.axis import AxisName
from soseleto_jax.core.contraction import resolve
from soseleto_jax.core.losses import BoundLoss


@dataclasses.dataclass(frozen=True)
class Forward:
  """A batch's losses at some parameters, with Q, the Jacobian of the losses by the parameters, at hand both ways.

  Attributes:
    params: the parameters.
    losses: `[B]`.
    model_state: what the loss returned, or None.
    pull: `weights [B] -> Σ_j w_j ∂ℓ_j`, a pytree as the parameters: reverse mode.
    losses_of: `params -> losses [B]`, elsewhere.
  """

  params: Any
  losses: jax.Array
  model_state: Any
  pull: Callable[[jax.Array], Any]
  losses_of: Callable[[Any], jax.Array]

  def push(self, direction: Any, contraction: str = "auto", microbatch_size: int | None = None) -> jax.Array:
    """`<∂ℓ_j, direction> [B]`, see `directional_derivative`."""
    passed = self.losses, self.pull
    return directional_derivative(self.losses_of, self.params, direction, contraction, microbatch_size, passed)


def forward(loss: BoundLoss, params: Any) -> Forward:
  """Evaluates a batch's losses. XLA shares the forward pass among `losses`, `pull` and `push`."""
  losses, pullback, model_state = jax.vjp(loss, params, has_aux=True)

  def pull(weights):
    return pullback(weights.astype(losses.dtype))[0]

  return Forward(params, losses, model_state, pull, lambda params: loss(params)[0])


def directional_derivative(
  losses_of: Callable[[Any], jax.Array],
  params: Any,
  direction: Any,
  contraction: str = "auto",
  microbatch_size: int | None = None,
  passed: tuple[jax.Array, Callable[[jax.Array], Any]] | None = None,
) -> jax.Array:
  """`Qᵀ v`, the derivative of the losses `[B]` along a direction.

  Args:
    losses_of: `params -> losses [B]`.
    params: where.
    direction: pytree as `params`; leaves that are None count as zero and cost nothing.
    contraction: as in `soseleto_jax.gradient_alignment`; "vmap_grad" forms Q by its rows, one backward pass over the
      batch for each, which losses that couple examples have as well.
    microbatch_size: for "vmap_grad".
    passed: the losses and their pullback, where these are at hand.
  """
  marked = trees.alike(direction, params)
  tangent = jax.tree.map(lambda d, p: d.astype(p.dtype), direction, marked)

  def of_marked(marked):
    return losses_of(trees.fill(marked, params))

  chosen = resolve(contraction, of_marked, marked)
  if chosen == "jvp":
    return jax.jvp(of_marked, (marked,), (tangent,))[1]
  losses, pull = passed or _pullback(losses_of, params)

  def pull_marked(weights):
    return trees.alike(direction, pull(weights))

  if chosen == "vjp":  # of a linear function, which may be taken anywhere: here at the losses
    return jax.vjp(pull_marked, losses)[1](tangent)[0]
  one_hots = jnp.diag(jnp.where(jnp.isnan(losses), 1.0, 1.0))  # which vary over devices as the losses do
  if microbatch_size is None:
    return jax.vmap(lambda one_hot: trees.dot(pull_marked(one_hot), direction))(one_hots)
  return jax.lax.map(lambda one_hot: trees.dot(pull_marked(one_hot), direction), one_hots, batch_size=microbatch_size)


def _pullback(losses_of, params):
  losses, pullback = jax.vjp(losses_of, params)
  return losses, lambda weights: pullback(weights.astype(losses.dtype))[0]


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
