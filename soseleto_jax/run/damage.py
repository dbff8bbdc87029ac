"""What is a damaged checkpoint, and what is only one that cannot be read just now."""

import hashlib
import json
import re
from typing import Any

# Status words with which TensorStore begins its messages; files that do not decode have these or none.
_STATUS = re.compile(r"([A-Z][A-Z_]+): ")
_DAMAGE_STATUS = ("DATA_LOSS", "OUT_OF_RANGE", "NOT_FOUND")
_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_UNDECODABLE = (
  ValueError, LookupError, AttributeError, TypeError, ArithmeticError, AssertionError, RecursionError, EOFError,
)  # fmt: skip


class Damaged(Exception):
  """What is wrong with a checkpoint."""


def failure(part: str, step: int, error: BaseException) -> Exception:
  """Returns what to raise for an error met while a part of the checkpoint of a step was read.

  `Damaged` where the part does not decode or misses files. Anything else, such as a permission, a failing disk or
  memory, may be over at the next try: OSError.
  """
  while error.__cause__ is not None:  # readers wrap what they met
    error = error.__cause__
  first_line = (str(error).splitlines() or [""])[0] or type(error).__name__
  if _is_damage(error):
    return Damaged(f"{part} cannot be read: {first_line}")
  return OSError(f"{part} of the checkpoint of step {step} cannot be read: {first_line}")


def sealed(content: Any) -> dict[str, Any]:
  """Returns JSON-like content with its checksum; `opened` takes it."""
  return {"content": content, "sha256": _digest(content)}


def opened(what: str, found: Any) -> Any:
  """Returns the content of `sealed`.

  Raises:
    Damaged: it is not what was put in.
  """
  if not isinstance(found, dict) or found.get("sha256") != _digest(found.get("content")):
    raise Damaged(f"{what} does not have the checksum that it was saved with")
  return found["content"]


def _is_damage(error):
  if isinstance(error, OSError):
    return isinstance(error, _MISSING)
  if status := _STATUS.match(str(error)):
    return status[1] in _DAMAGE_STATUS
  return isinstance(error, _UNDECODABLE)


def _digest(content):
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
