"""The state that a train step maps to the next one."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
  """Everything that training changes, as a pytree of arrays.

  Randomness is `fold_in(key(seed), step)`, so there is no key to carry and a resumed run draws what an uninterrupted
  one would have drawn.

  Attributes:
    step: int32 scalar, the number of updates so far.
    params: pytree of arrays: representation and classifiers.
    opt_state: state of the optax optimizer.
    alpha: float32 `[N]`, one weight in [0, 1] for each source example. Under a mapped axis each device holds a shard;
      weights below 0 there are padding, which no example owns.
    model_state: pytree of arrays that the loss updates (running statistics of BatchNorm), or None.
    seed: uint32 scalar.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  alpha: jax.Array
  model_state: Any
  seed: jax.Array

  def replace(self, **changes) -> "TrainState":
    """Returns a copy with these fields changed."""
    return dataclasses.replace(self, **changes)


def init_train_state(
  params: Any,
  optimizer: optax.GradientTransformation,
  num_source: int,
  *,
  alpha_init: float | jax.Array = 0.5,
  model_state: Any = None,
  seed: int | jax.Array = 0,
) -> TrainState:
  """Makes the state at step 0.

  Args:
    params: pytree of arrays.
    optimizer: any optax transformation.
    num_source: N, the number of source examples.
    alpha_init: the weights to start from: a number, or float `[N]`, in [0, 1].
    model_state: pytree of arrays for a loss that carries state, else None.
    seed: where the step's randomness starts from.

  Returns:
    A `TrainState`.

  Raises:
    ValueError: `num_source` is not positive, or `alpha_init` lies outside of [0, 1] or has another shape than `[N]`.

  >>> state = init_train_state({"w": jnp.zeros(3)}, optax.sgd(0.1), num_source=4)
  >>> state.alpha.tolist()
  [0.5, 0.5, 0.5, 0.5]
  """
  if num_source < 1:
    raise ValueError(f"num_source={num_source}: give the number of source examples, at least 1")
  if not isinstance(alpha_init, jax.core.Tracer):
    values = np.asarray(alpha_init)
    if values.shape not in ((), (num_source,)):
      raise ValueError(
        f"alpha_init has shape {values.shape}: give one number, or one for each of the {num_source} source examples"
      )
    outside = values[~((values >= 0) & (values <= 1))]  # NaN too
    if outside.size:
      raise ValueError(f"alpha_init={outside.flat[0]}: weights lie in [0, 1]")
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    alpha=jnp.broadcast_to(jnp.asarray(alpha_init, jnp.float32), (num_source,)),
    model_state=model_state,
    seed=jnp.asarray(seed, jnp.uint32),
  )
