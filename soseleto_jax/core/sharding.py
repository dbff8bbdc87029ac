"""Where arrays live: one mesh axis, "data", that `alpha` and batches are split over, and parameters too on request."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from soseleto_jax.core import arrays
from soseleto_jax.core.alpha import PADDING
from soseleto_jax.core.losses import batch_size_of, mask_of
from soseleto_jax.core.step import Step
from soseleto_jax.core.train_state import TrainState

AXIS = "data"
_WHOLE: Any = P()
_SPLIT: Any = P(AXIS)
STATE_SPECS = TrainState(step=_WHOLE, params=_WHOLE, opt_state=_WHOLE, alpha=_SPLIT, model_state=_WHOLE, seed=_WHOLE)
MIN_SPLIT_SIZE = 2**14  # smaller parameters stay whole: moving them costs more than they take


def make_mesh(devices: Any = None) -> Mesh:
  """Returns a mesh of the given devices, or of all, along the one axis "data"."""
  devices = jax.devices() if devices is None else devices
  return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


def state_specs(axis_name: Any = AXIS) -> TrainState:
  """Returns the partition of a train state, for a `jax.shard_map` of your own.

  Args:
    axis_name: the mesh axis, or tuple of axes, that `alpha` and batches are split over, as in `make_train_step`.

  Returns:
    A `TrainState` of `PartitionSpec`s, a prefix of any state: for `in_specs` and `out_specs`. `alpha` has to be padded
    to a multiple of the devices, with any weight below 0.
  """
  return STATE_SPECS.replace(alpha=P(axis_name))


def state_shardings(state: TrainState, mesh: Mesh, shard_params: bool = False) -> TrainState:
  """Returns the sharding of each array of a state, in its place.

  `alpha` is split over "data". What lies on this mesh already, split over other axes of it, stays so along these;
  everything else is on every device. With `shard_params` each other array of `params` and `opt_state` is split over
  "data" along its longest axis that the devices divide, unless it has none, or fewer than 2**14 elements.
  """

  def split(tree):
    return jax.tree.map(lambda leaf: _own(leaf, mesh) or place(_param_spec(leaf.shape, mesh.shape[AXIS])), tree)

  def place(spec):
    return NamedSharding(mesh, spec)

  _check_mesh(mesh)
  whole = jax.tree.map(lambda leaf: _own(leaf, mesh) or place(P()), state)
  shardings = whole.replace(alpha=NamedSharding(mesh, P(AXIS)))
  if shard_params:
    shardings = shardings.replace(params=split(state.params), opt_state=split(state.opt_state))
  return shardings


def _own(leaf, mesh):
  """Returns the sharding that an array has on the mesh, along axes other than "data"; None where it has none.

  Raises:
    ValueError: it is split so over another mesh.
  """
  sharding = getattr(leaf, "sharding", None)
  if not isinstance(sharding, NamedSharding) or isinstance(leaf, jax.core.Tracer):
    return None
  spec = P(*map(_without_data, sharding.spec))
  if all(part is None for part in spec):
    return None
  if sharding.mesh != mesh:
    raise ValueError(
      f"an array {leaf.shape} of the state is split over {tuple(spec)} of another mesh, {sharding.mesh}: give that "
      f"mesh, with an axis 'data', or place the array on this one, {mesh}"
    )
  return NamedSharding(mesh, spec)


def _without_data(part):
  """Returns the names of a part of a `PartitionSpec` that are not "data"."""
  names = tuple(name for name in (part if isinstance(part, tuple) else (part,)) if name not in (AXIS, None))
  return names if len(names) > 1 else (names[0] if names else None)


def _check_mesh(mesh):
  if AXIS not in mesh.axis_names:
    raise ValueError(f"mesh has the axes {mesh.axis_names}: one has to be called 'data', as in make_mesh()")


def _param_spec(shape, num_devices):
  lengths = [length if length % num_devices == 0 else 0 for length in shape]
  if math.prod(shape) < MIN_SPLIT_SIZE or not any(lengths):
    return P()
  return P(*[None] * lengths.index(max(lengths)), AXIS)


def shard_train_state(state: TrainState, mesh: Mesh, shard_params: bool = False) -> TrainState:
  """Places a train state on a mesh with an axis "data".

  Args:
    state: on any device, or NumPy arrays.
    mesh: with an axis "data" of D devices.
    shard_params: whether large parameters and their optimizer state are split as well, see `shard_train_step`.

  Returns:
    The state with `alpha` split over "data" and padded to a multiple of D with -1, which marks rows that no example
    owns (`soseleto_jax.weights` leaves them out), and the rest as `state_shardings` says: what is split over other axes
    of the mesh stays so. All arrays are copies, so that donating them never deletes the caller's.

  Raises:
    ValueError: no axis of the mesh is called "data", or an array is split over an axis of another mesh.
  """
  _check_mesh(mesh)
  alpha = np.asarray(state.alpha)
  padded = np.pad(alpha, (0, -len(alpha) % mesh.shape[AXIS]), constant_values=PADDING)
  shardings = state_shardings(state, mesh, shard_params)

  def place(leaf, sharding):
    return arrays.put(arrays.copied(leaf), sharding)

  placed = jax.tree.map(place, state.replace(alpha=None), shardings.replace(alpha=None))
  # From the host, and not by way of one device that may have no room for all of it.
  return placed.replace(alpha=arrays.put(padded, NamedSharding(mesh, P(AXIS))))


def shard_train_step(step: Callable[..., Any], mesh: Mesh, shard_params: bool = False) -> Callable[..., Any]:
  """Maps a train step over the devices of a mesh.

  With `shard_params`, large parameters and their optimizer state live split over the devices, so that between steps
  each device holds 1/D of them. That is all it saves: during a step every device gathers all parameters once and holds
  a whole gradient of the source and one of the target. The optimizer then works on each device's part, and any optax
  transformation means what it says (a clip by the global norm is by the norm of all parts).

  Args:
    step: from `make_train_step(..., axis_name="data")` or `make_plain_step`; without `shard_params` also any function
      of a state and batches.
    mesh: with an axis "data" of D devices. Along other axes devices compute alike, or what is split over them.
    shard_params: as it was given to `shard_train_state`. Meant for `contraction="jvp"`: beside the per-example
      gradients of "vmap_grad" it saves little.

  Returns:
    `step(state, *batches) -> (state, metrics)`, jitted. The state is as `shard_train_state` places it, and donated.
    Batches arrive whole: they are split over the devices, padded with masked rows where B is not a multiple of D.

  Raises:
    ValueError: a step without `axis_name`, a mesh without "data", a plain function with `shard_params`, and, when
      called, a state that `shard_train_state` has not placed.
  """
  _check_mesh(mesh)
  made = getattr(step, "__wrapped__", step)  # what jax.jit was given
  if isinstance(made, Step) and AXIS not in np.atleast_1d(made.axis_name or ""):
    raise ValueError(f"step has axis_name={made.axis_name!r}: make it with axis_name='data', the mesh's axis")
  if shard_params and not isinstance(step, Step):
    raise ValueError("shard_params=True with a plain function: give a Step, whose parts can be mapped apart")

  def sharded(state, *batches):
    batches = [pad_batch(batch, mesh) for batch in batches]
    if _is_explicit(mesh):  # shard_map moves no such array by itself
      batches = jax.reshard(batches, NamedSharding(mesh, P(AXIS)))
    return map_over_devices(step, mesh, [P(AXIS)] * len(batches), shard_params)(state, *batches)

  jitted = jax.jit(sharded, donate_argnums=0)

  @functools.cache
  def keeping(shardings):
    return jax.jit(sharded, donate_argnums=0, out_shardings=(jax.tree.unflatten(*shardings), None))

  @functools.wraps(jitted)
  def checked(state, *batches):
    _check_placed(state, mesh)
    leaves, structure = jax.tree.flatten(state)
    if any(_own(leaf, mesh) for leaf in leaves):  # or XLA would place anew what is not split
      return keeping((structure, tuple(leaf.sharding for leaf in leaves)))(state, *batches)
    return jitted(state, *batches)

  checked.lower = jitted.lower  # type: ignore[attr-defined]
  return checked


def _check_placed(state, mesh):
  alpha, count = state.alpha, mesh.shape[AXIS]
  placed = not isinstance(alpha, jax.Array) or isinstance(alpha, jax.core.Tracer) or alpha.sharding.device_set
  if len(alpha) % count or (isinstance(placed, set) and placed != set(mesh.devices.flat)):
    raise ValueError(
      f"alpha, {len(alpha)} weights, is not split over the {count} devices: call shard_train_state(state, mesh)"
    )


def map_over_devices(step: Any, mesh: Mesh, specs: Any, shard_params: bool = False) -> Callable[..., Any]:
  """Returns `step(state, *args) -> (state, metrics)` mapped over "data", with the partition of each of `args`.

  With `shard_params`, the step's `gradients` are mapped, and its `descend` is partitioned automatically.
  """
  # Where other axes are explicit, JAX 0.12 fails on scalars in a part that is mapped over "data" alone.
  names = set(mesh.axis_names) if AxisType.Explicit in mesh.axis_types else {AXIS}
  if not shard_params:
    whole_step = jax.shard_map(
      step, mesh=mesh, in_specs=(STATE_SPECS, *specs), out_specs=(STATE_SPECS, P()), axis_names=names
    )
    return _gathering(whole_step, mesh) if AxisType.Explicit in mesh.axis_types else whole_step
  mapped = jax.shard_map(
    step.gradients, mesh=mesh, in_specs=(STATE_SPECS, *specs), out_specs=(P(), STATE_SPECS, P()), axis_names=names
  )

  def sharded(state, *args):
    shardings = state_shardings(state, mesh, shard_params)
    explicit = _is_explicit(mesh)
    whole = jax.reshard(state.params, NamedSharding(mesh, P())) if explicit else state.params
    gradient, after, metrics = mapped(state.replace(params=whole, opt_state=None), *args)
    after = after.replace(params=state.params, opt_state=state.opt_state)
    if explicit:
      descend = jax.sharding.auto_axes(step.descend, axes=AXIS, out_sharding=shardings)
      return descend(after, gradient, metrics), metrics
    return jax.lax.with_sharding_constraint(step.descend(after, gradient, metrics), shardings), metrics

  return sharded


def _gathering(step, mesh):
  """Returns the step with what is split over other, explicit axes made whole before it, and split after it."""

  def move(leaf, sharding, spec=None):
    split = any(_without_data(part) for part in sharding.spec)
    return jax.reshard(leaf, NamedSharding(mesh, sharding.spec if spec is None else spec)) if split else leaf

  def gathered(state, *args):
    shardings = jax.tree.map(lambda leaf: jax.typeof(leaf).sharding, state)
    whole = jax.tree.map(lambda leaf, sharding: move(leaf, sharding, P()), state, shardings)
    state, metrics = step(whole, *args)
    return jax.tree.map(move, state, shardings), metrics

  return gathered


def pad_batch(batch: Any, mesh: Mesh) -> Any:
  """Appends copies of the first rows under "mask" False until the devices divide the batch."""
  size = batch_size_of(batch)
  missing = -size % mesh.shape[AXIS]
  if not missing:
    return batch
  rows = np.arange(size + missing) % size
  mask = jnp.concatenate([mask_of(batch), jnp.zeros(missing, bool)])
  return {**jax.tree.map(lambda leaf: leaf[rows], dict(batch)), "mask": mask}


def _is_explicit(mesh):
  return mesh.axis_types[mesh.axis_names.index(AXIS)] is AxisType.Explicit
