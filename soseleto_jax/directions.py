"""What the inner products are taken with, made of the target gradient: extensions of the paper's rule, off by default.

Each is a function `f(g_t) -> v` for `make_train_step(alignment_direction=...)`, from a pytree of arrays to one of the
same shapes.
"""

from typing import Any

import jax
import jax.numpy as jnp


def orthogonal(gradient: Any, damping: float = 1e-3) -> Any:
  r"""The direction of steepest descent in the spectral norm.

  With :math:`G = U \Sigma V^\top`, the gradient of a layer's kernel as a matrix of inputs by outputs, it is
  :math:`\lVert G \rVert_* U V^\top`: all the directions in which the target would turn the layer count alike, where
  in G itself a few drown the rest. It is what the Muon optimizer descends (Jordan et al. 2024; Bernstein & Newhouse
  2024, "Old optimizer, new norm: an anthology", arXiv:2409.20325, section 3). It takes a singular value decomposition
  of every kernel at every step: mark small layers, such as the classifier, with `alignment_params`.

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
