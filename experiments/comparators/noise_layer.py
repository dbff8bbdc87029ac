"""Sukhbaatar et al. 2014, "Training convolutional networks with noisy labels", arXiv:1406.2080: a noise layer.

A confusion matrix after the softmax turns the probabilities of the classes into those of the noisy labels (the paper's
bottom-up model of label flips). It is learned with the network: the source's loss goes through it, the clean target's
loss bypasses it. The matrix starts as the identity and is held there at first; then weight decay, the paper's stand-in
for a small trace, draws it away from the identity, to which the network alone would let it shrink. After each update
its rows are projected back onto the probabilities.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from experiments.comparators.common import network_training
from soseleto_jax.data.task import Task
from soseleto_jax.losses import classification_loss
from soseleto_jax.methods import Phase
from soseleto_jax.train_step import make_joint_step


def noisy_cross_entropy(logits: jax.Array, label: jax.Array, matrix: jax.Array) -> jax.Array:
  """Returns -log of the labels' probability after the noise layer, `[B]`.

  Args:
    logits: float `[B, K]` of the true classes.
    label: int `[B]`, noisy labels.
    matrix: float `[K, K]`: in row i, column j the probability of label j where the class is i.
  """
  probability = jnp.sum(jax.nn.softmax(logits) * matrix.T[label], axis=-1)
  return -jnp.log(jnp.maximum(probability, jnp.finfo(probability.dtype).tiny))


def project_rows() -> optax.GradientTransformation:
  """Changes the update of a matrix so that it ends on the nearest one whose rows are probabilities."""
  nearest = jax.vmap(optax.projections.projection_simplex)
  return optax.stateless_with_tree_map(lambda update, matrix: nearest(matrix + update) - matrix)


def make_phases(
    config: ConfigDict,
    model: nn.Module,
    params: Any,
    task: Task,
    steps_per_epoch: int,
    *,
    mutable: bool,
    axis_name: str | None,
    fixed_epochs: float = 5.0,
    rate_factor: float = 0.01,
    weight_decay: float = 1.0,
) -> tuple[Phase, ...]:
  """Builds the method for `train_and_evaluate(config, workdir, task, make_phases)`.

  The matrix is trained by SGD with the network's momentum. Its gradient holds 1 / p for labels of probability p, and
  the network's own rate would throw it from one corner of the simplex to another.

  Args:
    config: as in `soseleto_jax.methods.make_phases`, like the rest up to `axis_name`.
    model: one whose classes source and target share.
    params: not read.
    task: names the number of classes.
    steps_per_epoch: steps of one pass over the source.
    mutable: whether the model carries state.
    axis_name: the axis that the step is mapped over, or None.
    fixed_epochs: so long the matrix stays the identity.
    rate_factor: the matrix's learning rate as a multiple of the network's.
    weight_decay: of the matrix. Both depend on the data; the defaults are the best of a few by validation accuracy on
      the handwritten digits.
  """
  del params
  num_steps, schedule, of_network = network_training(config, steps_per_epoch)
  fixed_steps = round(fixed_epochs * steps_per_epoch)
  optimizer = optax.partition(
      {
          "network": of_network,
          "matrix": optax.chain(
              optax.add_decayed_weights(weight_decay),
              optax.sgd(
                  lambda step: jnp.where(step < fixed_steps, 0.0, rate_factor * schedule(step)),
                  config.optimizer.momentum or None,
              ),
              project_rows(),
          ),
      },
      {"network": "network", "extra": "matrix"},
  )

  def noisy_loss(params, *rest):
    through = lambda logits, label: noisy_cross_entropy(logits, label, params["extra"])
    return classification_loss(model, loss=through, mutable=mutable)(params["network"], *rest)

  def clean_loss(params, *rest):
    return classification_loss(model, mutable=mutable)(params["network"], *rest)

  step = make_joint_step(
      noisy_loss, clean_loss, optimizer, skip_nonfinite=config.on_nonfinite == "skip", axis_name=axis_name
  )
  identity = jnp.eye(task.num_source_classes)
  return (Phase(num_steps, ("source", "target"), (noisy_loss, clean_loss), step, optimizer, identity),)
