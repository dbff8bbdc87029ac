"""From a Flax module to the losses of a train step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from soseleto_jax.alignment import LossFn


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
    model: nn.Module,
    *,
    loss: Callable[[jax.Array, jax.Array], jax.Array] = cross_entropy,
    head: str | None = None,
    mutable: bool = False,
) -> LossFn:
  """A loss of each example of a batch with "x" `[B, ...]` and "label" int32 `[B]`.

  Args:
    model: called as `model.apply(variables, x, train=True)`, and with `head=head` if one is named.
    loss: `(logits float32 [B, K], label [B]) -> [B]`.
    head: "source" or "target" for a model with two heads.
    mutable: whether the model carries state, the `model_state` of the train state: its variable collections other than
      "params", such as {"batch_stats": ...}.

  Returns:
    A `LossFn`: `(params, batch, rng) -> float32 [B]`; with `mutable`, `(params, batch, rng, model_state) -> ([B],
    model_state)`. The key goes to the model as its "dropout" stream.
  """
  options = {"train": True} if head is None else {"train": True, "head": head}

  def stateless(params, batch, rng):
    return loss(model.apply({"params": params}, batch["x"], rngs={"dropout": rng}, **options), batch["label"])

  def stateful(params, batch, rng, model_state):
    variables = {"params": params, **model_state}
    logits, new_state = model.apply(
        variables, batch["x"], rngs={"dropout": rng}, mutable=list(model_state), **options
    )
    return loss(logits, batch["label"]), new_state

  return stateful if mutable else stateless


def predict_fn(model: nn.Module, *, head: str | None = None) -> Callable[[Any, Any, jax.Array], jax.Array]:
  """Returns `(params, model_state, x) -> logits float32 [B, K]`, in evaluation mode."""
  options = {} if head is None else {"head": head}

  def predict(params, model_state, x):
    return model.apply({"params": params, **(model_state or {})}, x, train=False, **options)

  return predict
