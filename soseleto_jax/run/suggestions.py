"""One pass over the source by the trained network: what does it say of each label that was given?"""

import collections
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from soseleto_jax.core import sharding
from soseleto_jax.core.train_state import TrainState
from soseleto_jax.data import lazy
from soseleto_jax.methods.base import Method, Predict, Setup, keep_params
from soseleto_jax.models.losses import predict_fn
from soseleto_jax.report.source_list import Suggestions

_ON_DEVICES = 2  # batches that are there at a time


def suggest(setup: Setup, method: Method, state: TrainState, mesh: Mesh | None = None) -> Suggestions | None:
  """Asks a trained network, in evaluation mode, for the class of every source example, none of them augmented.

  Each process reads the rows of its own devices, and every process has to call it.

  Args:
    setup: what the method was made for.
    method: how the network was trained.
    state: where training ended.
    mesh: of all devices, by default.

  Returns:
    The suggestions, of the source's classes; None where the method learns no weights, or where classes differ and it
    does not say how it predicts the source's.
  """
  predict = source_predict(setup, method)
  if predict is None:
    return None
  mesh = sharding.make_mesh() if mesh is None else mesh
  replicated, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(sharding.AXIS))
  source, count = setup.task.source, setup.task.num_source
  size = setup.config.eval_batch_size + -setup.config.eval_batch_size % mesh.size
  own = _rows_of_process(split, size)

  def rows(number):
    return np.minimum(number * size + own, count - 1)

  ask = _ask(predict, setup.task.source_normalization, replicated)
  params = jax.device_put(state.params, replicated)
  said = Suggestions(np.empty(count, np.float32), np.empty(count, np.int32), np.empty(count, np.float32))
  waiting: collections.deque[Any] = collections.deque()

  def receive():
    start, answers = waiting.popleft()
    for column, answer in zip(vars(said).values(), answers, strict=True):
      column[start : start + size] = np.asarray(answer)[: count - start]

  num_batches = -(-count // size)
  for number, x in enumerate(lazy.reads(source["x"], num_batches, rows)):
    parts = np.asarray(x), source["label"][rows(number)]
    batch = [jax.make_array_from_process_local_data(split, part, (size, *part.shape[1:])) for part in parts]
    waiting.append((number * size, ask(params, state.model_state, *batch)))
    if len(waiting) == _ON_DEVICES:
      receive()
  while waiting:
    receive()
  return said


def source_predict(setup: Setup, method: Method) -> Predict | None:
  """Returns how a trained network predicts the source's classes; None where that is not known, or there are none."""
  if not method.uses_alpha or not setup.task.has_classes:
    return None
  if method.predict_source is not None:
    return method.predict_source
  if setup.task.shared_classes:
    return method.predict or predict_fn(setup.network)
  return predict_fn(setup.network, head="source") if method.init is keep_params else None


def _rows_of_process(split, size):
  """Returns the rows of a batch that this process's devices hold, ascending."""
  slices = split.addressable_devices_indices_map((size,)).values()
  return np.unique(np.concatenate([np.arange(size)[part] for part in slices if part is not None]))


def _ask(predict, normalization, replicated):
  @functools.partial(jax.jit, out_shardings=replicated)
  def ask(params, model_state, x, label):
    probability = jax.nn.softmax(predict(params, model_state, normalization.apply(x)).astype(jnp.float32))
    suggested = jnp.argmax(probability, axis=-1).astype(jnp.int32)
    given, most = (jnp.take_along_axis(probability, of[:, None], axis=-1)[:, 0] for of in (label, suggested))
    return given, suggested, most

  return ask
