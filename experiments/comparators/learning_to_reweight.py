"""Ren et al. 2018, "Learning to reweight examples for robust deep learning", arXiv:1803.09050.

Each batch gets weights of its own, which are not kept. They start at 0, where a step of SGD would not move the network;
the derivative of the target loss after that step by a weight is then minus the learning rate times the alignment of
that source example with the target. The weights are the positive parts of the alignments, divided by their sum
(section 3 and Algorithm 1 of the paper). That is SOSELETO with weights that start at 0 at every step and
are updated before the parameters; `alpha` shows each example's latest weight.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from experiments.comparators.common import network_training
from soseleto_jax import alpha as alpha_lib
from soseleto_jax.alignment import LossFn
from soseleto_jax.data.task import Task
from soseleto_jax.losses import classification_loss
from soseleto_jax.methods import Phase
from soseleto_jax.train_step import Step, make_train_step


def normalized_positive(q: jax.Array, losses: jax.Array, batch: Any, axis_name: str | None) -> jax.Array:
  """Turns alignments `[B]` into weights of sum 1 over the whole batch, or all 0 where none is positive."""
  del losses, batch
  positive = jnp.maximum(q, 0.0)
  total = jnp.sum(positive)
  if axis_name is not None:
    total = jax.lax.psum(total, axis_name)
  return positive / jnp.where(total > 0, total, 1.0)


def make_reweighting_step(
    source_loss: LossFn, target_loss: LossFn, optimizer: optax.GradientTransformation, **options: Any
) -> Step:
  """Builds the step: descends Σ w_j ℓ_j, with the weights w of this batch.

  Args:
    source_loss: of the source batch, which has weights.
    target_loss: of the clean batch, which sets them.
    optimizer: any optax transformation.
    **options: `skip_nonfinite` and `axis_name` of `make_train_step`.
  """
  step = make_train_step(
      source_loss,
      target_loss,
      optimizer,
      alpha_step_size=1.0,
      alpha_first=True,
      alignment_transform=normalized_positive,
      **options,
  )
  axis_name = options.get("axis_name")

  def gradients(state, source_batch, target_batch):
    mask = source_batch.get("mask", jnp.ones(source_batch["index"].shape, bool))
    weights, _, rows = alpha_lib.read(state.alpha, source_batch["index"], mask, axis_name)
    alpha, _ = alpha_lib.add_and_clip(state.alpha, rows, -weights, axis_name)
    gradient, state, metrics = step.gradients(state.replace(alpha=alpha), source_batch, target_batch)
    mean = metrics["alpha_mean"]  # 1 / B, by which the step of SOSELETO averages; 0 where all weights are
    undo = 1.0 / jnp.where(mean > 0, mean, 1.0)
    gradient = jax.tree.map(lambda leaf: (undo * leaf).astype(leaf.dtype), gradient)
    metrics |= {name: undo * metrics[name] for name in ("source_loss", "grad_norm")}
    return gradient, state, metrics

  return dataclasses.replace(step, gradients=gradients)


def make_phases(
    config: ConfigDict,
    model: nn.Module,
    params: Any,
    task: Task,
    steps_per_epoch: int,
    *,
    mutable: bool,
    axis_name: str | None,
) -> tuple[Phase, ...]:
  """Builds the method for `train_and_evaluate(config, workdir, task, make_phases)`, for classes that are shared."""
  del params, task
  num_steps, _, optimizer = network_training(config, steps_per_epoch)
  loss = classification_loss(model, mutable=mutable)
  step = make_reweighting_step(
      loss, loss, optimizer, skip_nonfinite=config.on_nonfinite == "skip", axis_name=axis_name
  )
  return (Phase(num_steps, ("source", "target"), (loss, loss), step, optimizer),)
