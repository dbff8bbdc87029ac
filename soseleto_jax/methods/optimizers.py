"""Optimizers and schedules by config."""

import optax
from ml_collections import ConfigDict

SCHEDULES = ("constant", "cosine", "steps", "inverse")
OPTIMIZERS = ("sgd", "adam")


def make_schedule(config: ConfigDict, steps_per_epoch: int, num_steps: int) -> optax.Schedule:
  """Learning rate λ_p of each step.

  Args:
    config: `config.optimizer`. `schedule` is "constant"; "cosine", to 0 at the last step; "steps", times 0.1 after each
      of `drop_epochs`; or "inverse", Caffe's `learning_rate * (1 + 1e-4 step) ** -0.75`.
    steps_per_epoch: steps of one pass over the source.
    num_steps: steps of the whole run.
  """
  rate = config.learning_rate
  if config.schedule == "constant":
    return optax.constant_schedule(rate)
  if config.schedule == "cosine":
    return optax.cosine_decay_schedule(rate, num_steps)
  if config.schedule == "steps":
    return optax.piecewise_constant_schedule(
      rate, {round(epoch * steps_per_epoch): 0.1 for epoch in config.drop_epochs}
    )
  if config.schedule == "inverse":
    return lambda step: rate * (1.0 + 1e-4 * step) ** -0.75
  raise ValueError(f"config.optimizer.schedule={config.schedule!r}: choose one of {', '.join(SCHEDULES)}")


def make_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
  """SGD with momentum, or Adam, with L2 weight decay added to the gradient as in Caffe."""
  decay = optax.add_decayed_weights(config.weight_decay) if config.weight_decay else optax.identity()
  if config.name == "sgd":
    return optax.chain(decay, optax.sgd(schedule, momentum=config.momentum or None))
  if config.name == "adam":
    return optax.chain(decay, optax.adam(schedule))
  raise ValueError(f"config.optimizer.name={config.name!r}: choose one of {', '.join(OPTIMIZERS)}")
