"""The pages of docs/: their Python runs as it stands there, and what they name exists."""

import re

import jax
import numpy as np
import pytest

from soseleto_jax import train_and_evaluate
from soseleto_jax.config import validate
from soseleto_jax.report import list_files
from tests import pages, runs

PAGES = [pages.ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((pages.ROOT / "docs").glob("*.md"))
NEEDS_FILES = ("your_data.md",)  # tests/data/files_test.py runs it


def page(name):
  return pages.ROOT / "docs" / name


def anchors(path):
  """The links that lead to the headings of a page, as GitHub names them."""
  headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
  for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
    if "://" in target:
      continue
    file, _, anchor = target.partition("#")
    found = (path.parent / file).resolve() if file else path
    assert found.exists(), target
    assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_files_that_are_named_exist(path):
  """Those of this repository, by their path."""
  text = path.read_text(encoding="utf-8")
  for name in re.findall(r"\b(?:soseleto_jax|configs|experiments|tests|docs)/[\w/.]*\w\.(?:py|md|png)\b", text):
    assert (pages.ROOT / name).exists(), name
  for module in re.findall(r"-m ((?:experiments|soseleto_jax)[\w.]*)", text):
    found = pages.ROOT / module.replace(".", "/")
    assert found.with_suffix(".py").exists() or (found / "__main__.py").exists(), module


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_fields_of_a_config_that_are_named_exist(path):
  from soseleto_jax.config import default_config

  config = default_config()
  text = path.read_text(encoding="utf-8")
  if path.name == "CHANGELOG.md":
    text = text.replace("config.flip_source", "")  # it tells of names that are gone
  for field in re.findall(r"(?<![\w.])(?:--)?config\.((?:\w+\.)*\w+)", text):
    holder, parts = config, field.split(".")
    if parts[0] in ("py", "update", "json", "model", "method_options", "user"):
      continue
    for part in parts:
      if part == "update" or not hasattr(holder, "keys"):
        break
      assert part in holder, field
      holder = holder[part]


def test_every_page_is_run_or_has_no_python():
  with_python = {path.name for path in PAGES if next(pages.python_blocks(path), None)}
  assert with_python <= {
    "README.md",
    "devices.md",
    "extending.md",
    "settings.md",
    "what_a_run_leaves.md",
    *NEEDS_FILES,
    "augmentation.md",
    "frameworks.md",
  }


def test_what_a_run_leaves(tmp_path, monkeypatch, no_report):
  """All files that the page names, no others, and the columns."""
  monkeypatch.chdir(tmp_path)
  task = runs.make_task()
  train_and_evaluate(runs.make_config(num_epochs=1, alpha__trial_epochs=1), "runs/mine", task)
  np.save("new.npy", task.test["x"])
  names = pages.run(page("what_a_run_leaves.md"))
  assert len(names["suspects"]) == 20 and set(names["wrong"].columns) == set(names["suspects"].columns)

  text = page("what_a_run_leaves.md").read_text(encoding="utf-8")
  files, columns = re.findall(r"\|---\|---\|\n(.*?)\n\n", text, re.DOTALL)
  first_cells = " ".join(line.split("|")[1] for line in files.splitlines())
  named = {name.rstrip("/") for name in re.findall(r"`([^`]+)`", first_cells)}
  written = {path.name for path in (tmp_path / "runs" / "mine").iterdir()} - {".lock"}
  assert named == written | {"report.html", "figures"}  # which this test leaves out
  first_cells = " ".join(line.split("|")[1] for line in columns.splitlines())
  assert re.findall(r"`([^`]+)`", first_cells) == list(list_files.COLUMNS)


def test_settings(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  validate(pages.run(page("settings.md"))["config"])


def test_devices(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  names = pages.run(page("devices.md"))
  assert len(names["state"].alpha.sharding.device_set) == jax.device_count() > 1
  assert np.isfinite(names["metrics"]["target_loss"])


@pytest.mark.slow
def test_extending(tmp_path, monkeypatch, no_report, capsys):
  monkeypatch.chdir(tmp_path)
  names = pages.run(page("extending.md"))
  runs = {path.name for path in (tmp_path / "runs").iterdir()}
  assert runs == {"linen", "nnx", "functions", "pretrained", "augmented", "adamw", "evaluated", "generalized", "values"}
  assert 0 <= float(capsys.readouterr().out) <= 1  # the accuracy of the worst class
  assert names["state"].alpha.shape == (160,) and int(names["state"].step) == 1
  assert names["predicted"].shape == (40,)


def test_augmentation(tmp_path, monkeypatch):
  path = page("augmentation.md")
  if not path.exists():
    pytest.skip("no such page")
  monkeypatch.chdir(tmp_path)
  pages.run(path)
