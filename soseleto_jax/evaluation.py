"""Accuracy and loss of a network over a whole set."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from soseleto_jax import processes
from soseleto_jax.data.transforms import Normalization
from soseleto_jax.sharding import AXIS


class Evaluator:
  """Evaluates one network on sets that live on the devices, each example counted once."""

  def __init__(
      self,
      predict: Callable[[Any, Any, jax.Array], jax.Array],
      normalization: Normalization,
      batch_size: int,
      mesh: Mesh,
  ):
    """Sets the evaluator up.

    Args:
      predict: `(params, model_state, x) -> logits [B, K]`.
      normalization: of the sets' pixels.
      batch_size: examples at a time; rounded up to a multiple of the devices.
      mesh: with an axis "data", which batches are split over.
    """
    self._batch_size = batch_size + -batch_size % mesh.shape[AXIS]
    self._split = NamedSharding(mesh, P(AXIS))

    @jax.jit
    def sums(params, model_state, arrays, index, mask):
      logits = predict(params, model_state, normalization.apply(arrays["x"][index]))
      label = arrays["label"][index]
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
      correct = jnp.argmax(logits, axis=-1) == label
      return jnp.sum(losses, where=mask), jnp.sum(correct, where=mask)

    self._sums = sums

  def __call__(self, params: Any, model_state: Any, arrays: Mapping[str, jax.Array]) -> dict[str, float]:
    """Returns "accuracy", a fraction, and "loss", the mean cross-entropy, over all of `arrays`: "x" and "label"."""
    num_examples = len(arrays["label"])
    totals = []
    for start in range(0, num_examples, self._batch_size):
      rows = np.arange(start, start + self._batch_size, dtype=np.int32)
      index, mask = processes.put((np.minimum(rows, num_examples - 1), rows < num_examples), self._split)
      totals.append(self._sums(params, model_state, arrays, index, mask))
    loss, correct = np.sum(np.asarray(jax.device_get(totals), np.float64), axis=0)
    return {"accuracy": float(correct / num_examples), "loss": float(loss / num_examples)}
