"""Training without weights: on the source, on the target, on one after the other, or on both."""

import optax

from soseleto_jax.core.step import make_plain_step
from soseleto_jax.core.train_step import make_joint_step
from soseleto_jax.methods.base import Method, Phase, Setup

VERSION = 1  # raised where a change lets it compute something else: records of experiments count by it


def source_only(setup: Setup) -> Method:
  """Plain training on the source."""
  if not setup.task.shared_classes:
    raise ValueError(
      "config.data.shared_classes=False: method 'source_only' trains no target classifier; take 'finetune' for "
      "transfer between classes"
    )
  return Method((_plain(setup, "source", setup.num_steps, setup.optimizer()),))


def target_only(setup: Setup) -> Method:
  """Plain training on the target, for as many steps as the others take."""
  return Method((_plain(setup, "target", setup.num_steps, setup.optimizer()),))


def finetune(setup: Setup) -> Method:
  """Plain training on the source, then `config.finetune_epochs` of the target at `config.finetune_learning_rate`."""
  last = setup.optimizer(optax.constant_schedule(setup.config.finetune_learning_rate))
  return Method(
    (
      _plain(setup, "source", setup.num_steps, setup.optimizer()),
      _plain(setup, "target", setup.steps_of(setup.config.finetune_epochs), last),
    )
  )


def joint(setup: Setup) -> Method:
  """The source's loss and `config.target_weight` times the target's, in every step."""
  step = make_joint_step(
    setup.loss("source"),
    setup.loss("target"),
    setup.optimizer(),
    target_weight=setup.config.target_weight,
    axis_name=setup.axis_name,
  )
  return Method((Phase(setup.num_steps, step),))


def _plain(setup, side, num_steps, optimizer):
  return Phase(num_steps, make_plain_step(setup.loss(side), optimizer, side=side, axis_name=setup.axis_name))
