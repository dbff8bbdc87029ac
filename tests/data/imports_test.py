"""What the modules of data import: no JAX, and nothing that takes seconds before somebody needs it."""

import ast
import pathlib

import pytest

import soseleto_jax
from soseleto_jax.data import lazy
from soseleto_jax.feed import sampling, streaming

MODULES = sorted(pathlib.Path(lazy.__file__).parent.glob("*.py"))
FEED = sorted(pathlib.Path(streaming.__file__).parent.glob("*.py"))
DEVICES = {"jax", "jaxlib", "flax", "optax"}
SLOW = {"grain", "tensorflow_datasets", "sklearn", "scipy", "pandas", "PIL", "matplotlib", "tensorflow", "orbax"}


def imported(nodes):
  """The top-level packages that import statements among these nodes name."""
  names = [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
  names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
  return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", [*MODULES, pathlib.Path(sampling.__file__)], ids=lambda path: path.stem)
def test_needs_no_jax(path):
  assert not imported(ast.walk(ast.parse(path.read_text()))) & DEVICES


@pytest.mark.parametrize("path", [*MODULES, *FEED], ids=lambda path: path.stem)
def test_slow_libraries_wait(path):
  """Whole modules are looked at: those that these import are among them, or are other rooms'."""
  assert not imported(ast.parse(path.read_text()).body) & SLOW


def test_the_modules_are_found():
  assert pathlib.Path(soseleto_jax.__file__).parent / "data" / "get_task.py" in MODULES
