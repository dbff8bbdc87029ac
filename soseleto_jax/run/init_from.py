"""A run that starts from the network and weights of another."""

import logging
from typing import Any

from soseleto_jax import storage
from soseleto_jax.core.train_state import TrainState, init_train_state
from soseleto_jax.run.saved_state import read_state

_LOGGER = logging.getLogger(__name__)


def start_from(folder: str, state: TrainState, optimizer: Any, num_source: int) -> TrainState:
  """Returns a state at step 0 with the network of another run's newest checkpoint, and with its weights.

  Args:
    folder: the other run's.
    state: the run's own at step 0, on one device.
    optimizer: of the run's first phase.
    num_source: how many source examples the run has. Where the other had another number, whose are whose is not known,
      and weights start afresh, with a warning.

  Raises:
    ValueError: no run's folder, or a network of other arrays.
    RuntimeError: its checkpoints are damaged.
  """
  other = read_state(storage.as_path(folder), "last", state.params, state.model_state)
  alpha = other.alpha
  if len(alpha) == num_source:
    _LOGGER.info("starting from the network and weights of %s", folder)
  else:
    _LOGGER.warning(
      "%s has weights of %d source examples, and here there are %d: only its network is taken, weights start afresh",
      folder, len(alpha), num_source,
    )  # fmt: skip
    alpha = state.alpha
  return init_train_state(
    other.params, optimizer, num_source, alpha_init=alpha, model_state=other.model_state, seed=state.seed
  )
