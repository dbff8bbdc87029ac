"""The step of `alpha` from which on the target loss falls: the paper's Appendix C."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from soseleto_jax.core import axis
from soseleto_jax.core.axis import AxisName

USED, BOUND = "alpha_step_size", "alpha_step_bound"  # the metrics: the step in use, and the one that is sufficient


def sufficient_alpha_step(moves: jax.Array, q: jax.Array, mask: jax.Array, axis_name: AxisName = None) -> jax.Array:
  r"""Returns the smallest step of `alpha` of which Appendix C knows that the target loss falls.

  With :math:`\alpha' = \alpha + s\,m` the parameters' update by :math:`\alpha'` changes the target loss, to first order
  in λ_p, by :math:`-\lambda_p \alpha'^T q / B`. Since :math:`|\alpha^T q| \le \sqrt{B}\,\lVert q \rVert` for all α in
  [0, 1], it does not rise where

  .. math:: s \ge \sqrt{B}\, \lVert q \rVert / m^T q.

  For the published rule m is q: :math:`s = \lambda_\alpha \lambda_p \ge \sqrt{B} / \lVert q \rVert`, the condition of
  the paper, whose n^s are the rows of the batch. It rests on what the paper's proof does: the weights after their
  update (`alpha_first`) descend, by plain gradient descent with a small λ_p, q is the product with the gradient of the
  target loss by all parameters, each row stands once in the batch, and no weight is clipped: a clip can break it.

  Args:
    moves: m, float `[B]`, q as it moves `alpha`: after the transforms.
    q: float `[B]`, the inner products themselves.
    mask: bool `[B]`, the rows that count; B above is their number, and masked rows of `moves` and `q` are 0.
    axis_name: the axis that the batch is split over, or None.

  Returns:
    A scalar: 0 where q is 0, which changes nothing, and infinity where :math:`m^T q \le 0` and no step is sufficient.
  """
  square, along = (axis.total(jnp.sum(values * q), axis_name) for values in (q, moves))
  numerator = jnp.sqrt(axis.count(mask, axis_name) * square)
  bound = numerator / jnp.where(along > 0, along, 1)
  return jnp.where(along > 0, bound, jnp.where(square == 0, 0, jnp.where(jnp.isnan(along), jnp.nan, math.inf)))


def step_metrics(used: Any, bound: jax.Array) -> dict[str, jax.Array]:
  """Returns both as metrics of a step."""
  return {USED: jnp.asarray(used, jnp.float32), BOUND: bound}
