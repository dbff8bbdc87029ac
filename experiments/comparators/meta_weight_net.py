"""Shu et al. 2019, "Meta-Weight-Net: learning an explicit mapping for sample weighting", arXiv:1902.07379.

The weight of a source example is a small network's function V of the example's loss. That network descends the target
loss after a step of plain SGD with its weights (Algorithm 1 of the paper):

    θ̂(Θ) = θ - λ (1/B) Σ V(ℓ_j; Θ) ∂ℓ_j,    Θ' = Θ - μ ∂L_t(θ̂(Θ))/∂Θ,    g = (1/B) Σ V(ℓ_j; Θ') ∂ℓ_j

By the chain rule the derivative in the middle needs no second derivative of the network: with q_j the alignment of
source example j, at θ, with the target gradient at θ̂, it is -(λ/B) Σ q_j ∂V(ℓ_j; Θ).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from experiments.comparators.common import network_training, refuse_state
from soseleto_jax import nonfinite
from soseleto_jax.alignment import LossFn, gradient_alignment
from soseleto_jax.data.task import Task
from soseleto_jax.losses import classification_loss
from soseleto_jax.methods import Phase
from soseleto_jax.train_step import Step


class WeightNetwork(nn.Module):
  """A perceptron with one hidden layer, from losses `[B]` to weights in (0, 1), `[B]`."""

  hidden: int = 100

  @nn.compact
  def __call__(self, losses):
    hidden = nn.relu(nn.Dense(self.hidden)(losses[:, None]))
    return nn.sigmoid(nn.Dense(1)(hidden))[:, 0]


def make_meta_step(
    source_loss: LossFn,
    target_loss: LossFn,
    weigh: Callable[[Any, jax.Array], jax.Array],
    optimizer: optax.GradientTransformation,
    *,
    learning_rate: optax.Schedule,
    meta_learning_rate: float,
    skip_nonfinite: bool = False,
    axis_name: str | None = None,
) -> Step:
  """Builds the step, on `params` {"network": θ, "extra": Θ}, without a model state.

  Args:
    source_loss: `LossFn` on all of `params`; reads "network" alone.
    target_loss: the same, of the target batch.
    weigh: `(Θ, losses [B]) -> weights [B]`.
    optimizer: takes g as gradient of "network" and ∂L_t(θ̂(Θ))/∂Θ as that of "extra", which it has to descend by
      plain SGD with the rate μ.
    learning_rate: λ, a schedule of the step.
    meta_learning_rate: μ.
    skip_nonfinite: as in `make_train_step`.
    axis_name: the axis of `jax.shard_map` that the step is mapped over, or None.
  """
  psum = lambda tree: tree if axis_name is None else jax.lax.psum(tree, axis_name)
  rows = lambda batch: batch.get("mask", jnp.ones(batch["label"].shape, bool))

  def gradients(state, source_batch, target_batch):
    rng = jax.random.fold_in(jax.random.key(state.seed), state.step)
    if axis_name is not None:
      rng = jax.random.fold_in(rng, jax.lax.axis_index(axis_name))
    source_rng, target_rng = jax.random.split(rng)
    network, weigher = state.params["network"], state.params["extra"]
    mask, target_mask = rows(source_batch), rows(target_batch)
    count, target_count = (jnp.maximum(psum(jnp.sum(m, dtype=jnp.float32)), 1.0) for m in (mask, target_mask))
    rate = learning_rate(state.step)

    # What is the same on every device has a gradient that is summed over the devices by itself.
    loss_of = lambda network, batch, rng: source_loss({"network": network, "extra": weigher}, batch, rng)
    losses, pullback = jax.vjp(lambda network: loss_of(network, source_batch, source_rng), network)

    def source_gradient(weigher):
      weights = jnp.where(mask, weigh(weigher, losses), 0.0)
      return pullback((weights / count).astype(losses.dtype))[0], weights

    def mean_target_loss(network):
      target_losses = target_loss({"network": network, "extra": weigher}, target_batch, target_rng)
      return jnp.sum(jnp.where(target_mask, target_losses, 0.0)) / target_count

    point = jax.tree.map(lambda p, g: p - (rate * g).astype(p.dtype), network, source_gradient(weigher)[0])
    target_mean, direction = jax.value_and_grad(mean_target_loss)(point)
    q = jnp.where(mask, gradient_alignment(loss_of, network, source_batch, direction, rng=source_rng), 0.0)
    meta_gradient = jax.grad(lambda weigher: -rate / count * jnp.sum(q * weigh(weigher, losses)))(weigher)

    updated = jax.tree.map(lambda p, g: p - meta_learning_rate * g, weigher, meta_gradient)
    gradient, weights = source_gradient(updated)
    gradient = {"network": gradient, "extra": meta_gradient}
    metrics = {
        "source_loss": psum(jnp.sum(weights * jnp.where(mask, losses, 0.0))) / count,
        "target_loss": psum(target_mean),
        "weight_mean": psum(jnp.sum(weights)) / count,
        "alignment_mean": psum(jnp.sum(q)) / count,
        "grad_norm": optax.tree.norm(gradient),
    }
    return gradient, state, {name: value.astype(jnp.float32) for name, value in metrics.items()}

  if skip_nonfinite:
    gradients = nonfinite.skipping(gradients, (source_loss, target_loss), axis_name)
  return Step(gradients, optimizer, skip_nonfinite)


def make_phases(
    config: ConfigDict,
    model: nn.Module,
    params: Any,
    task: Task,
    steps_per_epoch: int,
    *,
    mutable: bool,
    axis_name: str | None,
    hidden: int = 100,
    meta_learning_rate: float = 1.0,
) -> tuple[Phase, ...]:
  """Builds the method for `train_and_evaluate(config, workdir, task, make_phases)`.

  Args:
    config: as in `soseleto_jax.methods.make_phases`, like the rest up to `axis_name`.
    model: one whose classes source and target share.
    params: not read.
    task: not read.
    steps_per_epoch: steps of one pass over the source.
    mutable: whether the model carries state, which is refused.
    axis_name: the axis that the step is mapped over, or None.
    hidden: width of the weight network.
    meta_learning_rate: μ, of plain SGD: the gradient is small, since it holds λ, and with 1e-3 the weights hardly move.
      Much more drives all weights to 1. Choose it on validation.

  Raises:
    ValueError: for a model that carries state.
  """
  del params, task
  refuse_state(config, mutable)
  num_steps, schedule, of_network = network_training(config, steps_per_epoch)
  optimizer = optax.partition(
      {
          "network": of_network,
          "weigher": optax.sgd(meta_learning_rate),
      },
      {"network": "network", "extra": "weigher"},
  )
  weigher = WeightNetwork(hidden)
  key = jax.random.fold_in(jax.random.key(config.seed), 1)  # not the network's
  start = weigher.init(key, jnp.zeros(1))
  network_loss = classification_loss(model)
  loss = lambda params, batch, rng: network_loss(params["network"], batch, rng)
  step = make_meta_step(
      loss,
      loss,
      weigher.apply,
      optimizer,
      learning_rate=schedule,
      meta_learning_rate=meta_learning_rate,
      skip_nonfinite=config.on_nonfinite == "skip",
      axis_name=axis_name,
  )
  return (Phase(num_steps, ("source", "target"), (loss, loss), step, optimizer, start),)
