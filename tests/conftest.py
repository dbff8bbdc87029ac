"""Every test runs on the CPU, as 8 virtual devices, unless JAX_PLATFORMS says otherwise."""

import hashlib
import os
import pathlib
import platform
import time

import jax
import jaxlib
import pytest

_KEPT_DAYS = 7  # that a compiled program stays without being used


def pytest_configure(config):
  """Sets JAX up, with one cache of compiled programs for all tests, all workers and all later runs."""
  os.environ["SOSELETO_CACHE"] = ""  # tests leave nothing in the user's own
  jax.config.update("jax_num_cpu_devices", 8)
  if (os.environ.get("JAX_PLATFORMS") or "cpu") == "cpu":
    jax.config.update("jax_platforms", "cpu")
    # Most of a test's time goes into compiling what runs for milliseconds.
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 " + os.environ.get("XLA_FLAGS", "")
  cache = _cache_folder()
  if not hasattr(config, "workerinput"):  # the main process of pytest, not one of its workers
    _forget_old_programs(cache)
  # By environment too, for the processes that tests start.
  options = {
    "jax_compilation_cache_dir": str(cache),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
  }
  for name, value in options.items():
    os.environ[name.upper()] = str(value)
    jax.config.update(name, value)


def _cache_folder():
  """The folder of programs for this processor: those of another one may not run here."""
  root = os.environ.get("SOSELETO_TEST_CACHE") or pathlib.Path.home() / ".cache" / "soseleto_jax_tests"
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    processor = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
  except OSError:
    processor = [platform.processor(), platform.machine()]
  machine = repr([processor, jax.__version__, jaxlib.__version__, platform.python_version()])
  return pathlib.Path(root) / hashlib.sha256(machine.encode()).hexdigest()[:16]


def _forget_old_programs(cache):
  cache.mkdir(parents=True, exist_ok=True)
  oldest = time.time() - _KEPT_DAYS * 24 * 3600
  for file in cache.iterdir():
    if file.stat().st_mtime < oldest:
      file.unlink(missing_ok=True)


@pytest.fixture
def x64():
  """Double precision for one test."""
  with jax.enable_x64(True):
    yield


@pytest.fixture
def no_report(monkeypatch):
  """Saves the seconds that its figures take."""
  from soseleto_jax.report import page

  monkeypatch.setattr(page, "write_report", lambda workdir, **_: workdir / "report.html")


@pytest.fixture
def two_epochs(monkeypatch):
  """Of runs whose settings follow from the data, without the trial, which takes the time of two more runs."""
  from soseleto_jax import choices

  choose = choices.choose

  def choose_less(config, facts, num_epochs=0):
    lines = choose(config, facts, num_epochs or 2)
    config.alpha.trial_epochs = 0
    return lines

  monkeypatch.setattr(choices, "choose", choose_less)
