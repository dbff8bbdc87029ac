"""More images of the target's classes, for methods that learn from them without their labels."""

import ml_collections
import numpy as np

from soseleto_jax.data import draws, reading, sides
from soseleto_jax.data.selection import Examples


def get_unlabelled(
  config: ml_collections.ConfigDict, seed: int, num_examples: int = 0, read: reading.Read = reading.read
) -> Examples:
  """Returns images of the target's split and classes beside those of the task with this config and seed.

  None of them is also a target, validation or test image.

  Args:
    config: the block that `soseleto_jax.data.get_task.data_config` returns, for transfer.
    seed: the experiment's seed.
    num_examples: how many; all that remain where there are fewer, or for 0.
    read: as in `soseleto_jax.data.get_task.get_task`.

  Returns:
    "x" as the task's target stores it, not normalised; "label", int32 `[N]`, for scoring alone; "row", int32 `[N]`,
    their places in the split, ascending. With the same seed, fewer examples are part of more.

  Raises:
    ValueError: for a config that cannot be used, `shared_classes`, or where no images remain.
    RuntimeError: where a data set is not there and cannot be prepared.
  """
  sides.check_config(config)
  if config.shared_classes:
    raise ValueError(
      "config.data.shared_classes=True: what target and validation leave is the source; unlabelled images are for "
      "transfer between classes"
    )
  if num_examples < 0:
    raise ValueError(f"num_examples={num_examples} is negative; give 0 for all that remain, or more")
  pool, held_out = sides.read_target(read, config)
  drawn = sides.draw_target(pool, held_out, config.target, seed)
  rest = pool.without(*(part for part in drawn if part is not None))
  if not len(rest):
    raise ValueError("config.data.target: target and validation leave no images of its split; ask for fewer of them")
  order = draws.permutation(len(rest), seed, "select", "unlabelled")
  return rest.take(np.sort(order[: num_examples or len(rest)])).examples
