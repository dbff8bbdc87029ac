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
