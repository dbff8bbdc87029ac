"""Every test runs on the CPU, as 8 virtual devices, unless JAX_PLATFORMS says otherwise."""

import os

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
if not os.environ.get("JAX_PLATFORMS"):
  jax.config.update("jax_platforms", "cpu")


@pytest.fixture
def x64():
  """Double precision for one test."""
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
  """Keeps compiled programs for the tests of one file."""
  from tests import runs  # it needs the settings above

  with runs.compiled_once(tmp_path_factory.mktemp("programs")):
    yield


@pytest.fixture
def no_report(monkeypatch):
  """Saves the seconds that its figures take."""
  from soseleto_jax import report

  monkeypatch.setattr(report, "write_report", lambda workdir, **_: workdir / "report.html")
