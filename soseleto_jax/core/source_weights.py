"""The weights that the parameters' update uses, where they are not `alpha` itself."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from soseleto_jax.core import calls

SourceWeights = Callable[[jax.Array, jax.Array], jax.Array]  # (alpha of the batch [B], step) -> [B]


def burn_in(num_steps: int, weight: float = 1.0, then: SourceWeights | None = None) -> SourceWeights:
  """One weight for all in the first steps, in which `alpha` already learns, and those of `alpha` from then on.

  Weights that come from an untrained network are noise, and feeding them back blurs those that follow.

  Args:
    num_steps: how many steps.
    weight: 1 lets the whole source in meanwhile; near 0 lets the target lead, where the source may be mostly wrong.
    then: the weights that follow, such as `sharpened`. None: `alpha` itself.

  Raises:
    ValueError: no number of steps, a weight below 0, weights to follow that are no function of `alpha` and the step.
  """
  if not calls.is_number(num_steps):
    raise ValueError(f"burn_in(num_steps={num_steps!r}): give a number of steps, 0 or more")
  if not calls.is_number(weight):
    raise ValueError(f"burn_in(weight={weight!r}): give a number, 0 or more")
  if then is not None:
    calls.check_takes(then, ("alpha", "step"), "burn_in(then)", "give weights, such as sharpened(10)")
  then = alpha_itself if then is None else then

  def weights(alpha, step):
    return jnp.where(step < num_steps, weight, then(alpha, step))

  return weights


def sharpened(gain: float) -> SourceWeights:
  """Weights `clip(1/2 + gain (alpha - 1/2), 0, 1)`.

  A source example is then soon in or out, while `alpha` stays clear of 0 and 1 and goes on to tell more from less.

  Raises:
    ValueError: a gain that is no number of at least 0.
  """
  if not calls.is_number(gain):
    raise ValueError(f"sharpened(gain={gain!r}): give a number, 0 or more; 1 leaves alpha as it is")

  def weights(alpha, step):
    del step
    return jnp.clip(0.5 + gain * (alpha - 0.5), 0.0, 1.0)

  return weights


def alpha_itself(alpha: jax.Array, step: jax.Array) -> jax.Array:
  """The published weights."""
  del step
  return alpha
