"""Parts of a pytree of parameters, chosen by prefix trees of bools."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_none(leaf: Any) -> bool:
  """Whether a leaf is None, for `jax.tree.map(is_leaf=...)`."""
  return leaf is None


def select(marks: Any, tree: Any) -> Any:
  """Returns `tree` with None in place of the leaves that `marks` (a prefix tree of bools; None: all) leaves out."""
  if marks is None:
    return tree
  return jax.tree.map(lambda keep, leaf: leaf if keep else None, jax.tree.broadcast(marks, tree), tree)


def check_marks(marks: Any, name: str) -> None:
  """Raises ValueError unless `marks` are a pytree of bools, one of them True at least."""
  for path, mark in jax.tree.leaves_with_path(marks):
    if not isinstance(mark, (bool, np.bool_)):
      place = f"{name}{jax.tree_util.keystr(path)}"
      raise ValueError(
        f"{place}={mark!r}: give bools, True for the leaves of params that are meant, in a tree of their structure or "
        "of its upper part"
      )
  if not any(jax.tree.leaves(marks)):
    raise ValueError(f"{name}={marks!r} marks no leaf of params; mark one at least, or leave it out")


def check_fits(marks: Any, params: Any, name: str) -> None:
  """Raises ValueError unless `marks` have the structure of `params`, or of its upper part; None fits."""
  if marks is None:
    return
  try:
    jax.tree.broadcast(marks, params)
  except ValueError as error:
    marked = [path for path, _ in jax.tree.leaves_with_path(marks)]
    leaves = [path for path, _ in jax.tree.leaves_with_path(params)]
    strays = [path for path in marked if not any(leaf[: len(path)] == path for leaf in leaves)]
    missing = [leaf for leaf in leaves if not any(leaf[: len(path)] == path for path in marked)]
    what = "its containers are of other types"
    if strays:
      what = f"params has no {jax.tree_util.keystr(strays[0])}"
    elif missing:
      what = f"it says nothing of params{jax.tree_util.keystr(missing[0])}"
    raise ValueError(
      f"{name} does not fit params, {what}: give bools in a tree of the structure of params or of its upper part"
    ) from error


def fill(selected: Any, tree: Any) -> Any:
  """Returns `selected` with the leaves of `tree` in place of None."""
  return jax.tree.map(lambda leaf, other: other if leaf is None else leaf, selected, tree, is_leaf=is_none)


def alike(like: Any, tree: Any) -> Any:
  """Returns `tree` with None where `like` has None."""
  return jax.tree.map(lambda other, leaf: None if other is None else leaf, like, tree, is_leaf=is_none)


def either(marks: Any, others: Any, tree: Any) -> Any:
  """Marks the leaves of `tree` that one of two prefix trees of bools does; None marks all."""
  if marks is None or others is None:
    return None
  both = jax.tree.broadcast(marks, tree), jax.tree.broadcast(others, tree)
  return jax.tree.map(lambda a, b: a or b, *both)


def add(tree: Any, selected: Any, factor: float = 1.0) -> Any:
  """Returns `tree` plus `factor` times `selected`, whose leaves may be None, in the dtypes of `tree`."""

  def of_leaves(other, leaf):
    return leaf if other is None else leaf + (factor * other).astype(leaf.dtype)

  return jax.tree.map(of_leaves, selected, tree, is_leaf=is_none)


def dot(a: Any, b: Any) -> jax.Array:
  """Inner product of two pytrees, accumulated in float32 or better whatever their dtypes."""

  def of_leaves(x, y):
    dtype = jnp.promote_types(jnp.promote_types(x.dtype, y.dtype), jnp.float32)
    return jnp.vdot(x.astype(dtype), y.astype(dtype), precision=jax.lax.Precision.HIGHEST)

  return sum(jax.tree.leaves(jax.tree.map(of_leaves, a, b)), start=jnp.float32(0))
