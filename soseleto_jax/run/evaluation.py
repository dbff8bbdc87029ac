"""Loss and accuracy of a network over a whole set."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from soseleto_jax.core import arrays
from soseleto_jax.core.sharding import AXIS
from soseleto_jax.data.normalization import Normalization
from soseleto_jax.models.losses import Loss, cross_entropy

Predict = Callable[[Any], np.ndarray]  # inputs as they are stored [N, ...] -> logits [N, K], or other outputs


class Evaluator:
  """Evaluates one network on sets that live on the devices, each example counted once."""

  def __init__(
    self,
    predict: Callable[[Any, Any, jax.Array], jax.Array],
    normalization: Normalization,
    batch_size: int,
    mesh: Mesh,
    *,
    loss: Loss = cross_entropy,
    has_classes: bool = True,
  ):
    """Sets the evaluator up.

    Args:
      predict: `(params, model_state, x) -> logits [B, K]`, or other outputs.
      normalization: of the sets' pixels.
      batch_size: examples at a time; rounded up to a multiple of the devices.
      mesh: with an axis "data", which batches are split over.
      loss: of outputs and labels, float32 `[B]`.
      has_classes: whether labels are classes, so that there is an accuracy.
    """
    self._batch_size = batch_size + -batch_size % mesh.shape[AXIS]
    self._split = NamedSharding(mesh, P(AXIS))

    def logits_of(params, model_state, x):
      return predict(params, model_state, normalization.apply(x))

    @jax.jit
    def sums(params, model_state, x, label, mask):
      logits = logits_of(params, model_state, x)
      values = {"accuracy": jnp.argmax(logits, axis=-1) == label} if has_classes else {}
      values["loss"] = loss(logits, label)
      return {name: jnp.sum(value, where=mask) for name, value in values.items()}

    self._logits, self._sums = jax.jit(logits_of), sums

  def __call__(self, params: Any, model_state: Any, data: Mapping[str, jax.Array]) -> dict[str, float]:
    """Returns means over all of `data`, "x" and "label": "loss", and of classes "accuracy", a fraction."""
    num_examples = len(data["label"])
    totals = []
    for start in range(0, num_examples, self._batch_size):
      rows = np.arange(start, start + self._batch_size, dtype=np.int32)
      index, mask = arrays.put((np.minimum(rows, num_examples - 1), rows < num_examples), self._split)
      x, label = _take(self._split)(data["x"], data["label"], index)
      totals.append(self._sums(params, model_state, x, label, mask))
    totals = jax.device_get(totals)
    return {name: float(sum(np.float64(part[name]) for part in totals) / num_examples) for name in totals[0]}

  def predict(self, params: Any, model_state: Any, x: Any) -> np.ndarray:
    """Returns the logits `[N, K]`, or other outputs, of inputs as they are stored, in memory or on disk.

    Every process has to call it.
    """
    parts = []
    for start in range(0, len(x), self._batch_size):
      rows = np.minimum(np.arange(start, start + self._batch_size), len(x) - 1)
      part = arrays.put(np.asarray(x[rows]), self._split)
      parts.append(arrays.gather(self._logits(params, model_state, part))[: len(x) - start])
    return np.concatenate(parts)


@functools.cache
def _take(split):
  """Compiles what depends on the size of a set apart from the network, which is compiled once for all of them."""
  return jax.jit(lambda x, label, index: (x[index], label[index]), out_shardings=split)
