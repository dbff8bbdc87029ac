"""Losses and gradients that are not finite: the rows at fault, and steps that go on without them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from soseleto_jax.core import alpha as alpha_lib
from soseleto_jax.core import axis, trees
from soseleto_jax.core.alternating import alternating
from soseleto_jax.core.axis import AxisName
from soseleto_jax.core.forward import forward
from soseleto_jax.core.losses import Examples, batch_size_of, mask_of
from soseleto_jax.core.step import Step, with_extra_args
from soseleto_jax.core.train_state import TrainState


def skip_nonfinite(step: Step) -> Step:
  """Returns the step, made to go on without rows that are not finite.

  Rows whose loss or alignment is not finite, see `faulty_rows`, count as masked, and those of the source get `alpha` 0.
  Where the gradient is not finite even so, parameters, optimizer state and `model_state` stay as they are. Metrics also
  hold "skipped_rows", the number of such rows in all batches, and "skipped_step", 1 for such a step. It costs another
  forward pass, and the step's inner products once more.

  Args:
    step: any `Step`; of one that names no losses, rows are told by their inputs alone.

  Raises:
    ValueError: it is none.
  """
  if not isinstance(step, Step):
    raise ValueError(f"step={step!r}: give a Step, as make_train_step returns it, before jax.jit")
  if step.learns is not None and step.parts is not None:
    return alternating(step.learns, *map(skip_nonfinite, step.parts))

  def gradients(state, *batches):
    found = faulty_rows(step, state, *batches)
    cleaned = [without(batch, faulty, step.axis_name) for batch, faulty in zip(batches, found, strict=True)]
    gradient, after, metrics = step.gradients(state, *cleaned)
    sound = _is_sound(gradient)
    skipped = [rows & mask_of(batch) for rows, batch in zip(found, batches, strict=True)]
    if len(batches) > 1 and "index" in batches[0]:
      after = after.replace(alpha=_emptied(after.alpha, batches[0]["index"], skipped[0], step.axis_name))
    number = axis.total(sum(jnp.sum(rows) for rows in skipped), step.axis_name)
    metrics |= {"skipped_rows": number.astype(jnp.float32), "skipped_step": 1 - sound.astype(jnp.float32)}
    return gradient, after.replace(model_state=_keep(sound, after.model_state, state.model_state)), metrics

  return dataclasses.replace(step, gradients=gradients, optimizer=_resting_where_not_finite(step.optimizer))


def faulty_rows(step: Step, state: TrainState, *batches: Mapping[str, Any]) -> list[jax.Array]:
  """Finds the rows that make a step's loss or alignment not finite.

  Those are rows with an input that is not finite; with such a loss; and of the first of two batches (the source), where
  the step takes inner products, those whose gradient has a product with the other's that is not finite. Where every row
  has such a loss or product the parameters are at fault, and no row. Losses draw what they draw in the step, and the
  products run over the leaves, and are taken in the way, of the step's.

  Args:
    step: its losses, those of each batch, are looked at; of one that names none, rows are told by their inputs alone.
    state: its `params`, which are finite, and its `model_state` are what the losses are taken at.
    *batches: mappings of arrays, as the step takes them; mapped over the step's axis if it has one.

  Returns:
    bool `[B]` for each batch; rows with "mask" False, which no step reads, can be True as well.
  """
  if not step.losses:
    return [~_finite_inputs(batch) for batch in batches]
  name, params = step.axis_name, axis.varying(state.params, step.axis_name)
  keys = axis.step_keys(state.seed, state.step, name)
  found: list[jax.Array] = []
  direction = None
  for loss, batch, key in reversed(list(zip(step.losses, batches, keys, strict=False))):
    mask = mask_of(batch)
    faulty = ~_finite_inputs(batch)
    cleaned = without(batch, faulty, name)
    examples = Examples(cleaned, cleaned["mask"], key, state.model_state, name)
    passed = forward(examples.bind(loss, "loss"), params)
    suspect = ~jnp.isfinite(passed.losses)
    if direction is not None and step.alignment is not None:
      suspect |= ~jnp.isfinite(step.alignment.products(passed, loss, examples, direction))
    num_fine = axis.total(jnp.sum(mask & ~faulty & ~suspect), name)
    faulty |= suspect & (num_fine > 0)
    found.insert(0, faulty)
    if len(found) < len(batches) and step.alignment is not None:
      direction = _direction(step.alignment, loss, batch, faulty, examples, params)
  return found


def without(batch: Mapping[str, Any], faulty: jax.Array, axis_name: AxisName = None) -> dict[str, Any]:
  """Returns the batch with faulty rows masked and a copy of another row in their place: 0 times inf is not 0."""
  other = jnp.argmin(faulty)
  if axis_name is not None:
    device = jnp.argmin(jax.lax.all_gather(faulty[other], axis_name))

  def fill(leaf):
    row = leaf[other]
    if axis_name is not None:
      row = jax.lax.all_gather(row, axis_name)[device]
    return jnp.where(faulty.reshape(-1, *[1] * (leaf.ndim - 1)), row, leaf)

  return {**jax.tree.map(fill, dict(batch)), "mask": mask_of(batch) & ~faulty}


def _emptied(alpha, index, rows, axis_name):
  """Returns `alpha` with 0 at the index of those rows."""
  _, _, found = alpha_lib.read(alpha, index, rows, axis_name)
  return alpha_lib.add_and_clip(alpha, found, -rows.astype(jnp.float32), axis_name)[0]


def _resting_where_not_finite(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
  """Returns the optimizer, which for a gradient that is not finite moves neither the parameters nor its state."""

  optimizer = with_extra_args(optimizer)

  def update(gradient, state, params=None, **extra):
    updates, new_state = optimizer.update(gradient, state, params, **extra)
    sound = _is_sound(gradient)
    nothing = jax.tree.map(lambda leaf: jnp.full_like(leaf, -0.0), updates)  # p + -0.0 is p to the bit, 0.0 too
    return _keep(sound, updates, nothing), _keep(sound, new_state, state)

  return optax.GradientTransformationExtraArgs(optimizer.init, update)


def _is_sound(gradient: Any) -> jax.Array:
  return jnp.isfinite(optax.tree.norm(gradient))


def _keep(sound: jax.Array, new: Any, old: Any) -> Any:
  """Returns `new` where `sound` and `old` elsewhere, leaf by leaf."""
  return jax.tree.map(lambda n, o: jnp.where(sound, n, o), new, old)


def _finite_inputs(batch):
  finite = jnp.ones(batch_size_of(batch), bool)
  for leaf in jax.tree.leaves(batch):
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
      finite &= jnp.isfinite(leaf).all(axis=tuple(range(1, leaf.ndim)))
  return finite


def _direction(alignment, loss, batch, faulty, examples, params):
  """The gradient of the sum of the losses without those at fault, by the leaves that the products run over.

  Zeros, which make every product finite, where it is not finite itself.
  """
  cleaned = without(batch, faulty, examples.axis_name)
  losses_of = dataclasses.replace(examples, batch=cleaned, mask=cleaned["mask"]).bind(loss, "loss")

  def total(marked):
    return jnp.sum(jnp.where(cleaned["mask"], losses_of(trees.fill(marked, params))[0], 0.0))

  gradient = axis.total(jax.grad(total)(trees.select(alignment.params, params)), examples.axis_name)
  sound = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient)]).all()
  return jax.tree.map(lambda leaf: jnp.where(sound, leaf, 0), gradient)
