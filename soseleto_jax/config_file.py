"""The file that `--config` names: where it is found, and what is wrong with it in one line."""

import pathlib
import traceback
from collections.abc import Iterator

from ml_collections import ConfigDict

from soseleto_jax.core.suggest import did_you_mean

_PACKAGE = pathlib.Path(__file__).resolve().parent
CONFIGS = next((d for d in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if d.is_dir()), _PACKAGE)
_START = "start from soseleto_jax.config.default_config()"


def find(value: str) -> str:
  """Returns `FILE:argument` with the path of a file of the package where there is none of this name here.

  Raises:
    ValueError: there is none in the package either.
  """
  file, colon, argument = value.partition(":")
  if not file:
    raise ValueError("--config= names no file")
  path = pathlib.Path(file)
  if path.is_dir():
    raise ValueError(f"--config={file} is a folder; give a file")
  if not path.exists():
    if path.parts[:-1] not in ((), ("configs",)) or not (CONFIGS / path.name).is_file():
      known = sorted(f"configs/{own.name}" for own in CONFIGS.glob("[!_]*.py"))
      raise ValueError(
        f"--config={file}: there is no such file, nor has the package one of this name; it has "
        f"{', '.join(known)}{did_you_mean(file, known)}"
      )
    path = CONFIGS / path.name
  return f"{path}{colon}{argument}"


def mistake(value: str, error: BaseException, config: object) -> str:
  """Returns what to say about an error that the options of the command line met.

  Args:
    value: `FILE:argument`, as `find` gives it.
    error: what was raised.
    config: what the file gave, if it got so far.
  """
  file = value.partition(":")[0]
  chain = list(_chain(error))
  if syntax := next((cause for cause in chain if isinstance(cause, SyntaxError)), None):
    return f"--config={file}, line {syntax.lineno}: {syntax.msg}"
  for cause in reversed(chain):
    frames = traceback.extract_tb(cause.__traceback__)
    if lines := [frame.lineno for frame in frames if _same_file(frame.filename, file)]:
      own = frames and isinstance(cause, ValueError) and "soseleto_jax" in pathlib.Path(frames[-1].filename).parts
      return f"--config={value}: {cause}" if own else f"--config={file}, line {lines[-1]}: {_named(cause)}"
  if any("get_config" in str(cause) and isinstance(cause, AttributeError) for cause in chain):
    return f"--config={file} has no function get_config(argument=None), which returns the config"
  if not isinstance(config, ConfigDict) and (config is not None or "NoneType" in str(error)):
    return not_a_config(value, config)
  if any(isinstance(cause, (AttributeError, KeyError)) for cause in chain):
    what = error.args[0] if error.args else error
    while isinstance(what, Exception) and what.args:
      what = what.args[0]
    return f"unknown field of --config: {': '.join(str(what).splitlines())}"
  return " ".join(str(error).split()) or _named(error)


def not_a_config(value: str, config: object) -> str:
  """Returns what to say about a file whose function gives no ConfigDict."""
  return f"--config={value}: get_config returns a {type(config).__name__}, no ConfigDict; {_START}"


def _chain(error) -> Iterator[BaseException]:
  while error is not None:
    yield error
    error = error.__cause__ or error.__context__


def _same_file(one, other):
  try:
    return pathlib.Path(one).resolve() == pathlib.Path(other).resolve()
  except OSError:
    return False


def _named(error):
  return f"{type(error).__name__}: {error}"
