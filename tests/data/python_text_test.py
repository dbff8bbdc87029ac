"""Sequences of Python's own library."""

import numpy as np
import pytest

from soseleto_jax.data import python_text


@pytest.fixture(autouse=True)
def few_modules(monkeypatch):
  """Texts that say which module and kind they are of: reading the library takes seconds."""
  kinds = ("docstrings", "code", "bytecode")
  texts = [{kind: bytes([2 * m + 60 * k, 2 * m + 60 * k + 1]) * 300 for k, kind in enumerate(kinds)} for m in range(20)]
  monkeypatch.setattr(python_text, "_modules", lambda: texts)


def make(seed=0, **options):
  return python_text.make_task(
    seed, **{"length": 7, "num_source": 50, "num_target": 6, "num_validation": 5, "num_test": 9} | options
  )


def modules_of(x):
  return {int(value) % 60 // 2 for value in np.unique(x)}


def test_sets_of_different_modules_and_kinds():
  task = make()
  sets = {"source": task.source, "target": task.target, "validation": task.validation, "test": task.test}
  assert [len(part["x"]) for part in sets.values()] == [50, 6, 5, 9]
  seen = [modules_of(part["x"]) for part in sets.values()]
  assert all(one.isdisjoint(other) for i, one in enumerate(seen) for other in seen[:i])
  for name, part in sets.items():
    assert part["x"].shape[1:] == part["label"].shape[1:] == (7,) and part["x"].dtype == np.uint8
    np.testing.assert_array_equal(part["x"][:, 1:], part["label"][:, :-1])
    if name != "source":
      assert part["x"].max() < 60
  kind = task.source["kind"]
  np.testing.assert_array_equal(np.bincount(kind), [10] * 5)
  np.testing.assert_array_equal(task.wrong, kind >= 2)
  np.testing.assert_array_equal(task.source["x"].max(axis=1) // 60, np.array([0, 1, 0, 1, 2])[kind])
  steps = np.abs(np.diff(task.source["x"].astype(int), axis=1))
  in_order = ((steps == 1).all(axis=1)) | (kind >= 2) & (kind < 4)
  assert in_order.all() and not (steps[kind == 2] == 1).all()


def test_each_seed_draws_anew():
  assert np.any(make(0).source["x"] != make(1).source["x"])
  np.testing.assert_array_equal(make(0).source["x"], make(0).source["x"])


def test_more_than_there_is():
  with pytest.raises(ValueError, match="config.task_options: 500 sequences of 7 bytes for target, but there are 150"):
    make(num_target=500)


def test_what_is_read_of_a_module(tmp_path):
  path = tmp_path / "module.py"
  path.write_text('"""Of the module."""\n\ndef f(x):\n  """Of f.\n\n  More.\n  """\n  return x + 1  # a comment\n')
  read = python_text._read(path)
  assert read["docstrings"] == b"Of the module.\n\nOf f.\n\nMore."
  assert read["code"] == b"def f(x):\nreturn x + 1  # a comment"
  assert read["bytecode"] and b"Of f" not in read["bytecode"]
