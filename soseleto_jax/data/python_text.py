"""Bytes of Python's own library: text and code that every installation has, as sequences to predict byte by byte.

The task of a language model that knows which of its sequences are any good: the source holds docstrings and code, both
also with their bytes shuffled, and bytecode; target, validation and test are docstrings of other modules.
"""

import ast
import functools
import pathlib
import sysconfig
import types
from collections.abc import Iterator

import numpy as np

from soseleto_jax.data import draws
from soseleto_jax.data.task import Task
from soseleto_jax.data.values import from_values

KINDS = ("docstrings", "code", "shuffled docstrings", "shuffled code", "bytecode")
WRONG = KINDS[2:]

_SHARES = {"source": 0.6, "target": 0.1, "validation": 0.1, "test": 0.2}  # of the modules
_SCOPES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def make_task(
  seed: int,
  length: int = 64,
  num_source: int = 2500,
  num_target: int = 64,
  num_validation: int = 256,
  num_test: int = 512,
) -> Task:
  """Returns a task of byte sequences: "x" uint8 `[N, length]`, "label" int32 `[N, length]`, the byte after each.

  No module is in two of source, target, validation and test. "wrong" says which of the source's sequences are shuffled
  or bytecode, and its "kind", int8 `[N]`, is the place in `KINDS`. The files are those of the Python that runs this, so
  that another version has other sequences.

  Args:
    seed: the experiment's seed: modules, sequences and the shuffling are drawn by it.
    length: bytes of a sequence.
    num_source: sequences of all kinds, as many of each.
    num_target: docstrings that steer.
    num_validation: docstrings for choosing settings.
    num_test: docstrings for reporting.

  Raises:
    ValueError: more sequences than there are bytes for.
  """
  counts = {"target": num_target, "validation": num_validation, "test": num_test}
  modules = _split(seed)
  held_out = {
    name: _sequences([modules[name]["docstrings"]], count, length, seed, name) for name, count in counts.items()
  }
  source, kind = [], np.arange(num_source, dtype=np.int8) % len(KINDS)
  for number, name in enumerate(KINDS):
    text = modules["source"][name.removeprefix("shuffled ")]
    rows = _sequences([text], int(np.sum(kind == number)), length, seed, name)
    source.append(_shuffled(rows, seed, name) if name.startswith("shuffled") else rows)
  order = np.argsort(kind, kind="stable")
  rows = np.empty((num_source, length + 1), np.uint8)
  rows[order] = np.concatenate(source)
  cuts = (slice(None, -1), slice(1, None))  # what is read, and what comes next
  parts = [part[:, cut] for part in (rows, held_out["target"], held_out["test"]) for cut in cuts]
  task = from_values(
    *parts,
    validation=(held_out["validation"][:, :-1], held_out["validation"][:, 1:]),
    wrong=np.isin(kind, [KINDS.index(name) for name in WRONG]),
    normalization="as_stored",
    name="python_text",
  )
  task.source["kind"] = kind
  return task


def _split(seed: int) -> dict[str, dict[str, bytes]]:
  """Returns the text of each kind in the modules of each set."""
  texts = _modules()
  order = draws.permutation(len(texts), seed, "python_text", "modules")
  ends = np.cumsum([round(share * len(texts)) for share in _SHARES.values()])[:-1]
  return {
    name: {kind: b"\n\n".join(texts[module][kind] for module in chosen) for kind in ("docstrings", "code", "bytecode")}
    for name, chosen in zip(_SHARES, np.split(order, ends), strict=True)
  }


def _sequences(texts: list[bytes], count: int, length: int, seed: int, name: str) -> np.ndarray:
  """Cuts text into sequences of `length` + 1 bytes and draws some, uint8 `[count, length + 1]`."""
  data = np.frombuffer(b"".join(texts), np.uint8)
  rows = data[: len(data) // (length + 1) * (length + 1)].reshape(-1, length + 1)
  if len(rows) < count:
    raise ValueError(
      f"config.task_options: {count} sequences of {length} bytes for {name}, but there are {len(rows)}; take fewer or "
      "shorter ones"
    )
  return rows[draws.permutation(len(rows), seed, "python_text", name)[:count]]


def _shuffled(rows: np.ndarray, seed: int, name: str) -> np.ndarray:
  """Shuffles the bytes within each sequence."""
  keys = draws.uniform(rows.size, seed, "python_text", name, "shuffled").reshape(rows.shape)
  return np.take_along_axis(rows, np.argsort(keys, axis=1), axis=1)


@functools.cache
def _modules() -> list[dict[str, bytes]]:
  """Returns docstrings, code without its indentation, and bytecode of each module of the library outside packages."""
  folder = pathlib.Path(sysconfig.get_path("stdlib"))
  return [_read(path) for path in sorted(folder.glob("*.py"))]


def _read(path: pathlib.Path) -> dict[str, bytes]:
  text = path.read_text(encoding="utf-8")
  tree, lines = ast.parse(text), text.splitlines()
  docstrings = []
  for node in ast.walk(tree):
    if isinstance(node, _SCOPES) and (docstring := ast.get_docstring(node)):
      docstrings.append(docstring)
      expression = node.body[0]
      first, last = expression.lineno - 1, expression.end_lineno or expression.lineno
      lines[first:last] = [""] * (last - first)
  bytecode = b"".join(_bytecode(compile(tree, path.name, "exec")))
  code = "\n".join(line.strip() for line in lines if line.strip())
  return {"docstrings": "\n\n".join(docstrings).encode(), "code": code.encode(), "bytecode": bytecode}


def _bytecode(code: types.CodeType) -> Iterator[bytes]:
  yield code.co_code
  for constant in code.co_consts:
    if isinstance(constant, types.CodeType):
      yield from _bytecode(constant)
