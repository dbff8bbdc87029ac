"""The state that a train step maps to the next one."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from soseleto_jax.core import arrays, calls


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
    params: pytree of float arrays.
    optimizer: any optax transformation.
    num_source: N, the number of source examples.
    alpha_init: the weights to start from: a number, or float `[N]`, in [0, 1].
    model_state: pytree of arrays for a loss that carries state, else None.
    seed: where the step's randomness starts from, 0 .. 2**32 - 1.

  Returns:
    A `TrainState` of copies, so that donating it deletes nothing of the caller's. They lie where the originals do.

  Raises:
    ValueError: `num_source` is no positive whole number, `alpha_init` lies outside of [0, 1] or has another shape than
      `[N]`, `seed` is out of range or no whole number, `params` holds no array or what is no array of floats,
      `model_state` what is no array, or `optimizer` is none.

  >>> state = init_train_state({"w": jnp.zeros(3)}, optax.sgd(0.1), num_source=4)
  >>> state.alpha.tolist()
  [0.5, 0.5, 0.5, 0.5]
  """
  if not calls.is_count(num_source):
    raise ValueError(f"num_source={num_source!r}: give the number of source examples, a whole number, at least 1")
  _check_seed(seed)
  check_optimizer(optimizer)
  _check_params(params)
  _check_model_state(model_state)
  if not isinstance(alpha_init, jax.core.Tracer):
    _check_weights(np.asarray(alpha_init), num_source)
  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    alpha=jnp.broadcast_to(jnp.asarray(alpha_init, jnp.float32), (int(num_source),)),
    model_state=model_state,
    seed=jnp.asarray(seed, jnp.uint32),
  )
  return jax.tree.map(arrays.copied, state)


def check_optimizer(optimizer: Any) -> None:
  """Raises ValueError for what is no optax transformation."""
  if not (callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None))):
    raise ValueError(f"optimizer={optimizer!r}: give an optax transformation, such as optax.sgd(0.1)")


def weights(state: TrainState, num_source: int) -> np.ndarray:
  """Returns the weights of the source examples on the host, float32 `[N]`, without what pads them for devices.

  Args:
    state: on one device or split over several; with several processes, each has to call this.
    num_source: N.

  Raises:
    ValueError: the state has fewer weights.
  """
  if not calls.is_count(num_source) or num_source > len(state.alpha):
    raise ValueError(f"num_source={num_source!r}: the state has {len(state.alpha)} weights, padding included")
  values = arrays.gather(state.alpha)[:num_source]
  if values[-1] < 0:
    raise ValueError(f"num_source={num_source}: the state has {np.sum(values >= 0)} weights, and padding from there on")
  return values


def _check_seed(seed):
  if isinstance(seed, jax.Array):
    if jnp.issubdtype(seed.dtype, jnp.integer) and not seed.ndim and isinstance(seed, jax.core.Tracer):
      return
    seed = seed.item() if jnp.issubdtype(seed.dtype, jnp.integer) and not seed.ndim else seed
  if not calls.is_whole(seed) or not 0 <= seed < 2**32:
    raise ValueError(f"seed={seed!r}: give a whole number from 0 to 2**32 - 1, and no key")


def _check_weights(values, num_source):
  if values.dtype.kind not in "fiub" and not jnp.issubdtype(values.dtype, jnp.floating):
    raise ValueError(f"alpha_init={values!r}: give a number, or one for each source example, in [0, 1]")
  if values.shape not in ((), (num_source,)):
    raise ValueError(
      f"alpha_init has shape {values.shape}: give one number, or one for each of the {num_source} source examples"
    )
  outside = values[~((values >= 0) & (values <= 1))]  # NaN too
  if outside.size:
    raise ValueError(f"alpha_init={outside.flat[0]}: weights lie in [0, 1]")


def _check_model_state(model_state):
  for path, leaf in jax.tree.leaves_with_path(model_state):
    if not hasattr(leaf, "dtype") and not isinstance(leaf, (bool, int, float, complex)):
      name = f"model_state{jax.tree_util.keystr(path)}"
      raise ValueError(f"{name} is a {type(leaf).__name__}: it is a pytree of arrays; keep the rest in the loss")


def _check_params(params):
  if not jax.tree.leaves(params):
    raise ValueError(f"params={params!r} holds no array: give those that are trained")
  for path, leaf in jax.tree.leaves_with_path(params):
    name, dtype = f"params{jax.tree_util.keystr(path)}", getattr(leaf, "dtype", None)
    if dtype is None:
      raise ValueError(f"{name} is a {type(leaf).__name__}: params is a pytree of arrays; keep the rest in the loss")
    if not jnp.issubdtype(dtype, jnp.inexact):
      raise ValueError(f"{name} has dtype {dtype}, by which nothing can be differentiated: put it into model_state")
