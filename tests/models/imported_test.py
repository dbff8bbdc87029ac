import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soseleto_jax import models
from soseleto_jax.models.function_network import FunctionNetwork
from soseleto_jax.models.network import LinenNetwork
from soseleto_jax.models.nnx_network import NnxNetwork

X = jnp.ones((2, 4))

SOURCE = """
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx


class Wide(nn.Module):
  width: int = 8
  sizes: tuple = ()
  dtype: object = jnp.float32

  @nn.compact
  def __call__(self, x):
    for size in (*self.sizes, self.width):
      x = nn.Dense(size, dtype=self.dtype)(x)
    return x


class Deep(nnx.Module):
  def __init__(self, width, *, rngs):
    self.dense = nnx.Linear(4, width, rngs=rngs)

  def __call__(self, x):
    return self.dense(x)


def wide(**options):
  return Wide(**options)


def deep(*, rngs=None):
  return Deep(3, rngs=rngs)


def broken():
  raise ValueError("no such weights")


def nothing(width=1):
  return width


def a_class():
  return Wide


class Pair:
  def init(self, key, x):
    return {"w": jnp.ones((x.shape[1], 3))}

  def apply(self, params, x):
    return x @ params["w"]


wide_8 = Wide()
number = 3
"""


@pytest.fixture
def path(tmp_path, monkeypatch):
  """A package of one's own; the name of its module is new for each test, since Python keeps what it imports."""
  package = f"package_{tmp_path.name}"
  (tmp_path / package).mkdir()
  (tmp_path / package / "__init__.py").touch()
  (tmp_path / package / "nets.py").write_text(SOURCE)
  (tmp_path / package / "needs.py").write_text("import a_module_that_nobody_has\n")
  (tmp_path / package / "wrong.py").write_text(textwrap.dedent("raise RuntimeError('at import')"))
  monkeypatch.syspath_prepend(tmp_path)
  return package


def _make(name, num_classes=3, seed=0, **options):
  return models.make_network({"name": name, "dtype": "float32", **options}, num_classes, seed=seed)


def _shapes(network):
  params, _ = network.init(jax.random.key(0), X)
  return jax.tree.map(jnp.shape, params)


def test_a_linen_class(path):
  network = _make(f"{path}.nets:Wide", width=5, sizes=[6, 7])
  assert isinstance(network, LinenNetwork)
  shapes = _shapes(network)
  assert shapes["classifier"]["kernel"] == (5, 3)
  assert shapes["representation"]["Dense_1"]["kernel"] == (6, 7)
  half = _make(f"{path}.nets:Wide", {"source": 2, "target": 3}, dtype="bfloat16")
  assert half.module.representation.dtype == half.module.dtype == jnp.bfloat16
  assert set(_shapes(half)) == {"representation", "source_head", "target_head"}


def test_an_nnx_class_starts_from_the_seed(path):
  networks = [_make(f"{path}.nets:Deep", width=5, seed=seed) for seed in (0, 0, 1)]
  assert all(isinstance(network, NnxNetwork) for network in networks)
  kernels = [network.init(jax.random.key(0), X)[0]["representation"]["dense"]["kernel"] for network in networks]
  np.testing.assert_array_equal(kernels[0], kernels[1])
  assert np.all(np.asarray(kernels[0]) != np.asarray(kernels[2]))


def test_functions_and_pairs(path):
  assert _shapes(_make(f"{path}.nets:wide", width=5))["classifier"]["kernel"] == (5, 3)
  assert _make(f"{path}.nets:wide", dtype="bfloat16").module.dtype == jnp.bfloat16
  assert _shapes(_make(f"{path}.nets:deep"))["classifier"]["kernel"] == (3, 3)
  assert isinstance(_make(f"{path}.nets:Pair"), FunctionNetwork)


@pytest.mark.parametrize(
  ("name", "options", "words"),
  [
    ("nets:Wid", {}, ["config.model.name='PACKAGE.nets:Wid'", "no 'Wid'", "did you mean 'Wide'"]),
    ("nets:", {}, ["config.model.name='PACKAGE.nets:'", "no ''"]),
    ("missing:Wide", {}, ["config.model.name='PACKAGE.missing:Wide'", "no module 'PACKAGE.missing'", "PYTHONPATH"]),
    ("needs:Wide", {}, ["config.model.name=", "imports a_module_that_nobody_has"]),
    ("nets:Wide", {"widht": 5}, ["config.model.widht=5", "width, sizes", "did you mean 'width'"]),
    ("nets:Wide", {"parent": 5}, ["config.model.parent=5", "width, sizes"]),
    ("nets:deep", {"rngs": 5}, ["config.model.rngs=5", "takes none"]),
    ("nets:wide", {"rngs": 5}, ["config.model.rngs=5"]),
    ("nets:Deep", {}, ["config.model has no 'width'", "PACKAGE.nets:Deep", "--config.model.width="]),
    ("nets:deep", {"dtype": "bfloat16"}, ["config.model.dtype='bfloat16'", "takes no dtype", "'float32'"]),
    ("nets:Wide", {"dtype": "float3"}, ["config.model.dtype='float3'", "bfloat16"]),
    ("nets:nothing", {"width": 7}, ["config.model.name='PACKAGE.nets:nothing' made 7", "Flax module"]),
    ("nets:a_class", {}, ["config.model.name='PACKAGE.nets:a_class' made <class", "Flax module"]),
    ("nets:wide_8", {}, ["config.model.name='PACKAGE.nets:wide_8' is", "name a class, or a function"]),
    ("nets:number", {}, ["config.model.name='PACKAGE.nets:number' is 3", "name a class, or a function"]),
    ("nets:broken", {}, ["no such weights"]),
  ],
)
def test_errors_name_the_field_the_value_and_the_cure(path, name, options, words):
  with pytest.raises(ValueError) as error:
    _make(f"{path}.{name}", **options)
  for word in words:
    assert word.replace("PACKAGE", path) in str(error.value)


@pytest.mark.parametrize("name", [":Wide", ".nets:Wide", "nobody_has_this_package:Wide"])
def test_paths_that_lead_nowhere(name):
  with pytest.raises(ValueError, match=f"config.model.name='{name}'"):
    _make(name)


def test_what_a_module_raises_is_its_own(path):
  with pytest.raises(RuntimeError, match="at import"):
    _make(f"{path}.wrong:Wide")
