"""Fingerprints of arrays and data: what a checkpoint is checked against when it is restored."""

import functools
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soseleto_jax.core.compiling import jit_quickly
from soseleto_jax.data import lazy
from soseleto_jax.data.selection import Examples
from soseleto_jax.data.task import Task

_COLUMNS = ("x", "label", "true_label")
_SAMPLE = 256  # examples of a set
_AT_ONCE = 8  # of them
_FEW = 16


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
  return {jax.tree_util.keystr(path): int(value) for path, value in jax.tree.leaves_with_path(_compiled()(tree))}


@functools.cache
def _compiled():
  return jit_quickly(lambda tree: jax.tree.map(_checksum, tree))


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
  for examples in sets(task).values():
    label, x = np.asarray(examples["label"]), examples["x"]
    digest.update(label.tobytes())
    digest.update(np.ascontiguousarray(x[np.linspace(0, len(label) - 1, 8, dtype=int)]).tobytes())
  return digest.hexdigest()


def parts_of_task(task: Task) -> dict[str, Any]:
  """Returns what data a task holds, part by part, JSON-like; `changed_parts` compares.

  All pixels count where they are in memory; of a set on disk 256 examples do, evenly spaced, whatever its feed.
  """
  parts: dict[str, Any] = {}
  for name, examples in sets(task).items():
    x, rows = examples["x"], len(examples["label"])
    parts[f"{name} arrays"] = describe({column: examples[column] for column in _COLUMNS if column in examples})
    sample = np.linspace(0, rows - 1, min(rows, _SAMPLE), dtype=int)
    few = [x[sample[start : start + _AT_ONCE]] for start in range(0, len(sample), _AT_ONCE)]
    parts[f"{name} examples"] = _digest(np.concatenate(few))
    if not lazy.is_lazy(x):
      parts[f"{name} pixels"] = _digest(x)
  if "true_label" in task.source:
    parts["source true_label"] = _digest(task.source["true_label"])
  for side in ("source", "target"):
    parts[f"{side} class names"] = list(getattr(task, f"{side}_class_names") or ())
    normalization = getattr(task, f"{side}_normalization")
    parts[f"{side} normalization"] = [
      [] if part is None else _summary(part) for part in (normalization.mean, normalization.std)
    ]
    if normalization.per_image:
      parts[f"{side} normalization"] = "by image"
  return parts


def changed_parts(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
  """Names the parts of `parts_of_task` in which two tasks differ, among those that both have."""
  return [name for name in new if name in old and not _same(old[name], new[name])]


def sets(task: Task) -> dict[str, Examples]:
  """Returns the sets of a task by their names."""
  named = {"source": task.source, "target": task.target, "validation": task.validation, "test": task.test}
  return {name: examples for name, examples in named.items() if examples is not None}


def _digest(array):
  return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def _summary(values):
  """The numbers, or sums of many of them: they come from sums, which processors round each in its own way."""
  flat = np.asarray(values, np.float64).ravel()
  if len(flat) <= _FEW:
    return flat.tolist()
  return [float(np.cos(k * np.arange(len(flat))) @ flat) for k in range(_FEW)]


def _same(old, new):
  if isinstance(old, list) and isinstance(new, list) and new and isinstance(new[0], list):  # normalization
    return all(len(a) == len(b) and np.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(old, new, strict=True))
  return old == new
