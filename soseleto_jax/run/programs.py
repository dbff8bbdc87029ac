"""What an experiment compiles: its steps, mapped over the devices, and the search for examples at fault."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from soseleto_jax.core import nonfinite, sharding
from soseleto_jax.core.alignment import Alignment
from soseleto_jax.core.compiling import jit_quickly
from soseleto_jax.core.step import Step
from soseleto_jax.feed.preparation import Preparation

Prepare = Callable[[Any, Any], Sequence[Any]]  # (state, batches by name as they are fed) -> those that the step takes

_AUGMENTATION = 2**31  # keeps the keys of augmentation apart from those of the step


def make_prepare(preparations: Mapping[str, Preparation], sets: Sequence[str]) -> Prepare:
  """Returns the preparation of the batches of a step that draws from these sets, by the keys of that step."""

  def prepare(state, batches):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(state.seed), state.step), _AUGMENTATION)
    return [preparations[name](batches[name], jax.random.fold_in(key, number)) for number, name in enumerate(sets)]

  return prepare


def make_dispatch(
  step: Step, prepare: Prepare, mesh: Mesh, count: int, shard_params: bool, quickly: bool = False
) -> Callable[..., Any]:
  """Compiles `count` steps: `(state, batches) -> (state, metrics [count])`; the state is donated."""

  def gradients(state, batches):
    return step.gradients(state, *prepare(state, batches))

  prepared = dataclasses.replace(step, gradients=gradients)
  mapped = sharding.map_over_devices(prepared, mesh, (P(sharding.AXIS),), shard_params)

  def one(state, batches):
    state, metrics = mapped(state, batches)
    if len(step.sets) == 1 and "loss" in metrics:  # named after the set that it is on, as in the other steps
      metrics[f"{step.sets[0]}_loss"] = metrics.pop("loss")
    return state, metrics

  def several(state, batches):
    if count == 1:
      state, metrics = one(state, jax.tree.map(lambda part: part[0], batches))
      return state, jax.tree.map(lambda metric: metric[None], metrics)
    return jax.lax.scan(one, state, batches)

  return (jit_quickly if quickly else jax.jit)(several, donate_argnums=0)


def make_find_faulty(step: Step, prepare: Prepare, mesh: Mesh) -> Callable[..., Any]:
  """Compiles `(state, batches of one step) -> (index [B], at fault [B])` for each of the step's batches."""
  thorough = dataclasses.replace(step, alignment=Alignment())  # over all parameters

  def find(state, batches):
    batches = prepare(state, batches)
    found = nonfinite.faulty_rows(thorough, state, *batches) if thorough.losses else []
    return [(batch["index"], faulty) for batch, faulty in zip(batches, found, strict=False)]  # padding's index too

  split = P(sharding.AXIS)
  mapped = jax.shard_map(find, mesh=mesh, in_specs=(sharding.state_specs(), split), out_specs=split)
  return jit_quickly(mapped, out_shardings=NamedSharding(mesh, P()))
