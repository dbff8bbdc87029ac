"""A representation with one shared classifier, or with a source head and a target head."""

import numbers
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict

from soseleto_jax.core import calls
from soseleto_jax.models.calling import mode_options
from soseleto_jax.models.row_norm import with_row_norm

HEADS = ("source", "target")

NumClasses = int | Mapping[str, int]  # one classifier that source and target share, or one for each


def check_num_classes(num_classes: NumClasses) -> None:
  """Raises ValueError for what is neither a positive int nor one for each of "source" and "target"."""
  counts: Mapping[str, Any]
  if isinstance(num_classes, numbers.Integral):
    counts = {"classifier": num_classes}
  elif isinstance(num_classes, Mapping) and set(num_classes) == set(HEADS):
    counts = num_classes
  else:
    raise ValueError(
      f"num_classes={num_classes!r} is neither an int nor a mapping with exactly the keys 'source' and 'target'; "
      "give num_classes=10 or num_classes={'source': 5, 'target': 5}"
    )
  for count in counts.values():
    if not calls.is_count(count):
      raise ValueError(f"num_classes={num_classes!r} must count at least one class; use positive ints")


def heads_of(num_classes: NumClasses) -> dict[str, int]:
  """Returns the classifiers' names among the parameters, with their numbers of classes."""
  if isinstance(num_classes, Mapping):
    return {f"{head}_head": num_classes[head] for head in HEADS}
  return {"classifier": num_classes}


def classifier_of(num_classes: NumClasses, head: str | None) -> str:
  """Returns the name among the parameters of the classifier that `head` names, None for the shared one.

  Raises:
    ValueError: `head` is missing, unknown, or given to a network with a shared classifier.
  """
  if not isinstance(num_classes, Mapping):
    if head is not None:
      raise ValueError(f"head={head!r} given, but the classifier is shared; leave head out")
    return "classifier"
  if head not in HEADS:
    raise ValueError(f"head={head!r} names none of the two heads; use 'source' or 'target'")
  return f"{head}_head"


def head_inits(representation: Any) -> tuple[Any, Any]:
  """Returns the initializers of a classifier's kernel and bias: the representation's, or LeCun's normal and zeros."""
  kernel_init = getattr(representation, "head_kernel_init", nn.initializers.lecun_normal())
  return kernel_init, getattr(representation, "head_bias_init", nn.initializers.zeros_init())


def check_features(features: Any, x: jax.Array) -> None:
  """Raises ValueError for features that a classifier cannot take: any but `[B, F]` for inputs `[B, ...]`."""
  shape = getattr(features, "shape", None)
  if shape is None or len(shape) != 2 or shape[0] != x.shape[0]:
    found = f"shape {shape}" if shape is not None else f"a {type(features).__name__}"
    raise ValueError(
      f"the representation returned {found} for inputs of shape {x.shape}: return features [B, F], one row per example "
      "(flattened, or averaged over the other axes)"
    )


class HeadedNetwork(nn.Module):
  """Any representation, followed by one Dense classifier or by two Dense heads.

  Attributes:
    representation: module called as `representation(x, train=train)`, or with what else its `__call__` has to say so
      (`training`, `is_training`, `deterministic`), if anything; returning features `[B, F]`.
    num_classes: an int for one classifier that source and target share (parameters
      `representation`, `classifier`), or `{"source": Ks, "target": Kt}` for two heads (parameters
      `representation`, `source_head`, `target_head`).
    kernel_init: initializer of the classifiers' kernels.
    bias_init: initializer of their biases.
    dtype: dtype of the classifiers' arithmetic; their parameters are float32.
    feature_norm: the length that the features of each example are brought to (Ranjan et al. 2017, arXiv:1703.09507), by
      which few examples train a classifier on them better; None leaves them as they are.
  """

  representation: nn.Module
  num_classes: NumClasses
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
  bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()
  dtype: Any = jnp.float32
  feature_norm: float | None = None

  def __post_init__(self):
    check_num_classes(self.num_classes)
    if self.feature_norm is not None and not (calls.is_number(self.feature_norm) and self.feature_norm > 0):
      raise ValueError(f"feature_norm={self.feature_norm!r} must be a length, such as 5.0, or None")
    if isinstance(self.num_classes, Mapping):
      self.num_classes = FrozenDict(self.num_classes)  # A module must hash, to be static under jit.
    super().__post_init__()

  def setup(self):
    for name, classes in heads_of(self.num_classes).items():
      dense = nn.Dense(classes, dtype=self.dtype, kernel_init=self.kernel_init, bias_init=self.bias_init)
      setattr(self, name, dense)

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
    if head is None and self.is_initializing() and isinstance(self.num_classes, Mapping):
      head = "source"
    name = classifier_of(self.num_classes, head)
    features = self.features(x, train=train)
    if self.is_initializing():
      for other in heads_of(self.num_classes):
        getattr(self, other)(features)
    return getattr(self, name)(features).astype(jnp.float32)

  def features(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Computes what the classifiers see, `[B, F]`.

    Raises:
      ValueError: the representation returned something else.
    """
    features = self.representation(x, **mode_options(type(self.representation).__call__, train))
    check_features(features, x)
    return features if self.feature_norm is None else with_row_norm(features, self.feature_norm)
