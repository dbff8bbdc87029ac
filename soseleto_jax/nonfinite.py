"""Losses and gradients that are not finite: the rows at fault, and steps that go on without them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from soseleto_jax import alpha as alpha_lib
from soseleto_jax.alignment import LossFn, batch_size_of
from soseleto_jax.train_state import TrainState


def faulty_rows(
    losses: Sequence[LossFn], state: TrainState, *batches: Mapping[str, Any], axis_name: str | None = None
) -> list[jax.Array]:
  """Finds the rows that make a step's loss or gradient not finite.

  Those are rows with an input that is not finite; with such a loss; and of the first of two batches (the source) those
  whose gradient has a product with the other's that is not finite. Where every row has such a loss or product the
  parameters are at fault, and no row.

  Args:
    losses: the loss of each batch: of source and target, or one.
    state: its `params`, which are finite, and its `model_state` are what the losses are taken at.
    *batches: mappings of arrays, as a train step takes them.
    axis_name: the mapped axis that batches are split over, or None.

  Returns:
    bool `[B]` for each batch; rows with "mask" False, which no step reads, can be True as well.
  """
  rng = jax.random.fold_in(jax.random.key(state.seed), state.step)
  found, direction = [], None
  for loss, batch in reversed(list(zip(losses, batches, strict=True))):
    mask = batch.get("mask", jnp.ones(batch_size_of(batch), bool))
    faulty = ~_finite_inputs(batch)
    losses_of = _bind(loss, without(batch, faulty), rng, state.model_state)
    if direction is None:
      suspect = ~jnp.isfinite(losses_of(state.params))
    else:
      values, products = jax.jvp(losses_of, (state.params,), (direction,))
      suspect = ~(jnp.isfinite(values) & jnp.isfinite(products))
    num_fine = jnp.sum(mask & ~faulty & ~suspect)
    if axis_name is not None:
      num_fine = jax.lax.psum(num_fine, axis_name)
    faulty |= suspect & (num_fine > 0)
    found.insert(0, faulty)
    if len(found) < len(batches):
      direction = _gradient(_bind(loss, without(batch, faulty), rng, state.model_state), state.params, mask & ~faulty)
  return found


def without(batch: Mapping[str, Any], faulty: jax.Array) -> dict[str, Any]:
  """Returns the batch with faulty rows masked and a copy of another row in their place: 0 times inf is not 0."""
  other = jnp.argmin(faulty)

  def fill(leaf):
    row = jnp.where(faulty[other], jnp.zeros_like(leaf[0]), leaf[other])
    return jnp.where(faulty.reshape(-1, *[1] * (leaf.ndim - 1)), row, leaf)

  mask = batch.get("mask", jnp.ones(faulty.shape, bool))
  return {**jax.tree.map(fill, dict(batch)), "mask": mask & ~faulty}


def skipping(
    gradients: Callable[..., Any], losses: Sequence[LossFn], axis_name: str | None = None
) -> Callable[..., Any]:
  """Returns the first part of a step, made to go on without faulty rows.

  Faulty rows count as masked, and those of the source get `alpha` 0. Metrics also hold "skipped_rows", their number in
  all batches, and "skipped_step", 1 where the gradient is not finite all the same; `model_state` then stays.

  Args:
    gradients: `(state, *batches) -> (gradient, state, metrics)`, see `soseleto_jax.train_step.Step`.
    losses: the loss of each batch.
    axis_name: the mapped axis that batches are split over, or None.
  """

  def careful(state, *batches):
    found = faulty_rows(losses, state, *batches, axis_name=axis_name)
    gradient, after, metrics = gradients(state, *map(without, batches, found))
    sound = jnp.isfinite(metrics["grad_norm"])
    number = sum(jnp.sum(rows & batch.get("mask", True)) for rows, batch in zip(found, batches, strict=True))
    if len(batches) > 1:
      mask = found[0] & batches[0].get("mask", True)
      _, _, rows = alpha_lib.read(after.alpha, batches[0]["index"], mask, axis_name)
      alpha, _ = alpha_lib.add_and_clip(after.alpha, rows, -mask.astype(jnp.float32), axis_name)
      after = after.replace(alpha=alpha)
    if axis_name is not None:
      number = jax.lax.psum(number, axis_name)
    metrics |= {"skipped_rows": number.astype(jnp.float32), "skipped_step": 1 - sound.astype(jnp.float32)}
    return gradient, after.replace(model_state=keep(sound, after.model_state, state.model_state)), metrics

  return careful


def keep(sound: jax.Array, new: Any, old: Any) -> Any:
  """Returns `new` where `sound` and `old` elsewhere, leaf by leaf."""
  return jax.tree.map(lambda n, o: jnp.where(sound, n, o), new, old)


def _bind(loss, batch, rng, model_state):
  if model_state is None:
    return lambda params: loss(params, batch, rng)
  return lambda params: loss(params, batch, rng, model_state)[0]


def _finite_inputs(batch):
  finite = jnp.ones(batch_size_of(batch), bool)
  for leaf in jax.tree.leaves(batch):
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
      finite &= jnp.isfinite(leaf).all(axis=tuple(range(1, leaf.ndim)))
  return finite


def _gradient(losses_of, params, mask):
  """The gradient of the unmasked losses' sum, or zeros, which make every product finite, where it is not finite."""
  gradient = jax.grad(lambda params: jnp.sum(jnp.where(mask, losses_of(params), 0.0)))(params)
  sound = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient)]).all()
  return jax.tree.map(lambda leaf: jnp.where(sound, leaf, 0), gradient)
