"""Reshapings of the alignment before it moves `alpha`: extensions of the paper's rule, off by default.

Each is a function `f(q, losses, batch, axis_name) -> q` for `make_train_step(alignment_transform=...)`, with q and
losses float32 `[B]`, and the batch with its "mask", bool `[B]`; under `axis_name` statistics are of the whole batch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Transform = Callable[..., jax.Array]


def center_by_class(num_classes: int, label_key: str = "label") -> Transform:
  """Subtracts from each q the mean q of the batch's examples with the same label.

  A class whose alignment is high or low as a whole then keeps its weights: what is compared is one example with others
  of its label.

  Args:
    num_classes: labels are 0 .. num_classes - 1.
    label_key: where the batch holds them.
  """

  def transform(q, losses, batch, axis_name):
    del losses
    one_hot = jax.nn.one_hot(batch[label_key], num_classes, dtype=q.dtype) * batch["mask"][:, None]
    sums, counts = _psum((q @ one_hot, jnp.sum(one_hot, axis=0)), axis_name)
    return q - (sums / jnp.maximum(counts, 1.0))[batch[label_key]]

  return transform


def standardize() -> Transform:
  """Divides q by its standard deviation in the batch, so that the step of `alpha` has the same size all along.

  Where all q are equal, as in a batch of one row, there is nothing to tell apart, and q becomes 0.
  """

  def transform(q, losses, batch, axis_name):
    del losses
    mask = batch["mask"]
    count = jnp.maximum(_psum(jnp.sum(mask), axis_name), 1)
    mean = _psum(jnp.sum(q, where=mask), axis_name) / count
    variance = _psum(jnp.sum((q - mean) ** 2, where=mask), axis_name) / count
    return jnp.where(variance > 0, q / jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)

  return transform


def residual_normalize(epsilon: float = 1e-6) -> Transform:
  """Divides q by 1 - exp(-loss): with a softmax cross-entropy, by one minus the probability of the label.

  That is the size of softmax minus label, the factor by which the gradient of a confidently wrong example outgrows the
  others; what is left is the direction.
  """

  def transform(q, losses, batch, axis_name):
    del batch, axis_name
    return q / jnp.maximum(-jnp.expm1(-losses), epsilon)

  return transform


def _psum(tree, axis_name):
  return tree if axis_name is None else jax.lax.psum(tree, axis_name)
