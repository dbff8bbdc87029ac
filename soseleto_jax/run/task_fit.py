"""What a config has to have for the labels of a task: classes that are shared or not, or numbers."""

import math

from ml_collections import ConfigDict

from soseleto_jax.data.task import Task
from soseleto_jax.models.losses import Loss, cross_entropy, find_loss
from soseleto_jax.run.given import Given


def check(config: ConfigDict, task: Task) -> None:
  """Raises ValueError for settings that the task's labels have no meaning for."""
  if task.shared_classes != config.data.shared_classes:
    raise ValueError(
      f"config.data.shared_classes={config.data.shared_classes} but task.shared_classes={task.shared_classes}: "
      "give the config the task's"
    )
  if task.has_classes:
    return
  for field, value in (("target_balanced", config.target_balanced), ("alpha.trial_epochs", config.alpha.trial_epochs)):
    if value:
      raise ValueError(
        f"config.{field}={value!r} goes by classes, and the labels of {task.name!r} are none; leave it {type(value)()}"
      )


def head_size(task: Task, side: str) -> int:
  """How many outputs a head of ours has: one for each class, or for each number in a label that is none."""
  if task.has_classes:
    return task.num_source_classes if side == "source" else task.num_target_classes
  return math.prod(getattr(task, side)["label"].shape[1:])


def loss_of(config: ConfigDict, task: Task, given: Given) -> Loss:
  """Returns the loss of a run: the one that was given, that of its config, or of classes the cross-entropy."""
  if given.loss is not None:
    return given.loss
  if config.loss:
    return find_loss(config.loss)
  if not task.has_classes:
    raise ValueError(
      f"the labels of {task.name!r} are no classes, so that there is no loss to take for granted: name one by "
      "config.loss, such as 'squared_error', or give train_and_evaluate a function, loss=..."
    )
  return cross_entropy
