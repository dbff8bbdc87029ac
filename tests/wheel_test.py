"""The wheel, in an empty environment and an empty folder, away from the checkout."""

import email
import os
import pathlib
import re
import shutil
import site
import subprocess
import sys
import zipfile

import pytest

import soseleto_jax

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = "soseleto_jax"

pytestmark = pytest.mark.slow


def run(*command, cwd, **environment):
  """Runs a command that neither the checkout nor the environment of the tests can help."""
  kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
  return subprocess.run(
    list(map(str, command)), cwd=cwd, env=kept | environment, check=True, capture_output=True, text=True, timeout=600
  ).stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  folder = tmp_path_factory.mktemp("wheel")
  # From a copy, since building leaves folders beside the sources.
  (folder / "source").mkdir()
  for name in (PACKAGE, "configs"):
    shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
  for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, folder / "source")
  options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder)
  run(sys.executable, "-m", "pip", "wheel", *options, folder / "source", cwd=folder)
  (wheel,) = folder.glob("*.whl")
  return wheel


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
  """A virtual environment with the wheel, and what the tests run with but for the package itself."""
  folder = tmp_path_factory.mktemp("environment")
  run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
  (packages,) = folder.glob("lib/python*/site-packages")
  for own in site.getsitepackages():
    for entry in pathlib.Path(own).iterdir():
      if PACKAGE not in entry.name and entry.suffix != ".pth" and not (packages / entry.name).exists():
        (packages / entry.name).symlink_to(entry)
  run(sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--no-deps", "--no-index", wheel,
      cwd=folder)  # fmt: skip
  return folder / "bin"


def test_it_needs_four_packages(wheel):
  with zipfile.ZipFile(wheel) as archive:
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(archive.read(name))
  required = {re.match(r"[\w-]+", line)[0] for line in metadata.get_all("Requires-Dist") if "extra ==" not in line}
  assert required == {"flax", "jax", "numpy", "optax"}
  assert {"train", "tensorflow", "experiments", "cloud", "bench", "docs", "test"} <= set(
    metadata.get_all("Provides-Extra")
  )
  assert metadata["Version"] == soseleto_jax.__version__
  assert "Apache-2.0" in (metadata["License"] or metadata["License-Expression"])
  assert metadata["Project-URL"] is None and metadata["Home-page"] is None


def test_it_holds_every_module_and_what_they_read(wheel):
  here = {path.relative_to(ROOT).as_posix() for path in (ROOT / PACKAGE).rglob("*") if path.is_file()}
  here = {name for name in here if "__pycache__" not in name}
  here |= {f"{PACKAGE}/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
  with zipfile.ZipFile(wheel) as archive:
    held = set(archive.namelist())
  assert {name for name in held if ".dist-info" not in name} == here
  assert f"{PACKAGE}/py.typed" in held and f"{PACKAGE}/report/page.html.jinja" in held
  assert any(name.endswith("LICENSE") for name in held)


def test_it_trains_away_from_the_checkout(environment, tmp_path):
  """By the README's own name for a config, which is not in this folder."""
  command = ("-m", "soseleto_jax.main", "--config=configs/synthetic.py", "--config.num_epochs=1", "--workdir=w")
  printed = run(environment / "python", *command, cwd=tmp_path, JAX_PLATFORMS="cpu")
  assert "test accuracy" in printed and printed.endswith("report: w/report.html\n")
  assert "<h1>Figure 1" in (tmp_path / "w" / "report.html").read_text(encoding="utf-8")
  code = "import soseleto_jax; print(soseleto_jax.__file__)"
  assert str(environment.parent) in run(environment / "python", "-c", code, cwd=tmp_path)


def test_the_command(environment, tmp_path):
  command = [str(environment / "soseleto"), "--help"]
  shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)  # absl exits with 1
  for option in ("--config", "--workdir", "--coordinator"):
    assert f"{option}:" in shown.stdout, shown.stderr
