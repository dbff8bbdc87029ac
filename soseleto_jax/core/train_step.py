"""The SOSELETO step (Algorithm 1), as a pure function of arrays."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from soseleto_jax.core import alpha as alpha_lib
from soseleto_jax.core import axis, trees
from soseleto_jax.core.alignment import Alignment
from soseleto_jax.core.axis import AxisName
from soseleto_jax.core.forward import Forward, forward, mean_and_gradient
from soseleto_jax.core.losses import Examples, LossFn, mask_of, summed
from soseleto_jax.core.source_weights import SourceWeights, alpha_itself
from soseleto_jax.core.step import Metrics, Step, as_float32
from soseleto_jax.core.train_state import TrainState, check_optimizer

PUBLISHED = Alignment()

Rate = float | Callable[[Any], Any]  # or an optax schedule


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

  def __post_init__(self):
    trees.check_marks(self.params, "TargetDescent.params")

  def add_to(self, gradient: Any, steering: Any, params: Any, target: Examples) -> tuple[Any, Any]:
    """Returns the gradient with the target's added, and its weighted loss.

    Args:
      gradient: the source's.
      steering: value and gradient of the loss that steers `alpha`; not looked at where there is a `loss`.
      params: where these were taken.
      target: the examples.
    """
    if self.loss is not None:
      steering = _target_gradient(self.loss, params, self.params, target, "target_descent.loss")
    value, g_target = steering
    return trees.add(gradient, trees.select(self.params, g_target), self.weight), self.weight * value


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

  Guarantees: rows with `mask` False change nothing, whatever finite values they hold, unless the loss lets rows into
  each other's, as BatchNorm does without the mask: see `LossFn`. Rows of `alpha` outside the batch keep their bits. A
  row that stands twice in a batch gets the sum of its two updates, then one clip. An index outside of `alpha`, or of
  its padding (weights below 0), counts as masked. `alpha` stays in [0, 1]; a row whose loss or q is not finite keeps
  its weight. On several devices, under `axis_name`, the numbers are those of one device to
  rounding, but for losses that draw (dropout: each device has a key of its own, so that draws depend on the number of
  devices) or look at a device's whole share (BatchNorm: its statistics are of the device's rows).

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
    leaves that it is needed for), "loss" (what the parameters descend: "source_loss", and the target's with its weight
    where they descend it), "valid_rows" (how many source rows count). After the step, `model_state` is what the source
    loss returned, of several devices as `soseleto_jax.core.axis.merged_state` says; the target loss reads the one
    before.

  Raises:
    ValueError: a step size that is no number of at least 0 and no schedule, an optimizer that is none. When traced: a
      batch that is no mapping of arrays, losses that are not one per example, a missing "index", "jvp" through a
      `jax.custom_vjp`.
  """
  _check_rate("alpha_step_size", alpha_step_size)
  if lookahead is not None:
    _check_rate("lookahead", lookahead)
  rule = _Rule(
    source_loss,
    target_loss,
    alignment,
    alpha_step_size,
    target_descent,
    alpha_itself if source_weights is None else source_weights,
    alpha_first,
    lookahead,
    axis_name,
  )
  return rule.make_step(optimizer)


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
  descent = TargetDescent(True, weight=target_weight)
  return _Rule(source_loss, target_loss, None, target_descent=descent, axis_name=axis_name).make_step(optimizer)


@dataclasses.dataclass(frozen=True, eq=False)
class _Rule:
  """What `make_train_step` was given; without an alignment `alpha` rests, and no gradient is taken for it."""

  source_loss: LossFn
  target_loss: LossFn
  alignment: Alignment | None
  alpha_step_size: Rate = 0.0
  target_descent: TargetDescent | None = None
  weights_of: SourceWeights = alpha_itself
  alpha_first: bool = False
  lookahead: Rate | None = None
  axis_name: AxisName = None

  def make_step(self, optimizer: optax.GradientTransformation) -> Step:
    check_optimizer(optimizer)
    aligned = None if self.alignment is None else self.alignment.loss
    descended = None if self.target_descent is None else self.target_descent.loss
    losses = (
      summed(*filter(None, (self.source_loss, aligned))),
      summed(*filter(None, (self.target_loss, descended))),
    )
    return Step(self.gradients, optimizer, losses=losses, axis_name=self.axis_name, alignment=self.alignment)

  def gradients(self, state: TrainState, source_batch: Any, target_batch: Any) -> tuple[Any, TrainState, Metrics]:
    axis_name, step, model_state = self.axis_name, state.step, state.model_state
    source_rng, target_rng = axis.step_keys(state.seed, step, axis_name)
    alpha_b, valid, rows = alpha_lib.read_batch(state.alpha, source_batch, axis_name)
    examples = Examples(source_batch, valid, source_rng, model_state, axis_name)
    target = Examples(target_batch, mask_of(target_batch), target_rng, model_state, axis_name)
    source = forward(examples.bind(self.source_loss, "source_loss"), axis.varying(state.params, axis_name))
    weights = self.weights_of(alpha_b, step)
    metrics = {"valid_rows": axis.total(jnp.sum(valid), axis_name)}

    # g_t, the target's gradient, at the parameters or ahead of them.
    point, steering = state.params, None
    if self.lookahead is not None:
      gradient = _weighted_gradient(source, weights, examples)
      point = trees.add(state.params, gradient, -_at(self.lookahead, step))
    if (marks := self._steering_params(state.params)) is not False:
      steering = target_mean, g_target = _target_gradient(self.target_loss, point, marks, target, "target_loss")
      metrics |= {"target_loss": target_mean, "target_grad_norm": optax.tree.norm(g_target)}

    # q, the product of each source gradient with it, by which alpha moves.
    alpha, wait = state.alpha, None
    if self.alignment is not None:
      q = wait = self.alignment.of(source, self.source_loss, examples, g_target)
      delta = _at(self.alpha_step_size, step) * q
      delta = jnp.where(jnp.isfinite(source.losses + delta), delta, 0.0)
      alpha, alpha_b = alpha_lib.add_and_clip(state.alpha, rows, delta, axis_name)
      metrics["alignment_mean"] = axis.masked_mean(q, valid, axis_name)

    # g, the gradient that the parameters descend.
    if self.alpha_first:
      weights = self.weights_of(alpha_b, step)
    if self.alpha_first or self.lookahead is None:
      gradient = _weighted_gradient(source, _after(wait, weights), examples)
    loss = source_mean = axis.masked_mean(weights * source.losses, valid, axis_name)
    if self.target_descent is not None:
      gradient, value = self.target_descent.add_to(gradient, steering, point, target)
      loss = loss + value

    metrics |= {
      "source_loss": source_mean,
      "loss": loss,
      "alpha_mean": axis.masked_mean(alpha_b, valid, axis_name),
      "grad_norm": optax.tree.norm(gradient),
    }
    model_state = axis.merged_state(source.model_state, model_state, valid, axis_name)
    return gradient, state.replace(alpha=alpha, model_state=model_state), as_float32(metrics)

  def _steering_params(self, params: Any) -> Any:
    """Marks the leaves that the gradient of the steering loss is needed for; None marks all, False says none."""
    descended = False
    if self.target_descent is not None and self.target_descent.loss is None:
      descended = self.target_descent.params
    if self.alignment is None:
      return descended
    return trees.either(self.alignment.params, descended, params)


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


def _after(q: jax.Array | None, weights: jax.Array) -> jax.Array:
  """Returns the weights, which now wait for q; NaN where q is.

  XLA then runs the tangent pass beside the forward pass, and does not keep both passes' arrays.
  """
  return weights if q is None else jnp.where(jnp.isnan(q), jnp.nan, weights)


def _check_rate(name: str, rate: Any) -> None:
  """Raises ValueError for what is neither a number of at least 0 nor a schedule; arrays may be traced."""
  if callable(rate) or isinstance(rate, jax.Array):
    return
  if isinstance(rate, bool) or not isinstance(rate, (int, float, np.number)) or not rate >= 0:
    raise ValueError(f"{name}={rate!r}: give a number, 0 or more, or a schedule, a function of the step")


def _at(rate: Rate, step: jax.Array) -> Any:
  return rate(step) if callable(rate) else rate
