"""What is made of the alignment before it moves `alpha`: extensions of the paper's rule, off by default.

The transforms are functions `f(q, losses, batch, axis_name) -> q` for `Alignment(transforms=...)`, with q and losses
float32 `[B]`, and the batch with its "mask", bool `[B]`; under `axis_name` statistics are of the whole batch. The
directions are functions `f(g_t) -> v` for `Alignment(direction=...)`, from a pytree of arrays to one of equal shapes.
"""

from typing import Any

import jax
import jax.numpy as jnp

from soseleto_jax.core import axis, calls
from soseleto_jax.core.alignment import Transform

_ROUNDING = 100  # units in the last place of values, below which their standard deviation means nothing


def center_by_class(num_classes: int, label_key: str = "label") -> Transform:
  """Subtracts from each q the mean q of the batch's examples with the same label.

  A class whose alignment is high or low as a whole then keeps its weights: what is compared is one example with others
  of its label.

  Args:
    num_classes: labels are 0 .. num_classes - 1. Of others q becomes NaN: their weights stay, and the metric
      "alignment_mean" shows it.
    label_key: where the batch holds them, integers `[B]`.
  """
  if not calls.is_count(num_classes):
    raise ValueError(f"num_classes={num_classes!r}: give the number of classes, at least 1")

  def transform(q, losses, batch, axis_name):
    del losses
    label = _labels(batch, label_key, q)
    one_hot = jax.nn.one_hot(label, num_classes, dtype=q.dtype) * batch["mask"][:, None]
    sums, counts = axis.total((q @ one_hot, jnp.sum(one_hot, axis=0)), axis_name)
    known = (label >= 0) & (label < num_classes)
    return jnp.where(known, q - (sums / jnp.maximum(counts, 1.0))[label], jnp.nan)

  return transform


def _labels(batch, label_key, q):
  if label_key not in batch:
    raise ValueError(f"center_by_class reads batch[{label_key!r}], and the batch has {', '.join(sorted(batch))}")
  label = batch[label_key]
  if not jnp.issubdtype(label.dtype, jnp.integer) or label.shape != q.shape:
    raise ValueError(
      f"batch[{label_key!r}] has dtype {label.dtype}, shape {label.shape}: labels are integers {q.shape}"
    )
  return label


def scale_by_std() -> Transform:
  """Divides q by its standard deviation in the batch, so that the step of `alpha` has the same size all along.

  Where all q are equal but for rounding, as in a batch of one row, there is nothing to tell apart, and q becomes 0.
  """

  def transform(q, losses, batch, axis_name):
    del losses
    _, std = _moments(q, batch["mask"], axis_name)
    return _over(q, std)

  return transform


def add_agreement(weight: float = 1.0) -> Transform:
  r"""Adds how far the network agrees with the label, compared with the others of the batch.

  With a softmax cross-entropy as loss, :math:`p_j = e^{-\ell_j}` is the probability of the label, and what is added is
  `weight` times p less its mean, over its standard deviation. To the target's loss, which `alpha` descends, this adds
  a term that rewards weight on examples that the network finds easy, as self-paced learning does (Kumar et al. 2010).
  Where the network owes what it knows to the target, it tells labels that are wrong systematically, which pull
  together and hide from the alignment.

  Args:
    weight: standard deviations of q, if it is scaled by them, that one of p counts for.
  """

  def transform(q, losses, batch, axis_name):
    agreement = jnp.exp(-losses)
    mean, std = _moments(agreement, batch["mask"], axis_name)
    return q + weight * _over(agreement - mean, std)

  return transform


def _moments(values, mask, axis_name):
  """Mean and standard deviation over the unmasked rows of the whole batch; 0 where that is rounding."""
  # By a power of two, which rounds nothing, so that squares of small values do not vanish, nor large ones overflow.
  _, exponent = jnp.frexp(axis.largest(values, mask, axis_name))
  unit = jnp.ldexp(jnp.ones((), values.dtype), jnp.clip(exponent, -100, 100))
  values = values / unit
  count = jnp.maximum(axis.total(jnp.sum(mask), axis_name), 1)
  mean = axis.total(jnp.sum(values, where=mask), axis_name) / count
  variance = axis.total(jnp.sum((values - mean) ** 2, where=mask), axis_name) / count
  is_rounding = variance <= (_ROUNDING * jnp.finfo(values.dtype).eps) ** 2 * (mean**2 + variance)
  return mean * unit, jnp.where(is_rounding, 0.0, jnp.sqrt(variance) * unit)


def _over(values, std):
  return jnp.where(std > 0, values / jnp.where(std > 0, std, 1.0), 0.0)


def residual_normalize(epsilon: float = 1e-6) -> Transform:
  """Divides q by 1 - exp(-loss): with a softmax cross-entropy, by one minus the probability of the label.

  That is the size of softmax minus label, the factor by which the gradient of a confidently wrong example outgrows the
  others; what is left is the direction.
  """

  def transform(q, losses, batch, axis_name):
    del batch, axis_name
    return q / jnp.maximum(-jnp.expm1(-losses), epsilon)

  return transform


def orthogonal(gradient: Any, damping: float = 1e-3) -> Any:
  r"""The direction of steepest descent in the spectral norm.

  With :math:`G = U \Sigma V^\top`, the gradient of a layer's kernel as a matrix of inputs by outputs, it is
  :math:`\lVert G \rVert_* U V^\top`: all the directions in which the target would turn the layer count alike, where
  in G itself a few drown the rest. It is what the Muon optimizer descends (Jordan et al. 2024; Bernstein & Newhouse
  2024, "Old optimizer, new norm: an anthology", arXiv:2409.20325, section 3). It takes a singular value decomposition
  of every kernel at every step: mark small layers, such as the classifier, with `Alignment(params=...)`.

  Args:
    gradient: pytree of float arrays. All axes but the last are a kernel's inputs. Arrays of one axis or none, such as
      biases, stay as they are: in their norm, the Euclidean, the gradient is the steepest direction.
    damping: singular values below this part of the largest one fade out, since their vectors are rounding.

  Returns:
    The direction, with the gradient's shapes and dtypes.
  """

  def of_leaf(leaf):
    if leaf.ndim < 2:
      return leaf
    matrix = leaf.reshape(-1, leaf.shape[-1]).astype(jnp.promote_types(leaf.dtype, jnp.float32))
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    relative = values / jnp.maximum(values[0], jnp.finfo(values.dtype).tiny)
    left = jnp.sum(values) * left * (relative**2 / (relative**2 + damping**2))
    direction = jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)
    return direction.reshape(leaf.shape).astype(leaf.dtype)

  return jax.tree.map(of_leaf, gradient)
