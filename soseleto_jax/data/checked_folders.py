"""What is known of a folder of images that stay on disk, so that they are decoded once and not at every start.

It lies in `~/.cache/soseleto_jax`, or where the environment has SOSELETO_CACHE; an empty one switches it off.
"""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from soseleto_jax import storage


def recall(root: pathlib.Path, names: Sequence[str], look: Any) -> dict[int, str] | None:
  """Returns what `remember` was told of a folder's images; None where they, or how they are read, are others by now.

  Images are the same where name, size and time of change are.
  """
  file = _file(root, look)
  if file is None:
    return None
  try:
    known = json.loads(file.read_bytes())
    if known["files"] != _digest(root, names):
      return None
    return {int(row): str(why) for row, why in known["unreadable"].items()}
  except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
    return None


def remember(root: pathlib.Path, names: Sequence[str], look: Any, unreadable: dict[int, str]) -> None:
  """Keeps which images, by row, cannot be read, and why; does nothing where it cannot be kept."""
  if (file := _file(root, look)) is None:
    return
  with contextlib.suppress(OSError):  # other processes may write the same at the same time
    file.parent.mkdir(parents=True, exist_ok=True)
    storage.write_bytes(file, json.dumps({"files": _digest(root, names), "unreadable": unreadable}).encode())


def _file(root, look):
  if (folder := storage.cache_folder()) is None:
    return None
  key = hashlib.sha256(f"{os.path.abspath(root)} {look!r}".encode()).hexdigest()[:32]
  return folder / "folders" / f"{key}.json"


def _digest(root, names):
  digest = hashlib.sha256()
  for name in names:
    found = os.stat(root / name)
    digest.update(f"{name}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
  return digest.hexdigest()
