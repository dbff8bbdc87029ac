"""Losses of each example, and from a network to the losses of a train step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from soseleto_jax.core import import_path
from soseleto_jax.core.losses import LossFn
from soseleto_jax.core.suggest import did_you_mean
from soseleto_jax.models.network import as_network

Loss = Callable[[jax.Array, jax.Array], jax.Array]  # (logits [B, K] or other outputs, label [B, ...]) -> [B]


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


def squared_error(outputs: jax.Array, label: jax.Array) -> jax.Array:
  """Squared error, `[B, ...]` and as many numbers `[B, ...]` to `[B]`: the mean over each example's."""
  if outputs.size != label.size:
    raise ValueError(
      f"squared_error: the network returned outputs of shape {outputs.shape} for labels of shape {label.shape}; "
      "return as many numbers for each example as its label has"
    )
  error = outputs.reshape(len(outputs), -1) - label.reshape(len(label), -1)
  return jnp.mean(error**2, axis=1)


def sequence_cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
  """Softmax cross-entropy of sequences, `[B, L, K]` and int `[B, L]` to `[B]`: the mean over the L places of each.

  A label below 0 is padding, and its place does not count; a sequence without any other has loss 0.
  """
  if logits.ndim != 3 or logits.shape[:2] != label.shape:
    raise ValueError(
      f"sequence_cross_entropy: the network returned outputs of shape {logits.shape} for labels of shape "
      f"{label.shape}; return logits [B, L, K] for labels [B, L]"
    )
  counts = label >= 0
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(label, 0))
  return jnp.sum(losses, axis=1, where=counts) / jnp.maximum(jnp.sum(counts, axis=1), 1)


LOSSES = {
  "cross_entropy": cross_entropy,
  "squared_error": squared_error,
  "sequence_cross_entropy": sequence_cross_entropy,
}


def find_loss(name: str) -> Loss:
  """Returns the loss of a name.

  Args:
    name: of `LOSSES`, or an import path "my_package.my_module:my_loss".

  Raises:
    ValueError: there is none of this name.
  """
  if name in LOSSES:
    return LOSSES[name]
  if ":" not in name:
    raise ValueError(
      f"config.loss={name!r}: choose one of {', '.join(LOSSES)}, or give the import path of your own, "
      f"'my_package.my_module:my_loss'{did_you_mean(name, LOSSES)}"
    )
  loss = import_path.find("config.loss", name)
  if not callable(loss):
    raise ValueError(f"config.loss={name!r} is {loss!r}; name a function (outputs, label) -> float32 [B]")
  return loss


def classification_loss(
  model: Any,
  *,
  loss: Loss = cross_entropy,
  head: str | None = None,
) -> LossFn:
  """A loss of each example of a batch with "x" `[B, ...]` and "label" int32 `[B]`.

  Args:
    model: a `Network`, or a Flax Linen module from `get_model`.
    loss: `(logits float32 [B, K], label [B]) -> [B]`, or of whatever else network and labels are.
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
