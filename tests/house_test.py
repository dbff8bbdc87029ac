"""The house as it is drawn: which room may import which, and what the core needs."""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = "soseleto_jax"

# A room may import itself and these. The first row of doors is on top; no arrow runs up.
ARROWS = {
  "core": set(),
  "storage": set(),
  "data": {"core", "storage"},
  "report": {"storage"},
  "models": {"core"},
  "feed": {"core", "data"},
  "methods": {"core", "data", "feed", "models"},
  "run": {"core", "data", "feed", "methods", "models", "report", "storage"},
  "config_values": set(),
  "config": {"config_values", "core", "data", "methods"},
  "pretraining": {"config", "core", "data", "methods"},
  "train": {"config", "data", "methods", "pretraining", "report", "run", "storage"},
  "loading": {"config", "core", "methods", "models", "report", "run", "storage"},
  "config_file": {"core"},
  "main": {"config_file", "core", "run", "train"},
  "predict": {"data", "loading", "run", "storage"},
  "__init__": {"core"},
  "choices": {"config", "data"},
  "fitting": {"choices", "config", "data", "models", "run", "train"},
  "configs": {"choices", "config"},
}
CORE_NEEDS = {"jax", "numpy", "optax", PACKAGE}
MODULES = sorted((ROOT / PACKAGE).rglob("*.py")) + sorted((ROOT / "configs").glob("*.py"))


def imported(path):
  """The modules that a file imports, wherever in it."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f"{path}: relative imports hide the arrows"
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def room_of(path):
  parts = path.relative_to(ROOT).with_suffix("").parts
  return parts[1] if parts[0] == PACKAGE else parts[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_arrow_runs_up(path):
  room = room_of(path)
  assert room in ARROWS, f"{path} stands in no room"
  reached = {name.split(".")[1] for name in imported(path) if name.split(".")[0] == PACKAGE and "." in name}
  upwards = {name for name in reached - {room} if name not in ARROWS[room]}
  assert not upwards, f"{path} imports {sorted(upwards)}; {room} may import {sorted(ARROWS[room])}"
  assert not {name for name in imported(path) if name.split(".")[0] in ("experiments", "tests")}


def test_the_arrows_have_no_circle():
  seen = []

  def visit(room, path):
    assert room not in path, f"{' -> '.join((*path, room))}"
    for below in ARROWS[room]:
      visit(below, (*path, room))
    seen.append(room)

  for room in ARROWS:
    visit(room, ())
  assert set(seen) == set(ARROWS)


@pytest.mark.parametrize("path", sorted((ROOT / PACKAGE / "core").glob("*.py")), ids=lambda path: path.name)
def test_the_core_needs_jax_alone(path):
  needed = {name.split(".")[0] for name in imported(path)} - set(sys.stdlib_module_names)
  assert needed <= CORE_NEEDS, f"{path} imports {sorted(needed - CORE_NEEDS)}"
