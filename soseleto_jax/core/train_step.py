"""The SOSELETO step (Algorithm 1), as a pure function of arrays."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from soseleto_jax.core import alpha as alpha_lib
from soseleto_jax.core import axis, calls, trees
from soseleto_jax.core.alignment import Alignment
from soseleto_jax.core.alternating import alternating, every
from soseleto_jax.core.axis import AxisName
from soseleto_jax.core.forward import Forward, forward
from soseleto_jax.core.losses import Examples, LossFn, mask_of, summed
from soseleto_jax.core.rates import Rate, at, check_rate
from soseleto_jax.core.source_weights import SourceWeights, alpha_itself
from soseleto_jax.core.step import Metrics, Step, as_float32
from soseleto_jax.core.sufficient_step import step_metrics, sufficient_alpha_step
from soseleto_jax.core.target_descent import TargetDescent, target_gradient
from soseleto_jax.core.train_state import TrainState, check_optimizer

PUBLISHED = Alignment()


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
  alpha_every: int = 1,
  alpha_until: int | None = None,
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
    alpha_every: k: `alpha` learns at the steps 0, k, 2k, ..., by their batches. In between the parameters descend with
      the weights that there are, and no target gradient is taken, but for a target descent. See
      `soseleto_jax.core.alternating` for such a step on CPUs, and for its metrics.
    alpha_until: the step from which on `alpha` rests altogether. None: never.
    axis_name: the axis that the step is mapped over (`jax.shard_map`, `jax.pmap`); batches and `alpha` are then this
      device's shares, and parameters are the same on every device.

  Returns:
    `step(state, source_batch, target_batch) -> (state, metrics)`, a pure function, as a `Step`. `source_batch` is a
    mapping with "index", integers `[B]`, the rows of `alpha` (and no hashes: of int64 JAX keeps 32 bits); both batches
    may hold "mask", bool; the rest is the losses' own, each array with a leading axis of one row per example. `metrics`
    are float32 scalars: "source_loss" (weighted, with the weights of the parameter update), "target_loss", "alpha_mean"
    (of the batch, after its update), "alignment_mean" (of q as it updates `alpha`), "alpha_step_size" (s) and
    "alpha_step_bound" (the s that Appendix C asks for: `soseleto_jax.core.sufficient_step`), "grad_norm" (of g),
    "target_grad_norm" (of g_t over the leaves that it is needed for), "loss" (what the parameters descend:
    "source_loss", and the target's with its weight where they descend it), "valid_rows" (how many source rows count).
    After the step, `model_state` is what the source loss returned, of several devices as
    `soseleto_jax.core.axis.merged_state` says; the target loss reads the one before.

  Raises:
    ValueError: a step size that is no number of at least 0 and no schedule, an optimizer that is none, arguments of
      other types. When traced: a batch that is no mapping of arrays, losses that are not one per example, a missing
      "index", marks that do not fit the parameters, "jvp" through a `jax.custom_vjp`.
  """
  for name, loss in (("source_loss", source_loss), ("target_loss", target_loss)):
    if not callable(loss):
      raise ValueError(f"{name}={loss!r}: give a function (params, batch, rng) -> losses [B]")
  if not isinstance(alignment, Alignment):
    raise ValueError(f"alignment={alignment!r}: give an Alignment, such as Alignment(); make_joint_step takes none")
  if target_descent is not None and not isinstance(target_descent, TargetDescent):
    raise ValueError(f"target_descent={target_descent!r}: give a TargetDescent, such as TargetDescent(True), or None")
  if source_weights is not None:
    cure = f"what makes one wants to be called, {calls.name_of(source_weights)}(...)"
    calls.check_takes(source_weights, ("alpha", "step"), "source_weights", cure, "burn_in(100)")
  check_rate("alpha_step_size", alpha_step_size)
  if lookahead is not None:
    check_rate("lookahead", lookahead)
  _check_turns(alpha_every, alpha_until)
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
  learning = rule.make_step(optimizer)
  if alpha_every == 1 and alpha_until is None:
    return learning
  resting = dataclasses.replace(rule, alignment=None).make_step(optimizer)
  return alternating(every(alpha_every, alpha_until), learning, resting)


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
    self._check_marks(state.params)
    weights = self._weights(alpha_b, step)
    metrics = {"valid_rows": axis.total(jnp.sum(valid), axis_name)}

    # g_t, the target's gradient, at the parameters, before the source's pass, or ahead of them, after it.
    point = state.params
    if self.lookahead is None:
      steering = self._steer(point, target, metrics)
      if self.alignment is not None:
        waiting = _after(metrics["target_grad_norm"], dict(source_batch))
        examples = dataclasses.replace(examples, batch=waiting)
    source = forward(examples.bind(self.source_loss, "source_loss"), axis.varying(state.params, axis_name))
    if self.lookahead is not None:
      gradient = _weighted_gradient(source, weights, examples)
      point = trees.add(state.params, gradient, -at(self.lookahead, step))
      steering = self._steer(point, target, metrics)

    # q, the product of each source gradient with it, by which alpha moves.
    alpha = state.alpha
    if self.alignment is not None:
      q, products = self.alignment.of(source, self.source_loss, examples, steering[1])
      step_size = at(self.alpha_step_size, step)
      delta = step_size * q
      delta = jnp.where(jnp.isfinite(source.losses + delta), delta, 0.0)
      alpha, alpha_b = alpha_lib.add_and_clip(state.alpha, rows, delta, axis_name)
      metrics["alignment_mean"] = axis.masked_mean(q, valid, axis_name)
      metrics |= step_metrics(step_size, sufficient_alpha_step(q, products, valid, axis_name))

    # g, the gradient that the parameters descend.
    if self.alpha_first:
      weights = self._weights(alpha_b, step)
    if self.alpha_first or self.lookahead is None:
      gradient = _weighted_gradient(source, weights if self.alignment is None else _after(q, weights), examples)
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

  def _weights(self, alpha_b: jax.Array, step: jax.Array) -> jax.Array:
    weights = self.weights_of(alpha_b, step)
    if getattr(weights, "shape", None) not in ((), alpha_b.shape):
      raise ValueError(f"source_weights returned {weights!r}: return one weight for each row, {alpha_b.shape}")
    return weights

  def _check_marks(self, params: Any) -> None:
    for name, chosen in (("Alignment", self.alignment), ("TargetDescent", self.target_descent)):
      if chosen is not None:
        trees.check_fits(chosen.params, params, f"{name}.params")

  def _steer(self, point: Any, target: Examples, metrics: Metrics) -> Any:
    """Returns value and gradient of the loss that steers, and takes note of them; None where nothing needs them."""
    if (marks := self._steering_params(point)) is False:
      return None
    value, gradient = target_gradient(self.target_loss, point, marks, target, "target_loss")
    metrics |= {"target_loss": value, "target_grad_norm": optax.tree.norm(gradient)}
    return value, gradient

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


def _after(done: jax.Array, tree: Any) -> Any:
  """Returns the numbers of a tree, which now wait for what is done first.

  XLA then takes the passes one after the other, and the tangent pass beside the forward pass, and does not keep the
  arrays of all of them. (`jax.lax.optimization_barrier` is gone when XLA schedules a program for CPUs.)
  """
  never = done > jnp.inf  # which XLA does not know

  def wait(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return leaf
    return jnp.where(never, jnp.zeros_like(leaf), leaf)

  return jax.tree.map(wait, tree)


def _check_turns(alpha_every: Any, alpha_until: Any) -> None:
  if not calls.is_count(alpha_every):
    raise ValueError(f"alpha_every={alpha_every!r}: give a whole number of steps, 1 for each step")
  if alpha_until is not None and not calls.is_count(alpha_until):
    raise ValueError(f"alpha_until={alpha_until!r}: give a whole number of steps, or None for all of them")
