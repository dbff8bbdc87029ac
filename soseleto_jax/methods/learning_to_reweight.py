"""Ren et al. 2018, "Learning to reweight examples for robust deep learning", arXiv:1803.09050.

Each batch gets weights of its own, which are not kept. They start at 0, where a step of SGD would not move the network;
the derivative of the target loss after that step by a weight is then minus the learning rate times the alignment of
that source example with the target. The weights are the positive parts of the alignments, divided by their sum
(section 3 and Algorithm 1 of the paper). That is SOSELETO with weights that start at 0 at every step and are updated
before the parameters; `alpha` shows each example's latest weight.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from soseleto_jax.core import alpha as alpha_lib
from soseleto_jax.core import axis
from soseleto_jax.core.alignment import Alignment
from soseleto_jax.core.axis import AxisName
from soseleto_jax.core.forward import forward, mean_and_gradient
from soseleto_jax.core.losses import Examples, LossFn, mask_of
from soseleto_jax.core.step import Metrics, Step, as_float32
from soseleto_jax.core.train_state import TrainState
from soseleto_jax.methods.base import Method, Phase, Setup

VERSION = 1  # raised where a change lets it compute something else: records of experiments count by it


def normalized_positive(q: jax.Array, axis_name: AxisName) -> jax.Array:
  """Turns alignments `[B]` into weights of sum 1 over the whole batch, or all 0 where none is positive."""
  positive = jnp.maximum(q, 0.0)
  total = axis.total(jnp.sum(positive), axis_name)
  return positive / jnp.where(total > 0, total, 1.0)


def make_reweighting_step(
  source_loss: LossFn,
  target_loss: LossFn,
  optimizer: optax.GradientTransformation,
  *,
  axis_name: AxisName = None,
) -> Step:
  """Builds the step: descends Σ w_j ℓ_j, with the weights w of this batch.

  Args:
    source_loss: of the source batch, which has weights.
    target_loss: of the clean batch, which sets them.
    optimizer: any optax transformation.
    axis_name: as in `make_train_step`.
  """

  def gradients(state: TrainState, source_batch: Any, target_batch: Any) -> tuple[Any, TrainState, Metrics]:
    source_rng, target_rng = axis.step_keys(state.seed, state.step, axis_name)
    _, valid, rows = alpha_lib.read_batch(state.alpha, source_batch, axis_name)
    examples = Examples(source_batch, valid, source_rng, state.model_state, axis_name)
    targets = Examples(target_batch, mask_of(target_batch), target_rng, state.model_state, axis_name)
    source = forward(examples.bind(source_loss, "source_loss"), axis.varying(state.params, axis_name))
    target = targets.bind(target_loss, "target_loss")
    target_mean, g_target, _ = mean_and_gradient(target, state.params, targets.mask, axis_name)

    q = jnp.where(valid, source.push(axis.varying(g_target, axis_name)), 0.0)
    weights = normalized_positive(q, axis_name)
    gradient = axis.total(source.pull(weights), axis_name)
    from_0 = rows._replace(values=jnp.zeros_like(rows.values))
    shown = jnp.where(jnp.isfinite(weights), weights, 0.0)
    alpha, _ = alpha_lib.add_and_clip(state.alpha, from_0, shown, axis_name)

    metrics = {
      "source_loss": axis.total(jnp.sum(weights * jnp.where(valid, source.losses, 0.0)), axis_name),
      "target_loss": target_mean,
      "alpha_mean": axis.masked_mean(weights, valid, axis_name),
      "alignment_mean": axis.masked_mean(q, valid, axis_name),
      "grad_norm": optax.tree.norm(gradient),
      "valid_rows": axis.total(jnp.sum(valid), axis_name),
      "target_grad_norm": optax.tree.norm(g_target),
    }
    state = state.replace(
      alpha=alpha, model_state=axis.merged_state(source.model_state, state.model_state, valid, axis_name)
    )
    return gradient, state, as_float32(metrics)

  return Step(gradients, optimizer, losses=(source_loss, target_loss), axis_name=axis_name, alignment=Alignment())


def make_method(setup: Setup) -> Method:
  """Makes the method, for source and target with the same classes."""
  setup.require(transfer=False)
  step = make_reweighting_step(setup.loss("source"), setup.loss("target"), setup.optimizer(), axis_name=setup.axis_name)
  return Method((Phase(setup.num_steps, step),))
