"""The SOSELETO step (Algorithm 1), as a pure function of arrays."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from soseleto_jax.core import alpha as alpha_lib
from soseleto_jax.core import axis, trees
from soseleto_jax.core.alignment import Alignment
from soseleto_jax.core.axis import AxisName
from soseleto_jax.core.forward import Forward, forward, mean_and_gradient
from soseleto_jax.core.losses import Examples, LossFn, mask_of, summed
from soseleto_jax.core.step import Metrics, Step, as_float32
from soseleto_jax.core.train_state import TrainState

PUBLISHED = Alignment()

Rate = float | Callable[[Any], Any]  # or an optax schedule
SourceWeights = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class TargetDescent:
  """Which parameters also descend the target, beside the source.

  Attributes:
    params: prefix tree of bools over `params`, True where a leaf descends (the target's own classifier; True for all).
    loss: `LossFn` of the target batch that they descend. None: the loss that steers `alpha`, whose gradient then serves
      both; another one costs a second pass over the target batch.
    weight: factor of that gradient. With T / B an example counts the same whichever set it comes from.
  """

  params: Any
  loss: LossFn | None = None
  weight: float = 1.0

  def add_to(self, gradient: Any, g_target: Any, params: Any, target: Examples) -> Any:
    """Returns the gradient with the target's added, given that of the steering loss at the same parameters."""
    if self.loss is not None:
      _, g_target = _target_gradient(self.loss, params, self.params, target, "target_descent.loss")
    return trees.add(gradient, trees.select(self.params, g_target), self.weight)


def burn_in(num_steps: int, weight: float = 1.0, then: SourceWeights | None = None) -> SourceWeights:
  """One weight for all in the first steps, in which `alpha` already learns, and those of `alpha` from then on.

  Weights that come from an untrained network are noise, and feeding them back blurs those that follow.

  Args:
    num_steps: how many steps.
    weight: 1 lets the whole source in meanwhile; near 0 lets the target lead, where the source may be mostly wrong.
    then: the weights that follow, such as `sharpened`. None: `alpha` itself.
  """
  then = _alpha_itself if then is None else then

  def weights(alpha, step):
    return jnp.where(step < num_steps, weight, then(alpha, step))

  return weights


def sharpened(gain: float) -> SourceWeights:
  """Weights `clip(1/2 + gain (alpha - 1/2), 0, 1)`.

  A source example is then soon in or out, while `alpha` stays clear of 0 and 1 and goes on to tell more from less.
  """

  def weights(alpha, step):
    del step
    return jnp.clip(0.5 + gain * (alpha - 0.5), 0.0, 1.0)

  return weights


def make_train_step(
  source_loss: LossFn,
  target_loss: LossFn,
  optimizer: optax.GradientTransformation,
  *,
  alpha_step_size: Rate,
  alignment: Alignment = PUBLISHED,
  target_descent: TargetDescent | None = None,
  source_weights: SourceWeights | None = None,
  alpha_first: bool = False,
  lookahead: Rate | None = None,
  axis_name: AxisName = None,
) -> Step:
  r"""Builds the train step of SOSELETO.

  With B source rows, T target rows and a the batch's weights, the step is

  .. math::
    g_t &= \partial \tfrac1T \sum_i \ell^t_i, \qquad q_j = \langle \partial \ell^s_j, g_t \rangle \\
    g &= \tfrac1B \sum_j a_j \, \partial \ell^s_j \; (+ \, w \, g_t \text{ where target\_descent says, w its weight}) \\
    \theta &\leftarrow \theta + \mathrm{optimizer}(g), \qquad
    \alpha_b \leftarrow \mathrm{clip}(\alpha_b + s\, q, 0, 1)

  The paper's Q carries 1/n^s; here the source gradient is averaged over the batch and q is left unscaled, as in the
  authors' code. The paper's rates are then `learning_rate` = λ_p and `alpha_step_size` s = λ_α λ_p.

  Guarantees: rows with `mask` False change nothing, whatever finite values they hold, and rows of `alpha` outside of
  the batch keep their bits. A row that stands twice in a batch gets the sum of its two updates, then one clip. An index
  outside of `alpha`, or of its padding (weights below 0), counts as masked. `alpha` stays in [0, 1]; a row whose loss
  or q is not finite keeps its weight.

  Args:
    source_loss: `LossFn` of the source batch.
    target_loss: `LossFn` of the target batch.
    optimizer: any optax transformation; its learning rate is λ_p.
    alpha_step_size: s, or an optax schedule of the step.
    alignment: what q is; as published by default.
    target_descent: which parameters also descend the target (the target's own classifier, in transfer). None: the
      target acts through `alpha` alone.
    source_weights: `f(alpha_b, step) -> [B]`, the weights a that the parameters' update uses, such as `burn_in` and
      `sharpened`. None: `alpha_b` itself.
    alpha_first: True updates `alpha` before the parameters, which then use the new weights (Appendix C and the authors'
      code). False: Algorithm 1.
    lookahead: λ, or a schedule of the step: takes g_t at θ - λ (1/B) Σ a_j ∂ℓ_j, where equation 4 takes it at θ.
      None: as published.
    axis_name: the axis that the step is mapped over (`jax.shard_map`, `jax.pmap`); batches and `alpha` are then this
      device's shares, and parameters are the same on every device.

  Returns:
    `step(state, source_batch, target_batch) -> (state, metrics)`, a pure function, as a `Step`. `source_batch` is a
    mapping with "index", integers `[B]`, the rows of `alpha`; both batches may hold "mask", bool; the rest is the
    losses' own, each array with a leading axis of one row per example. `metrics` are float32 scalars: "source_loss"
    (weighted, with the weights of the parameter update), "target_loss", "alpha_mean" (of the batch, after its
    update), "alignment_mean" (of q as it updates `alpha`), "grad_norm" (of g), "target_grad_norm" (of g_t over the
    leaves that it is needed for). After the step, `model_state` is what the source loss returned; the target loss
    reads the one before.

  Raises:
    ValueError: when traced, for losses that are not one per example, "vmap_grad" with a `model_state`, a missing
      "index".
  """
  weights_of = _alpha_itself if source_weights is None else source_weights

  def gradients(state: TrainState, source_batch: Any, target_batch: Any) -> tuple[Any, TrainState, Metrics]:
    step, model_state = state.step, state.model_state
    source_rng, target_rng = jax.random.split(axis.step_key(state.seed, step, axis_name))
    alpha_b, valid, rows = alpha_lib.read_batch(state.alpha, source_batch, axis_name)
    examples = Examples(source_batch, valid, source_rng, model_state, axis_name)
    target = Examples(target_batch, mask_of(target_batch), target_rng, model_state, axis_name)
    source = forward(examples.bind(source_loss, "source_loss"), axis.varying(state.params, axis_name))
    weights = weights_of(alpha_b, step)

    # g_t, the target's gradient, at the parameters or ahead of them.
    point = state.params
    if lookahead is not None:
      gradient = _weighted_gradient(source, weights, examples)
      point = trees.add(state.params, gradient, -_at(lookahead, step))
    steering = _steering_params(alignment, target_descent, state.params)
    target_mean, g_target = _target_gradient(target_loss, point, steering, target, "target_loss")

    # q, the product of each source gradient with it, by which alpha moves.
    q = alignment.of(source, source_loss, examples, g_target)
    delta = _at(alpha_step_size, step) * q
    delta = jnp.where(jnp.isfinite(source.losses + delta), delta, 0.0)
    alpha, new_alpha_b = alpha_lib.add_and_clip(state.alpha, rows, delta, axis_name)

    # g, the gradient that the parameters descend.
    if alpha_first:
      weights = weights_of(new_alpha_b, step)
    if alpha_first or lookahead is None:
      gradient = _weighted_gradient(source, _after(q, weights), examples)
    if target_descent is not None:
      gradient = target_descent.add_to(gradient, g_target, point, target)

    metrics = {
      "source_loss": axis.masked_mean(weights * source.losses, valid, axis_name),
      "target_loss": target_mean,
      "alpha_mean": axis.masked_mean(new_alpha_b, valid, axis_name),
      "alignment_mean": axis.masked_mean(q, valid, axis_name),
      "grad_norm": optax.tree.norm(gradient),
      "target_grad_norm": optax.tree.norm(g_target),
    }
    state = state.replace(alpha=alpha, model_state=axis.mean_state(source.model_state, axis_name))
    return gradient, state, as_float32(metrics)

  source_losses = (source_loss,) if alignment.loss is None else (source_loss, alignment.loss)
  descended = None if target_descent is None else target_descent.loss
  target_losses = (target_loss,) if descended is None else (target_loss, descended)
  return Step(gradients, optimizer, losses=(summed(*source_losses), summed(*target_losses)), axis_name=axis_name)


def make_joint_step(
  source_loss: LossFn,
  target_loss: LossFn,
  optimizer: optax.GradientTransformation,
  *,
  target_weight: float = 1.0,
  axis_name: AxisName = None,
) -> Step:
  """Builds a step that descends both mean losses at once: `make_train_step` with an `alpha` that stays as it is.

  No inner product is taken, so that a step costs what the two gradients do.

  Args:
    source_loss: `LossFn` of the source batch, weighted by `alpha`.
    target_loss: `LossFn` of the target batch.
    optimizer: any optax transformation.
    target_weight: factor of the target's gradient.
    axis_name: as in `make_train_step`.
  """
  return make_train_step(
    source_loss,
    target_loss,
    optimizer,
    alpha_step_size=0.0,
    alignment=Alignment(params=False),
    target_descent=TargetDescent(True, weight=target_weight),
    axis_name=axis_name,
  )


def _weighted_gradient(source: Forward, weights: jax.Array, examples: Examples) -> Any:
  """(1/B) Σ a_j ∂ℓ_j over the unmasked rows of the whole batch."""
  mask, axis_name = examples.mask, examples.axis_name
  return axis.total(source.pull(jnp.where(mask, weights, 0.0) / axis.count(mask, axis_name)), axis_name)


def _target_gradient(loss_fn: LossFn, params: Any, marks: Any, target: Examples, name: str) -> tuple[jax.Array, Any]:
  """The mean loss and its gradient by the leaves that are marked, None elsewhere."""
  loss = target.bind(loss_fn, name)
  value, gradient, _ = mean_and_gradient(
    lambda marked: loss(trees.fill(marked, params)), trees.select(marks, params), target.mask, target.axis_name
  )
  return value, gradient


def _after(q: jax.Array, weights: jax.Array) -> jax.Array:
  """Returns the weights, which now wait for q; NaN where q is.

  XLA then runs the tangent pass beside the forward pass, and does not keep both passes' arrays.
  """
  return jnp.where(jnp.isnan(q), jnp.nan, weights)


def _steering_params(alignment: Alignment, descent: TargetDescent | None, params: Any) -> Any:
  """Marks the leaves that the gradient of the steering loss is needed for."""
  if descent is None or descent.loss is not None:
    return alignment.params
  return trees.either(alignment.params, descent.params, params)


def _alpha_itself(alpha, step):
  del step
  return alpha


def _at(rate: Rate, step: jax.Array) -> Any:
  return rate(step) if callable(rate) else rate
