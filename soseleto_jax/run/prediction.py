"""A trained network as its user calls it: on inputs as they are stored."""

import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from soseleto_jax.core import sharding
from soseleto_jax.data import lazy
from soseleto_jax.run.evaluation import Evaluator
from soseleto_jax.run.interface import Interface

_LOGGER = logging.getLogger(__name__)
_MOST_REACHES = 9  # beyond the target's inputs, in units of their range, before a warning asks for their units


class Predictor:
  """Classifies inputs as they are stored, on all devices; with several processes each has to call it, with the same."""

  def __init__(
    self,
    interface: Interface,
    predict: Callable[[Any, Any, jax.Array], jax.Array] | None,
    params: Any,
    model_state: Any,
    batch_size: int = 500,
  ):
    """Sets the predictor up; nothing is put on the devices before the first call.

    Args:
      interface: of the network.
      predict: `(params, model_state, x normalised) -> logits [B, K]`; None where that is not known.
      params: of the network, on the host.
      model_state: what else it carries, on the host, or None.
      batch_size: inputs at a time.
    """
    self.interface = interface
    self._predict, self._host, self._batch_size = predict, (params, model_state), batch_size

  def labels(self, x: Any) -> np.ndarray:
    """Returns the most probable class of each input `[N]`, as the user calls it; without classes what is predicted."""
    if self.interface.class_names is None:
      outputs, shape = self.logits(x), self.interface.label_shapes["target"]
      return outputs.reshape(len(outputs), *shape) if math.prod(outputs.shape[1:]) == math.prod(shape) else outputs
    names = self.interface.labels
    number = np.argmax(self.logits(x), axis=-1)
    return number if names is None else np.asarray(names)[number]

  def probabilities(self, x: Any) -> np.ndarray:
    """Returns the probability of each class, float32 `[N, K]`."""
    if self.interface.class_names is None:
      raise ValueError("the labels of the run are no classes, which would have probabilities: take predict")
    logits = self.logits(x)
    exponential = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponential / exponential.sum(axis=-1, keepdims=True)

  def logits(self, x: Any) -> np.ndarray:
    """Returns the network's logits, float32 `[N, K]`, of inputs `[N, ...]` in memory or on disk."""
    if self._predict is None:
      raise ValueError(
        "the run's method predicts by more than its network: run its command again, which repeats no training, and "
        "take the result of train_and_evaluate"
      )
    x = self._checked(x)
    if not len(x):
      names = self.interface.class_names
      shape = self.interface.label_shapes["target"] if names is None else (len(names["target"]),)
      return np.zeros((0, *shape), np.float32)
    return self._evaluator.predict(*self._on_devices, x)

  @functools.cached_property
  def _evaluator(self):
    return Evaluator(self._predict, self.interface.normalization, self._batch_size, sharding.make_mesh())

  @functools.cached_property
  def _on_devices(self):
    return jax.device_put(self._host, NamedSharding(sharding.make_mesh(), P()))

  def _checked(self, x):
    shape, dtype = self.interface.shape, np.dtype(self.interface.dtype)
    if hasattr(x, "__array__") or not hasattr(x, "shape"):
      x = np.asanyarray(x)  # which leaves a memory map one
    if x.shape[1:] != shape:
      one = f"; of one alone give x[None], {(1, *x.shape)}" if x.shape == shape else ""
      raise ValueError(f"x has shape {tuple(x.shape)}: the network takes {('N', *shape)}{one}".replace("'N'", "N"))
    if x.dtype.kind not in "uif":
      raise ValueError(f"x has dtype {x.dtype}: give numbers, {dtype} as the network was trained on")
    if lazy.is_lazy(x) or not len(x):
      return x
    x = x if x.dtype in (np.uint8, np.float32) else x.astype(np.int32 if dtype == np.int32 else np.float32)
    if x.dtype.kind == "f":
      finite = np.isfinite(x).reshape(len(x), -1).all(axis=1)
      if not finite.all():
        raise ValueError(f"x[{np.argmin(finite)}] is not finite: leave it out, or mend it")
      if dtype == np.uint8 and 0 < x.max() <= 1:
        raise ValueError(
          f"x reaches from {x.min():.3g} to {x.max():.3g}, and the network was trained on bytes from 0 to 255: give "
          "images as they are stored, or 255 * x"
        )
    (low, high), most = self.interface.reach, _MOST_REACHES
    if x.max() - high > most * (high - low) or low - x.min() > most * (high - low):
      _LOGGER.warning(
        "x reaches from %.3g to %.3g, and what the network was trained on from %.3g to %.3g: give it in the same units",
        x.min(), x.max(), low, high,
      )  # fmt: skip
    return x
