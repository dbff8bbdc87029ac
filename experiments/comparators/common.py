"""What the comparators have in common: the network is trained as the library's own methods train it."""

import optax
from ml_collections import ConfigDict

from soseleto_jax import optimizers


def network_training(
    config: ConfigDict, steps_per_epoch: int
) -> tuple[int, optax.Schedule, optax.GradientTransformation]:
  """Returns the number of steps, the learning rate λ_p of each, and the network's optimizer.

  Raises:
    ValueError: for source and target with different classes: the comparators are for noisy labels.
  """
  if not config.data.shared_classes:
    raise ValueError(
        f"config.data.shared_classes=False: method {config.method!r} is for noisy labels, where source and target "
        "have the same classes; take 'soseleto', 'finetune', 'joint' or 'target_only' for transfer"
    )
  num_steps = config.num_epochs * steps_per_epoch
  schedule = optimizers.make_schedule(config.optimizer, steps_per_epoch, num_steps)
  return num_steps, schedule, optimizers.make_optimizer(config.optimizer, schedule)
