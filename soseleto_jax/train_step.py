"""The SOSELETO step (Algorithm 1) and plain training, as pure functions of arrays."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from soseleto_jax import alignment as alignment_lib
from soseleto_jax import alpha as alpha_lib
from soseleto_jax import nonfinite
from soseleto_jax.alignment import LossFn
from soseleto_jax.train_state import TrainState

Metrics = dict[str, jax.Array]
Transform = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class Step:
  """A train step `(state, *batches) -> (state, metrics)`, a pure function, that can also be taken in two parts.

  Attributes:
    gradients: `(state, *batches) -> (gradient, state, metrics)`; the state has its new `alpha` and `model_state`, and
      the rest, of which `opt_state` is not read, as it was.
    optimizer: makes an update of the gradient.
    skip_nonfinite: leaves parameters and optimizer state as they are where the gradient is not finite.
  """

  gradients: Callable[..., tuple[Any, TrainState, Metrics]]
  optimizer: optax.GradientTransformation
  skip_nonfinite: bool = False

  __name__ = "train_step"  # what jax.jit calls the program

  def __call__(self, state: TrainState, *batches: Any) -> tuple[TrainState, Metrics]:
    gradient, state, metrics = self.gradients(state, *batches)
    return self.descend(state, gradient), metrics

  def descend(self, state: TrainState, gradient: Any) -> TrainState:
    """Returns the state one step on, with the parameters updated."""
    updates, opt_state = self.optimizer.update(gradient, state.opt_state, state.params)
    new = optax.apply_updates(state.params, updates), opt_state
    if self.skip_nonfinite:
      new = nonfinite.keep(jnp.isfinite(optax.tree.norm(gradient)), new, (state.params, state.opt_state))
    return state.replace(step=state.step + 1, params=new[0], opt_state=new[1])


def make_train_step(
    source_loss: LossFn,
    target_loss: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    alpha_step_size: float | optax.Schedule,
    target_params: Any = None,
    target_params_loss: LossFn | None = None,
    target_weight: float = 1.0,
    alignment_params: Any = None,
    alignment_direction: Callable[[Any], Any] | None = None,
    alignment_transform: Transform | Sequence[Transform] | None = None,
    contraction: str = "jvp",
    microbatch_size: int | None = None,
    alpha_first: bool = False,
    burn_in: int = 0,
    lookahead: float | optax.Schedule | None = None,
    skip_nonfinite: bool = False,
    axis_name: str | None = None,
) -> Step:
  r"""Builds the train step of SOSELETO.

  With B source rows, T target rows and a the batch's weights, the step is

  .. math::
    g_t &= \partial \tfrac1T \sum_i \ell^t_i, \qquad q_j = \langle \partial \ell^s_j, g_t \rangle \\
    g &= \tfrac1B \sum_j a_j \, \partial \ell^s_j \; (+ \, w \, g_t \text{ on target\_params, w = target\_weight}) \\
    \theta &\leftarrow \theta + \mathrm{optimizer}(g), \qquad
    \alpha_b \leftarrow \mathrm{clip}(\alpha_b + s\, q, 0, 1)

  The paper's Q carries 1/n^s; here the source gradient is averaged over the batch and q is left unscaled, as in the
  authors' code. The paper's rates are then `learning_rate` = λ_p and `alpha_step_size` s = λ_α λ_p.

  Guarantees: rows with `mask` False change nothing, whatever finite values they hold, and rows of `alpha` outside of
  the batch keep their bits. A row that stands twice in a batch gets the sum of its two updates, then one clip. An index
  outside of `alpha`, or of its padding (weights below 0), counts as masked. `alpha` stays in [0, 1].

  Args:
    source_loss: `LossFn` of the source batch.
    target_loss: `LossFn` of the target batch.
    optimizer: any optax transformation; its learning rate is λ_p.
    alpha_step_size: s, or an optax schedule of the step.
    target_params: prefix tree of bools over `params`, True where a leaf also descends the target loss (the target's own
      classifier). None: the target acts through `alpha` alone.
    target_params_loss: `LossFn` of the target batch that `target_params` descend. None: `target_loss`, whose gradient
      then serves both purposes; another one costs a second pass over the target batch.
    target_weight: factor of that gradient. With T / B an example counts the same whichever set it comes from.
    alignment_params: prefix tree of bools, True where a leaf takes part in the inner product. None: all.
    alignment_direction: `f(g_t) -> v`, what q is the inner product with in place of g_t, such as
      `soseleto_jax.directions.orthogonal`; leaves without a part in the product are None. None: g_t, as published.
    alignment_transform: `f(q, losses, batch, axis_name) -> q`, or several, applied in turn before the update of
      `alpha`. None: as published.
    contraction: "jvp" or "vmap_grad", see `gradient_alignment`.
    microbatch_size: for "vmap_grad", rows of Q at a time.
    alpha_first: True updates `alpha` before the parameters, which then use the new weights (Appendix C and the authors'
      code). False: Algorithm 1.
    burn_in: for so many steps every source example counts fully in the parameters' update, while `alpha` learns
      already. Weights that come from an untrained network are noise, and feeding them back blurs those that follow.
      0: as published.
    lookahead: λ, or a schedule of the step: takes g_t at θ - λ (1/B) Σ a_j ∂ℓ_j, where equation 4 takes it at θ.
      None: as published.
    skip_nonfinite: goes on without rows whose loss or alignment is not finite, as if they were masked, sets their
      `alpha` to 0, and leaves parameters and optimizer state alone in a step whose gradient is not finite even so.
      Costs another forward and tangent pass; metrics then also hold those of `soseleto_jax.nonfinite.skipping`.
    axis_name: the axis that the step is mapped over (`jax.shard_map`, `jax.pmap`); batches and `alpha` are then this
      device's shares, and parameters are the same on every device.

  Returns:
    `step(state, source_batch, target_batch) -> (state, metrics)`, a pure function, as a `Step`. `source_batch` is a
    mapping with "index", int32 `[B]`, the rows of `alpha`; both batches may hold "mask", bool; the rest is the losses'
    own, each array with a leading axis of one row per example. `metrics` are float32 scalars: "source_loss" (weighted,
    with the weights of the parameter update), "target_loss", "alpha_mean" (of the batch, after its update),
    "alignment_mean" (of q as it updates `alpha`), "grad_norm" (of g), "target_grad_norm" (of g_t over the leaves that
    it is needed for). After the step, `model_state` is what the source loss returned; the target loss reads the one
    before.

  Raises:
    ValueError: when built, for a contraction that does not exist or a misplaced `microbatch_size`; when traced, for
      losses that are not one per example, "vmap_grad" with a `model_state`, a missing "index".
  """
  alignment_lib.check_contraction(contraction, microbatch_size)
  transforms = _as_sequence(alignment_transform)

  def gradients(state: TrainState, source_batch: Any, target_batch: Any) -> tuple[Any, TrainState, Metrics]:
    if contraction == "vmap_grad" and state.model_state is not None:
      raise ValueError(
          "contraction='vmap_grad' with a model_state: layers that couple examples have no per-example gradients; "
          "use contraction='jvp', or a model without such layers"
      )
    source_rng, target_rng = jax.random.split(_step_key(state, axis_name))
    params = _varying(state.params, axis_name)
    source_fn = _bind(source_loss, source_batch, source_rng, state.model_state, "source_loss")
    target_fn = _bind(target_loss, target_batch, target_rng, state.model_state, "target_loss")
    weights, valid, rows = _read_alpha(state.alpha, source_batch, axis_name)
    num_valid = _count(valid, axis_name)
    losses, pullback, model_state = jax.vjp(source_fn, params, has_aux=True)
    losses_shown = jnp.where(valid, losses, 0.0)

    def in_use(weights):
      return jnp.where(state.step < burn_in, valid.astype(weights.dtype), weights) if burn_in else weights

    def source_gradient(weights):
      cotangent = (jnp.where(valid, weights, 0.0) / num_valid).astype(losses.dtype)
      return _psum(pullback(cotangent)[0], axis_name)

    def target_gradient(loss_fn, at, marks):
      at = _varying(at, axis_name)
      mask, count = _target_rows(target_batch, axis_name)
      mean = lambda leaves: jnp.sum(jnp.where(mask, loss_fn(alignment_lib.fill(leaves, at))[0], 0.0)) / count
      return _psum(jax.value_and_grad(mean)(alignment_lib.select(marks, at)), axis_name)

    def counted(q):
      return jnp.where(valid & jnp.isfinite(losses + q) if skip_nonfinite else valid, q, 0.0)

    def aligned(g_target):
      direction = alignment_lib.select(alignment_params, g_target)
      if alignment_direction is not None:
        direction = alignment_direction(direction)
      direction = _varying(direction, axis_name)
      if contraction == "vmap_grad":
        q = alignment_lib.per_example_products(
            source_loss, params, source_batch, source_rng, direction, microbatch_size
        )
      else:
        q = alignment_lib.directional_derivative(lambda p: source_fn(p)[0], params, direction)
      q = counted(q)
      for transform in transforms:
        q = counted(transform(q, losses_shown, {**source_batch, "mask": valid}, axis_name))
      return q

    weights = in_use(weights)
    target_point = state.params
    if lookahead is not None:
      gradient = source_gradient(weights)
      rate = _at(lookahead, state.step)
      target_point = jax.tree.map(lambda p, g: p - (rate * g).astype(p.dtype), target_point, gradient)
    aligned_with = alignment_params if target_params_loss else _either(alignment_params, target_params, state.params)
    target_mean, g_target = target_gradient(target_fn, target_point, aligned_with)

    q = aligned(g_target)
    delta = _at(alpha_step_size, state.step) * q
    alpha, new_weights = alpha_lib.add_and_clip(state.alpha, rows, delta, axis_name)
    if alpha_first:
      weights = in_use(new_weights)
    if alpha_first or lookahead is None:
      # Waiting for q makes XLA run the tangent pass beside the forward pass, and not keep both passes' arrays.
      gradient = source_gradient(jnp.where(jnp.isnan(q), jnp.nan, weights))
    if target_params is not None:
      g_descent = g_target
      if target_params_loss:
        descent_fn = _bind(target_params_loss, target_batch, target_rng, state.model_state, "target_params_loss")
        _, g_descent = target_gradient(descent_fn, target_point, target_params)
      gradient = _add(gradient, target_params, jax.tree.map(lambda leaf: target_weight * leaf, g_descent))

    mean = lambda values: _psum(jnp.sum(values), axis_name) / num_valid
    metrics = {
        "source_loss": mean(weights * losses_shown),
        "target_loss": target_mean,
        "alpha_mean": mean(new_weights),
        "alignment_mean": mean(q),
        "grad_norm": optax.tree.norm(gradient),
        "target_grad_norm": optax.tree.norm(g_target),
    }
    state = state.replace(alpha=alpha, model_state=_pmean(model_state, axis_name))
    return gradient, state, _float32(metrics)

  if skip_nonfinite:
    gradients = nonfinite.skipping(gradients, (source_loss, target_loss), axis_name)
  return Step(gradients, optimizer, skip_nonfinite)


def make_joint_step(
    source_loss: LossFn, target_loss: LossFn, optimizer: optax.GradientTransformation, **options: Any
) -> Step:
  """Builds a step that descends both mean losses at once: `make_train_step` with an `alpha` that stays as it is.

  No inner product is taken, so that a step costs what the two gradients do.

  Args:
    source_loss: `LossFn` of the source batch, weighted by `alpha`.
    target_loss: `LossFn` of the target batch.
    optimizer: any optax transformation.
    **options: `target_weight`, `skip_nonfinite` and `axis_name` of `make_train_step`.
  """
  return make_train_step(
      source_loss, target_loss, optimizer, alpha_step_size=0.0, target_params=True, alignment_params=False, **options
  )


def make_plain_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    skip_nonfinite: bool = False,
    axis_name: str | None = None,
) -> Step:
  """Builds a step of ordinary training: the mean of one batch's losses, every weight 1, `alpha` left alone.

  Args:
    loss_fn: `LossFn` of the batch.
    optimizer: any optax transformation.
    skip_nonfinite: as in `make_train_step`.
    axis_name: the axis that the step is mapped over, as in `make_train_step`.

  Returns:
    `step(state, batch) -> (state, metrics)`, a pure function, as a `Step`; rows with `mask` False change nothing.
    `metrics` are float32 scalars "loss" and "grad_norm".
  """

  def gradients(state: TrainState, batch: Any) -> tuple[Any, TrainState, Metrics]:
    rng, _ = jax.random.split(_step_key(state, axis_name))  # what the source loss of `make_train_step` draws from
    loss = _bind(loss_fn, batch, rng, state.model_state, "loss_fn")
    mask, count = _target_rows(batch, axis_name)

    def mean(params):
      losses, model_state = loss(params)
      return jnp.sum(jnp.where(mask, losses, 0.0)) / count, model_state

    (value, model_state), gradient = jax.value_and_grad(mean, has_aux=True)(_varying(state.params, axis_name))
    value, gradient = _psum((value, gradient), axis_name)
    metrics = {"loss": value, "grad_norm": optax.tree.norm(gradient)}
    return gradient, state.replace(model_state=_pmean(model_state, axis_name)), _float32(metrics)

  if skip_nonfinite:
    gradients = nonfinite.skipping(gradients, (loss_fn,), axis_name)
  return Step(gradients, optimizer, skip_nonfinite)


def _bind(loss_fn, batch, rng, model_state, name):
  """Returns `params -> (losses [B], new model_state)` for a loss with or without model state."""
  batch_size = alignment_lib.batch_size_of(batch)

  def bound(params):
    result = loss_fn(params, batch, rng) if model_state is None else loss_fn(params, batch, rng, model_state)
    losses, new_model_state = (result, None) if model_state is None else result
    alignment_lib.check_losses(losses, batch_size, name)
    return losses, new_model_state

  return bound


def _read_alpha(alpha, batch, axis_name):
  if "index" not in batch:
    raise ValueError(f"source batch with keys {sorted(batch)}: it needs 'index', int32 [B], the rows of alpha")
  mask = batch.get("mask", jnp.ones(batch["index"].shape, bool))
  return alpha_lib.read(alpha, batch["index"], mask, axis_name)


def _target_rows(batch, axis_name):
  mask = batch.get("mask", jnp.ones(alignment_lib.batch_size_of(batch), bool))
  return mask, _count(mask, axis_name)


def _count(mask, axis_name):
  """Number of unmasked rows of the whole batch, at least 1 so that a batch of padding divides."""
  return jnp.maximum(_psum(jnp.sum(mask, dtype=jnp.float32), axis_name), 1.0)


def _step_key(state, axis_name):
  key = jax.random.fold_in(jax.random.key(state.seed), state.step)
  return key if axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(axis_name))


def _either(alignment_params, target_params, params):
  """Marks the leaves that the target gradient is needed for; None marks all."""
  if alignment_params is None or target_params is None:
    return alignment_params
  return jax.tree.map(
      lambda a, t: a or t,
      jax.tree.broadcast(alignment_params, params),
      jax.tree.broadcast(target_params, params),
  )


def _add(gradient, mask, other):
  """Adds the leaves of `other` that `mask` marks to `gradient`."""
  marked = alignment_lib.select(mask, gradient)
  summed = jax.tree.map(
      lambda g, o: None if g is None else g + o.astype(g.dtype), marked, other, is_leaf=lambda leaf: leaf is None
  )
  return alignment_lib.fill(summed, gradient)


def _at(value, step):
  return value(step) if callable(value) else value


def _as_sequence(transform):
  if transform is None:
    return ()
  return (transform,) if callable(transform) else tuple(transform)


def _float32(metrics):
  return {name: value.astype(jnp.float32) for name, value in metrics.items()}


def _psum(tree, axis_name):
  return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def _pmean(tree, axis_name):
  """Means over the axis in each leaf's own dtype: a counter of steps stays an integer."""
  if axis_name is None:
    return tree
  return jax.tree.map(lambda leaf: jax.lax.pmean(leaf, axis_name).astype(leaf.dtype), tree)


def _varying(tree, axis_name):
  """Marks replicated values as varying over the axis, so that gradients by them stay each device's own.

  `jax.shard_map` would otherwise sum them over the axis by itself, where `jax.pmap` does not.
  """
  if axis_name is None:
    return tree

  def cast(leaf):
    try:
      return jax.lax.pcast(leaf, axis_name, to="varying")
    except ValueError:  # varying already, or an axis of vmap, which knows no such difference
      return leaf

  return jax.tree.map(cast, tree)
