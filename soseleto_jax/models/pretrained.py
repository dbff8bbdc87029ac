"""A network that starts from given parameters: another training's, whole or in part."""

import os
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soseleto_jax.core.suggest import did_you_mean

_ITEMS = ("default", "state")  # what is in a step of Orbax's CheckpointManager, and in one of a run's `checkpoints`
_REPRESENTATION = "representation"

Path = tuple[str, ...]
Leaves = dict[Path, Any]


def load_params(path: str | os.PathLike[str]) -> Any:
  """Reads the folder of an Orbax checkpoint, for `start_from`.

  Args:
    path: what `StandardCheckpointer` or `PyTreeCheckpointer` saved, a step of a `CheckpointManager`, or a step of a
      run's own `checkpoints`; a local folder or a bucket.

  Returns:
    The pytree, of host arrays; keys that were ints are strings. Of a run the variables: "params" and the other
    collections of its model state.

  Raises:
    ValueError: there is no checkpoint, or it cannot be read.
  """
  import orbax.checkpoint as ocp  # it takes seconds
  from etils import epath

  name = os.path.expanduser(os.fspath(path))
  root = epath.Path(name if "://" in name else os.path.abspath(name))
  if not root.is_dir():
    raise ValueError(f"params={os.fspath(path)!r}: there is no such folder; give the folder of an Orbax checkpoint")
  folder = next((f for f in (root, *(root / item for item in _ITEMS)) if (f / "_METADATA").exists()), None)
  if folder is None:
    steps = sorted((f.name for f in root.iterdir() if f.name.isdigit()), key=int)
    cure = f"take one of its steps, such as {root / steps[-1]}" if steps else "give the folder of an Orbax checkpoint"
    raise ValueError(f"params={os.fspath(path)!r} holds no checkpoint of arrays; {cure}")
  try:
    with ocp.PyTreeCheckpointer() as checkpointer:
      # To host arrays, since the devices that they were saved from may not be here.
      kinds = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), checkpointer.metadata(folder).item_metadata.tree
      )
      saved = checkpointer.restore(folder, restore_args=kinds)
  except Exception as error:  # whatever a reader makes of broken files
    reason = str(error).strip().partition("\n")[0]
    raise ValueError(f"params={os.fspath(path)!r} cannot be read: {type(error).__name__}: {reason}") from error
  if folder.name == "state" and isinstance(saved, dict) and {"params", "model_state"} <= saved.keys():
    return {"params": saved["params"], **(saved["model_state"] or {})}
  return saved


def start_from(given: Any, params: Any, model_state: Any) -> tuple[Any, Any]:
  """Puts given values in the place of a network's own.

  Args:
    given: some or all of the top-level parts of `params` ("representation", "classifier", ...); or the representation's
      own parameters; or either of them with the other collections, as Flax Linen has them, {"params": ...,
      "batch_stats": ...}; or an `nnx.State` of the representation. Keys that were ints may be strings.
    params: the network's own at the start, from `Network.init`.
    model_state: the network's own at the start, or None.

  Returns:
    `(params, model_state)` of the same structure, with the given values, bit for bit. Parts that are not given keep
    theirs; streams of random numbers in an `nnx.State` count for nothing.

  Raises:
    ValueError: an array that the network has not, one that is missing from a part, or one of another shape or dtype.
  """
  own, own_state = _leaves(params), _leaves(model_state)
  values, state_values = _sort(given, own, own_state)
  if not values and not state_values:
    raise ValueError("params holds no arrays; leave it out to start the network afresh")
  _check_known(values, own)
  _check_known(state_values, own_state)
  for mine, yours in ((own, values), (own_state, state_values)):
    _check_complete(yours, mine)
    _check_kinds(yours, mine)
  return _replaced(params, values), _replaced(model_state, state_values)


def _sort(given: Any, own: Leaves, own_state: Leaves) -> tuple[Leaves, Leaves]:
  """Returns the given arrays by their paths in `params`, and by those in `model_state`."""
  values, state_values = _without_streams(_leaves(given)), {}
  parts = _tops(own)
  if "params" in _tops(values) - parts:
    state_values = {path: leaf for path, leaf in values.items() if path[0] != "params"}
    values = {path[1:]: leaf for path, leaf in values.items() if path[0] == "params"}
  if _REPRESENTATION in parts and not _tops(values) & parts:
    values = {(_REPRESENTATION, *path): leaf for path, leaf in values.items()}
    if not state_values.keys() & own_state.keys():
      state_values = {(path[0], _REPRESENTATION, *path[1:]): leaf for path, leaf in state_values.items()}
  # An nnx.State has parameters and the rest in one tree.
  rest = {path: leaf for path, leaf in values.items() if path in own_state and path not in own}
  return {path: leaf for path, leaf in values.items() if path not in rest}, {**state_values, **rest}


def _without_streams(leaves: Leaves) -> Leaves:
  """Returns the leaves that belong to no `nnx.RngStream`, which has a key and a count."""
  siblings: dict[Path, set[str]] = {}
  for path in leaves:
    siblings.setdefault(path[:-1], set()).add(path[-1])
  return {path: leaf for path, leaf in leaves.items() if siblings[path[:-1]] != {"key", "count"}}


def _check_known(values: Leaves, own: Leaves) -> None:
  unknown = sorted(values.keys() - own.keys())
  if unknown:
    parts, part = _tops(own), unknown[0][0]
    hint = "" if part in parts else did_you_mean(part, parts)
    hint = hint or f"; its own are {_listed(own) if own else 'none'}"
    raise ValueError(f"params holds {_listed(unknown)}, which the network has not{hint}")


def _check_complete(values: Leaves, own: Leaves) -> None:
  parts = _tops(values)
  missing = [path for path in own if path[0] in parts and path not in values]
  if missing:
    part = missing[0][0]
    raise ValueError(
      f"params holds {part!r} without {_listed(missing)}: give all of {part!r}, or leave it out to start it afresh"
    )


def _check_kinds(values: Leaves, own: Leaves) -> None:
  for path, value in values.items():
    given, needed = np.shape(value), np.shape(own[path])
    if given != needed:
      raise ValueError(
        f"params holds {_name(path)} of shape {given}, where the network has {needed}: leave {path[0]!r} out to start "
        "it afresh, or take the network that it belongs to"
      )
    given, needed = _dtype(value), _dtype(own[path])
    if given != needed:
      raise ValueError(
        f"params holds {_name(path)} of dtype {given}, where the network has {needed}: convert it, by "
        f"jax.tree.map(lambda a: a.astype({str(needed)!r}), params)"
      )


def _replaced(tree: Any, values: Leaves) -> Any:
  return jax.tree.map_with_path(lambda path, leaf: jnp.asarray(values.get(_plain(path), leaf)), tree)


def _leaves(tree: Any) -> Leaves:
  return {_plain(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _plain(path: Any) -> Path:
  """Returns a path as strings, without the "value" of an `nnx.Variable`, which Orbax makes a node of its own."""
  names = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
  return names[:-1] if names[-1:] == ("value",) else names


def _tops(leaves: Leaves) -> set[str]:
  return {path[0] for path in leaves if path}


def _name(path: Path) -> str:
  return "/".join(path)


def _listed(paths: Iterable[Path], most: int = 5) -> str:
  names = [_name(path) for path in paths]
  more = f" and {len(names) - most} more" if len(names) > most else ""
  return ", ".join(names[:most]) + more


def _dtype(array: Any) -> Any:
  return getattr(array, "dtype", None) or np.asarray(array).dtype
