"""A train step in two parts, and the one of ordinary training."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from soseleto_jax.core import axis
from soseleto_jax.core.alignment import Alignment
from soseleto_jax.core.axis import AxisName
from soseleto_jax.core.forward import mean_and_gradient
from soseleto_jax.core.losses import Examples, LossFn, mask_of
from soseleto_jax.core.train_state import TrainState, check_optimizer

Metrics = dict[str, jax.Array]
Gradients = Callable[..., tuple[Any, TrainState, Metrics]]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)  # JAX's errors show what they are about
class Step:
  """A train step `(state, *batches) -> (state, metrics)`, a pure function, that can also be taken in two parts.

  Attributes:
    gradients: `(state, *batches) -> (gradient, state, metrics)`; the state has its new `alpha` and `model_state`, and
      the rest, of which `opt_state` is not read, as it was.
    optimizer: makes an update of the gradient.
    sets: which set each batch is drawn from, "source" or "target".
    losses: the `LossFn` of each batch, by which rows at fault are found: see `soseleto_jax.skip_nonfinite`.
    axis_name: the axis that the step is mapped over, or None.
    alignment: the inner products that the step takes of two batches, or None.
    learns: of a step whose `alpha` does not learn at each: whether it does, of the step's number.
    parts: of such a step: those that it is where `alpha` learns, and where it rests.
  """

  gradients: Gradients
  optimizer: optax.GradientTransformation
  sets: tuple[str, ...] = ("source", "target")
  losses: tuple[LossFn, ...] = ()
  axis_name: AxisName = None
  alignment: Alignment | None = None
  learns: Callable[[Any], Any] | None = None
  parts: tuple["Step", "Step"] | None = None

  __name__ = "train_step"  # what jax.jit calls the program

  def __call__(self, state: TrainState, *batches: Any) -> tuple[TrainState, Metrics]:
    gradient, state, metrics = self.gradients(state, *batches)
    return self.descend(state, gradient, metrics), metrics

  def at(self, number: int) -> "Step":
    """Returns what this is at a step whose number is known beforehand, to be compiled alone."""
    if self.learns is None or self.parts is None:
      return self
    return self.parts[0 if self.learns(number) else 1]

  def descend(self, state: TrainState, gradient: Any, metrics: Metrics | None = None) -> TrainState:
    """Returns the state one step on, with the parameters updated.

    An optimizer that wants to know the loss, such as `optax.contrib.reduce_on_plateau`, gets the metric "loss" as
    `value`, if there is one.

    Raises:
      ValueError: the optimizer searches along a line, for which it would evaluate the loss again.
    """
    value = {} if metrics is None or "loss" not in metrics else {"value": metrics["loss"]}
    optimizer = with_extra_args(self.optimizer)
    try:
      updates, opt_state = optimizer.update(gradient, state.opt_state, state.params, **value)
    except TypeError as error:
      if "value_fn" not in str(error):
        raise
      raise ValueError(
        "the optimizer searches along a line (value_fn), which a step on batches has no loss function for; take it "
        "without, such as optax.lbfgs(0.1, linesearch=None)"
      ) from error
    params = optax.apply_updates(state.params, updates)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state)


def with_extra_args(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
  """`optax.with_extra_args_support`, also for those that take some extra arguments alone, as `optax.contrib.sam`."""
  optimizer = optax.with_extra_args_support(optimizer)
  parameters = inspect.signature(optimizer.update).parameters
  if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
    return optimizer

  def update(gradient, state, params=None, **extra):
    known = {name: value for name, value in extra.items() if name in parameters}
    return optimizer.update(gradient, state, params, **known)

  return optax.GradientTransformationExtraArgs(optimizer.init, update)


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
    `metrics` are float32 scalars "loss", "grad_norm" and "valid_rows", the number of rows that are not masked.
  """

  check_optimizer(optimizer)

  def gradients(state: TrainState, batch: Any) -> tuple[Any, TrainState, Metrics]:
    mask = mask_of(batch)
    # The first of two keys, as the source loss of `make_train_step` has it.
    rng, _ = axis.step_keys(state.seed, state.step, axis_name)
    loss = Examples(batch, mask, rng, state.model_state, axis_name).bind(loss_fn, "loss_fn")
    value, gradient, model_state = mean_and_gradient(loss, state.params, mask, axis_name)
    metrics = {
      "loss": value,
      "grad_norm": optax.tree.norm(gradient),
      "valid_rows": axis.total(jnp.sum(mask), axis_name),
    }
    state = state.replace(model_state=axis.merged_state(model_state, state.model_state, mask, axis_name))
    return gradient, state, as_float32(metrics)

  return Step(gradients, optimizer, (side,), (loss_fn,), axis_name)


def as_float32(metrics: Metrics) -> Metrics:
  """Returns the metrics as float32 scalars."""
  return {name: value.astype("float32") for name, value in metrics.items()}
