"""A run's network and list from its folder, without the data that it was trained on."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soseleto_jax import storage
from soseleto_jax.config import upgraded
from soseleto_jax.methods.base import PredictOfNetwork
from soseleto_jax.models import make_network
from soseleto_jax.models.losses import predict_fn
from soseleto_jax.models.network import Network, as_network
from soseleto_jax.report import writers
from soseleto_jax.run import interface
from soseleto_jax.run.prediction import Predictor
from soseleto_jax.run.result import Result
from soseleto_jax.run.saved_state import read_json, read_state


def load(workdir: str | os.PathLike, checkpoint: str = "last", network: Any = None) -> Result:
  """Loads what a run left: its network, to predict with, and its list of suspects.

  Neither the data that it was trained on is needed nor that the run has ended; nothing is written.

  Args:
    workdir: the run's folder.
    checkpoint: "last", the newest, whose network is that of `train_and_evaluate`'s result once the run has ended; or
      "best", that of the best validation accuracy.
    network: the run's, where one was given to `train_and_evaluate`.

  Returns:
    A `Result`, whose `state` has no `opt_state`.

  Raises:
    ValueError: no run's folder, no such checkpoint, or another network than the run's.
    RuntimeError: the checkpoint is damaged.
  """
  workdir = storage.as_path(workdir)
  config = read_json(workdir / "config.json")
  if not config:
    raise ValueError(f"{workdir / 'config.json'} is not there: give the folder of a run")
  side = interface.read(workdir)
  predict, params, model_state = _prediction(config, side, network)
  state = read_state(workdir, checkpoint, params, model_state)
  batch_size = config.get("eval_batch_size", 500)
  return Result(
    state,
    np.asarray(state.alpha),
    writers.read_metrics(workdir),
    read_json(workdir / "summary.json"),
    workdir / "report.html",
    Predictor(side, predict, state.params, state.model_state, batch_size),
  )


def _prediction(config, side, given) -> tuple[Any, Any, Any]:
  """Returns how the run predicts, and the parameters and state that it does so with, as they are at the start."""
  if side.predicts == interface.OWN:
    return None, None, None
  network = _network(config, side, given)
  x = side.normalization.apply(jnp.zeros((1, *side.shape), side.dtype))
  params, model_state = network.init(jax.random.key(config["seed"]), x)
  if side.predicts == interface.NETWORK:
    return predict_fn(network, head=side.head), params, model_state
  return PredictOfNetwork(network, side.head), {"network": params}, model_state


def _network(config, side, given) -> Network:
  name, whole = config.get("given", {}).get("network"), side.class_names is None
  if given is not None:
    return as_network(given, None if whole else side.num_classes)
  if name is not None:
    raise ValueError(f"the run's network was given to it, {name}: give it here too, load(workdir, network=...)")
  return make_network(upgraded(config)["model"], side.num_classes, seed=config["seed"], whole=whole)
