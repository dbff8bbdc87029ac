"""A train step in two parts, and the one of ordinary training."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from soseleto_jax.core import axis
from soseleto_jax.core.axis import AxisName
from soseleto_jax.core.forward import mean_and_gradient
from soseleto_jax.core.losses import LossFn, bind, mask_of
from soseleto_jax.core.train_state import TrainState

Metrics = dict[str, jax.Array]
Gradients = Callable[..., tuple[Any, TrainState, Metrics]]


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
  """A train step `(state, *batches) -> (state, metrics)`, a pure function, that can also be taken in two parts.

  Attributes:
    gradients: `(state, *batches) -> (gradient, state, metrics)`; the state has its new `alpha` and `model_state`, and
      the rest, of which `opt_state` is not read, as it was.
    optimizer: makes an update of the gradient.
    sets: which set each batch is drawn from, "source" or "target".
    losses: the `LossFn` of each batch, by which rows at fault are found: see `soseleto_jax.skip_nonfinite`.
    axis_name: the axis that the step is mapped over, or None.
  """

  gradients: Gradients
  optimizer: optax.GradientTransformation
  sets: tuple[str, ...] = ("source", "target")
  losses: tuple[LossFn, ...] = ()
  axis_name: AxisName = None

  __name__ = "train_step"  # what jax.jit calls the program

  def __call__(self, state: TrainState, *batches: Any) -> tuple[TrainState, Metrics]:
    gradient, state, metrics = self.gradients(state, *batches)
    return self.descend(state, gradient), metrics

  def descend(self, state: TrainState, gradient: Any) -> TrainState:
    """Returns the state one step on, with the parameters updated."""
    updates, opt_state = self.optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state)


def make_plain_step(
  loss_fn: LossFn, optimizer: optax.GradientTransformation, *, side: str = "source", axis_name: AxisName = None
) -> Step:
  """Builds a step of ordinary training: the mean of one batch's losses, every weight 1, `alpha` left alone.

  Args:
    loss_fn: `LossFn` of the batch.
    optimizer: any optax transformation.
    side: "source" or "target", which set the batch is drawn from; the step is the same.
    axis_name: the axis that the step is mapped over, as in `make_train_step`.

  Returns:
    `step(state, batch) -> (state, metrics)`, a pure function, as a `Step`; rows with `mask` False change nothing.
    `metrics` are float32 scalars "loss" and "grad_norm".
  """

  def gradients(state: TrainState, batch: Any) -> tuple[Any, TrainState, Metrics]:
    # The first of two keys, as the source loss of `make_train_step` has it.
    rng, _ = jax.random.split(axis.step_key(state.seed, state.step, axis_name))
    loss = bind(loss_fn, batch, rng, state.model_state, "loss_fn")
    value, gradient, model_state = mean_and_gradient(loss, state.params, mask_of(batch), axis_name)
    metrics = {"loss": value, "grad_norm": optax.tree.norm(gradient)}
    return gradient, state.replace(model_state=axis.mean_state(model_state, axis_name)), as_float32(metrics)

  return Step(gradients, optimizer, (side,), (loss_fn,), axis_name)


def as_float32(metrics: Metrics) -> Metrics:
  """Returns the metrics as float32 scalars."""
  return {name: value.astype("float32") for name, value in metrics.items()}
