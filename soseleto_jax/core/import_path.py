"""What an import path names: a network, a task or a loss of one's own, such as `my_package.nets:Wide`."""

import importlib
from typing import Any

from soseleto_jax.core.suggest import did_you_mean


def find(field: str, path: str) -> Any:
  """Returns what a module has under a name.

  Args:
    field: of the config, for messages.
    path: a module that can be imported, a colon, and the name.

  Raises:
    ValueError: the module cannot be imported, or has nothing of the name.
  """
  module_name, _, attribute = path.partition(":")
  given = f"{field}={path!r}"
  try:
    module = importlib.import_module(module_name)
  except ModuleNotFoundError as error:
    if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
      raise ValueError(f"{given}: {module_name} imports {error.name}, which is not installed") from error
    raise ValueError(
      f"{given}: there is no module {error.name!r}; install it, or put the folder that holds it on PYTHONPATH"
    ) from error
  except (ValueError, TypeError) as error:  # an empty or a relative name
    raise ValueError(f"{given}: give module:name, such as my_package.nets:Wide") from error
  found = getattr(module, attribute, None)
  if found is None:
    raise ValueError(f"{given}: {module_name} has no {attribute!r}{did_you_mean(attribute, vars(module))}")
  return found
