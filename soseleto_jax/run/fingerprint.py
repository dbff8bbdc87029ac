"""Fingerprints of arrays and data: what a checkpoint is checked against when it is restored."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soseleto_jax.data.task import Task


def describe(tree: Any) -> dict[str, str]:
  """Returns dtype and shape of each leaf by its path, such as `{".alpha": "float32[50000]"}`."""
  return {
    jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in jax.tree.leaves_with_path(tree)
  }


def checksums(tree: Any) -> dict[str, int]:
  """Returns a checksum of the bits of each leaf by its path.

  Exact, in whole numbers: the order of the elements matters, how an array is split over devices does not, nor do zeros
  appended to a vector (the padding of `alpha`). One changed element always changes it, several all but once in 2**32.

  Args:
    tree: pytree of real arrays, on the host or on devices; global arrays of several processes too, where every process
      has to call this.
  """
  return {jax.tree_util.keystr(path): int(value) for path, value in jax.tree.leaves_with_path(_checksums(tree))}


@jax.jit
def _checksums(tree):
  return jax.tree.map(_checksum, tree)


def _checksum(leaf):
  if leaf.dtype == bool:
    leaf = leaf.astype(jnp.uint8)
  word = np.dtype(f"uint{8 * min(leaf.dtype.itemsize, 4)}")
  bits = jax.lax.bitcast_convert_type(leaf, word).astype(jnp.uint32)
  index, stride = jnp.uint32(0), 1
  for axis in reversed(range(bits.ndim)):
    index += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride % 2**32)
    stride *= bits.shape[axis]
  return jnp.sum(_mix(bits * (_mix(index) | 1)), dtype=jnp.uint32)


def _mix(x):
  """A permutation of uint32 that keeps 0 and scatters the rest (the finalizer of MurmurHash3)."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def of_task(task: Task) -> str:
  """Returns a digest of all labels and of eight examples of each set."""
  digest = hashlib.sha256()
  for examples in filter(None, (task.source, task.target, task.validation, task.test)):
    label, x = np.asarray(examples["label"]), examples["x"]
    digest.update(label.tobytes())
    digest.update(np.ascontiguousarray(x[np.linspace(0, len(label) - 1, 8, dtype=int)]).tobytes())
  return digest.hexdigest()
