"""A step in which `alpha` learns at some steps and rests at others, which are cheaper."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from soseleto_jax.core import sufficient_step
from soseleto_jax.core.step import Step

LEARNS = "alpha_learns"  # the metric that says which of the two a step was
# What a step may have none of where alpha rests.
OF_LEARNING = ("target_loss", "target_grad_norm", "alignment_mean", sufficient_step.USED, sufficient_step.BOUND)


def alternating(learns: Callable[[Any], Any], learning: Step, resting: Step) -> Step:
  """Returns a step that is one or the other by its number, as one program: of `jax.lax.cond`.

  `Step.at` gives the one or the other to who knows the number beforehand: on CPUs convolutions under a condition are
  many times slower than outside.

  Args:
    learns: whether `alpha` learns, of the step's number, a whole number or an array.
    learning: the step where it does.
    resting: the step where it does not, with the same batches and optimizer.

  Returns:
    A `Step`. Its metrics are those of both, NaN where the step at hand has none, and "alpha_learns", 1 or 0.
  """

  def gradients(state, *batches):
    names = set()
    for step in (learning, resting):
      names |= jax.eval_shape(step.gradients, state, *batches)[2].keys()

    def branch(step, number):
      def taken(state, *batches):
        gradient, state, metrics = step.gradients(state, *batches)
        absent = dict.fromkeys(names - metrics.keys(), jnp.float32(jnp.nan))
        return gradient, state, {**metrics, **absent, LEARNS: jnp.float32(number)}

      return taken

    return jax.lax.cond(learns(state.step), branch(learning, 1), branch(resting, 0), state, *batches)

  return Step(
    gradients,
    learning.optimizer,
    learning.sets,
    learning.losses,
    learning.axis_name,
    learning.alignment,
    learns,
    (learning, resting),
  )


def every(count: int, until: int | None) -> Callable[[Any], Any]:
  """Returns whether `alpha` learns at a step: at each `count`-th one from 0 on, before `until`."""

  def learns(step):
    at_its_turn = step % count == 0
    return at_its_turn if until is None else at_its_turn & (step < until)

  return learns
