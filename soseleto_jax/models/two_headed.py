"""A representation with one shared classifier, or with a source head and a target head."""

import numbers
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict

HEADS = ("source", "target")


class HeadedNetwork(nn.Module):
  """Any representation, followed by one Dense classifier or by two Dense heads.

  Attributes:
    representation: module called as `representation(x, train=train)`, returning features `[B, F]`.
    num_classes: an int for one classifier that source and target share (parameters
      `representation`, `classifier`), or `{"source": Ks, "target": Kt}` for two heads (parameters
      `representation`, `source_head`, `target_head`).
    kernel_init: initializer of the classifiers' kernels.
    bias_init: initializer of their biases.
    dtype: dtype of the classifiers' arithmetic; their parameters are float32.
  """

  representation: nn.Module
  num_classes: int | Mapping[str, int]
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
  bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()
  dtype: Any = jnp.float32

  def __post_init__(self):
    if isinstance(self.num_classes, numbers.Integral):
      counts = {"classifier": self.num_classes}
    elif isinstance(self.num_classes, Mapping) and set(self.num_classes) == set(HEADS):
      counts = self.num_classes
    else:
      raise ValueError(
        f"num_classes={self.num_classes!r} is neither an int nor a mapping with exactly the keys "
        "'source' and 'target'; give num_classes=10 or num_classes={'source': 5, 'target': 5}"
      )
    for count in counts.values():
      if isinstance(count, bool) or not isinstance(count, numbers.Integral) or count < 1:
        raise ValueError(
          f"num_classes={self.num_classes!r} must count at least one class; use positive ints"
        )
    if isinstance(self.num_classes, Mapping):
      self.num_classes = FrozenDict(self.num_classes)  # A module must hash, to be static under jit.
    super().__post_init__()

  def setup(self):
    if isinstance(self.num_classes, Mapping):
      self.source_head = self._head(self.num_classes["source"])
      self.target_head = self._head(self.num_classes["target"])
    else:
      self.classifier = self._head(self.num_classes)

  def _head(self, num_classes):
    return nn.Dense(num_classes, dtype=self.dtype, kernel_init=self.kernel_init, bias_init=self.bias_init)

  def __call__(self, x: jax.Array, *, train: bool = False, head: str | None = None) -> jax.Array:
    """Computes logits.

    Args:
      x: inputs `[B, ...]` as the representation takes them.
      train: whether layers that behave differently in training (BatchNorm) do so.
      head: "source" or "target" with two heads; None with a shared classifier. `init` creates both
        heads whichever is named, and needs none named.

    Returns:
      Logits float32 `[B, K]` of the shared classifier or of the named head.

    Raises:
      ValueError: `head` is missing, unknown, or given to a network with a shared classifier.
    """
    two_headed = isinstance(self.num_classes, Mapping)
    if not two_headed and head is not None:
      raise ValueError(f"head={head!r} given, but the classifier is shared; leave head out")
    if two_headed and head is None and self.is_initializing():
      head = "source"
    if two_headed and head not in HEADS:
      raise ValueError(f"head={head!r} names none of the two heads; use 'source' or 'target'")

    features = self.representation(x, train=train)
    if not two_headed:
      return self.classifier(features).astype(jnp.float32)
    heads = {"source": self.source_head, "target": self.target_head}
    if self.is_initializing():
      for module in heads.values():
        module(features)
    return heads[head](features).astype(jnp.float32)
