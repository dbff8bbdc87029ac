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

from soseleto_jax.core import axis, trees
from soseleto_jax.core.alignment import Alignment
from soseleto_jax.core.axis import AxisName
from soseleto_jax.core.forward import forward, mean_and_gradient
from soseleto_jax.core.losses import Examples, LossFn, mask_of
from soseleto_jax.core.step import Metrics, Step, as_float32
from soseleto_jax.core.train_state import TrainState
from soseleto_jax.methods.base import Method, Phase, Setup, beside_network, loss_of_network, predict_of_network

VERSION = 1  # raised where a change lets it compute something else: records of experiments count by it


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
  axis_name: AxisName = None,
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
    axis_name: the axis that the step is mapped over, or None.
  """

  def gradients(state: TrainState, source_batch: Any, target_batch: Any) -> tuple[Any, TrainState, Metrics]:
    source_rng, target_rng = axis.step_keys(state.seed, state.step, axis_name)
    network, weigher = state.params["network"], state.params["extra"]
    mask, rate = mask_of(source_batch), learning_rate(state.step)
    count = axis.count(mask, axis_name)

    def of_network(loss, batch, rng, name):
      bound = Examples(batch, mask_of(batch), rng, None, axis_name).bind(loss, name)
      return lambda network: bound({"network": network, "extra": weigher})

    source = forward(of_network(source_loss, source_batch, source_rng, "source_loss"), axis.varying(network, axis_name))
    losses = jnp.where(mask, source.losses, 0.0)

    def weights_of(weigher):
      return jnp.where(mask, weigh(weigher, losses), 0.0)

    def gradient_by(weights):
      return axis.total(source.pull(weights / count), axis_name)

    point = trees.add(network, gradient_by(weights_of(weigher)), -rate)
    target = of_network(target_loss, target_batch, target_rng, "target_loss")
    target_mean, direction, _ = mean_and_gradient(target, point, mask_of(target_batch), axis_name)
    q = jnp.where(mask, source.push(axis.varying(direction, axis_name)), 0.0)
    meta_gradient = jax.grad(lambda weigher: -rate / count * jnp.sum(q * weights_of(weigher)))(
      axis.varying(weigher, axis_name)
    )
    meta_gradient = axis.total(meta_gradient, axis_name)

    weights = weights_of(trees.add(weigher, meta_gradient, -meta_learning_rate))
    gradient = {"network": gradient_by(weights), "extra": meta_gradient}
    metrics = {
      "source_loss": axis.masked_mean(weights * losses, mask, axis_name),
      "target_loss": target_mean,
      "weight_mean": axis.masked_mean(weights, mask, axis_name),
      "alignment_mean": axis.masked_mean(q, mask, axis_name),
      "grad_norm": optax.tree.norm(gradient),
      "valid_rows": axis.total(jnp.sum(mask), axis_name),
    }
    return gradient, state, as_float32(metrics)

  return Step(gradients, optimizer, losses=(source_loss, target_loss), axis_name=axis_name, alignment=Alignment())


def make_method(setup: Setup, *, hidden: int = 100, meta_learning_rate: float = 1.0) -> Method:
  """Makes the method, for source and target with the same classes.

  Args:
    setup: what it is made for; λ is its schedule, whatever optimizer is given.
    hidden: width of the weight network.
    meta_learning_rate: μ, of plain SGD: the gradient is small, since it holds λ, and with 1e-3 the weights hardly move.
      Much more drives all weights to 1. Choose it on validation.
  """
  setup.require(transfer=False, stateless=True)
  weight_network = WeightNetwork(hidden)
  key = jax.random.fold_in(jax.random.key(setup.config.seed), 1)  # not the network's

  def weigh(weigher, losses):
    return weight_network.apply(weigher, losses)

  optimizer = optax.partition(
    {"network": setup.optimizer(), "weigher": optax.sgd(meta_learning_rate)},
    {"network": "network", "extra": "weigher"},
  )
  step = make_meta_step(
    loss_of_network(setup, "source"),
    loss_of_network(setup, "target"),
    weigh,
    optimizer,
    learning_rate=setup.schedule(),
    meta_learning_rate=meta_learning_rate,
    axis_name=setup.axis_name,
  )
  return Method(
    (Phase(setup.num_steps, step),),
    init=beside_network(weight_network.init(key, jnp.zeros(1))),
    predict=predict_of_network(setup),
  )
