"""From a Flax module to the losses of a train step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from soseleto_jax.core.losses import LossFn
from soseleto_jax.models.network import as_network

Loss = Callable[[jax.Array, jax.Array], jax.Array]  # (logits [B, K], label [B]) -> [B]


def cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
  """Softmax cross-entropy -log p of the labels, `[B, K]` and int `[B]` to `[B]`."""
  return optax.softmax_cross_entropy_with_integer_labels(logits, label)


def margin(logits: jax.Array, label: jax.Array) -> jax.Array:
  """Mean logit of the other classes minus that of the label, `[B, K]` and int `[B]` to `[B]`.

  Linear in the logits: every example pulls alike, where the cross-entropy leaves the word to those that the network
  gets wrong. Unbounded below: for steering `alpha`, not for descending.
  """
  num_classes = logits.shape[-1]
  of_label = jnp.sum(logits * jax.nn.one_hot(label, num_classes), axis=-1)
  return (jnp.sum(logits, axis=-1) - num_classes * of_label) / (num_classes - 1)


def classification_loss(
  model: Any,
  *,
  loss: Loss = cross_entropy,
  head: str | None = None,
) -> LossFn:
  """A loss of each example of a batch with "x" `[B, ...]` and "label" int32 `[B]`.

  Args:
    model: a `Network`, or a Flax Linen module from `get_model`.
    loss: `(logits float32 [B, K], label [B]) -> [B]`.
    head: "source" or "target" for a model with two heads.

  Returns:
    A `LossFn`: `(params, batch, rng) -> float32 [B]`; in a train state with a `model_state`, `(params, batch, rng,
    model_state) -> ([B], model_state)`. The key goes to the model's dropout.
  """
  network = as_network(model)

  def of_batch(params, batch, rng, *model_state):
    carried = model_state[0] if model_state else None
    logits, carried = network.apply(params, carried, batch["x"], head=head, train=True, rng=rng)
    losses = loss(logits, batch["label"])
    return (losses, carried) if model_state else losses

  return of_batch


def predict_fn(model: Any, *, head: str | None = None) -> Callable[[Any, Any, jax.Array], jax.Array]:
  """Returns `(params, model_state, x) -> logits float32 [B, K]`, in evaluation mode, of a model as above."""
  network = as_network(model)

  def predict(params, model_state, x):
    return network.apply(params, model_state, x, head=head)[0]

  return predict
