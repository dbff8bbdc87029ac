"""What the comparators have in common: the network is trained as the library's own methods train it."""

import optax
from ml_collections import ConfigDict

from soseleto_jax import optimizers


def network_training(
    config: ConfigDict, steps_per_epoch: int, *, transfer: bool = False
) -> tuple[int, optax.Schedule, optax.GradientTransformation]:
  """Returns the number of steps, the learning rate λ_p of each, and the network's optimizer.

  Raises:
    ValueError: for source and target with different classes, or, with `transfer`, for the same.
  """
  if config.data.shared_classes == transfer:
    use = "transfer, with different classes" if transfer else "noisy labels, with the same classes"
    raise ValueError(
        f"config.data.shared_classes={config.data.shared_classes}: method {config.method!r} is for {use} in source and "
        "target; take 'soseleto', 'finetune', 'joint' or 'target_only', which are for both"
    )
  num_steps = config.num_epochs * steps_per_epoch
  schedule = optimizers.make_schedule(config.optimizer, steps_per_epoch, num_steps)
  return num_steps, schedule, optimizers.make_optimizer(config.optimizer, schedule)


def refuse_state(config: ConfigDict, mutable: bool) -> None:
  """Raises ValueError for a network that carries state, `mutable`."""
  if mutable:
    raise ValueError(
        f"config.model.name={config.model.name!r} carries state (BatchNorm), which couples the examples of a batch; "
        "take a network without, such as 'cifar_quick'"
    )
