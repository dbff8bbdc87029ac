"""From a Flax module to the losses of a train step."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import linen as nn

from soseleto_jax.alignment import LossFn


def classification_loss(model: nn.Module, *, head: str | None = None, mutable: bool = False) -> LossFn:
  """Softmax cross-entropy of each example, for a batch with "x" `[B, ...]` and "label" int32 `[B]`.

  Args:
    model: called as `model.apply(variables, x, train=True)`, and with `head=head` if one is named.
    head: "source" or "target" for a model with two heads.
    mutable: whether the model carries state, the `model_state` of the train state: its variable collections other than
      "params", such as {"batch_stats": ...}.

  Returns:
    A `LossFn`: `(params, batch, rng) -> float32 [B]`; with `mutable`, `(params, batch, rng, model_state) -> ([B],
    model_state)`. The key goes to the model as its "dropout" stream.
  """
  options = {"train": True} if head is None else {"train": True, "head": head}

  def cross_entropy(logits, batch):
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])

  def loss(params, batch, rng):
    return cross_entropy(model.apply({"params": params}, batch["x"], rngs={"dropout": rng}, **options), batch)

  def loss_with_state(params, batch, rng, model_state):
    variables = {"params": params, **model_state}
    logits, new_state = model.apply(
        variables, batch["x"], rngs={"dropout": rng}, mutable=list(model_state), **options
    )
    return cross_entropy(logits, batch), new_state

  return loss_with_state if mutable else loss


def predict_fn(model: nn.Module, *, head: str | None = None) -> Callable[[Any, Any, jax.Array], jax.Array]:
  """Returns `(params, model_state, x) -> logits float32 [B, K]`, in evaluation mode."""
  options = {} if head is None else {"head": head}

  def predict(params, model_state, x):
    return model.apply({"params": params, **(model_state or {})}, x, train=False, **options)

  return predict
