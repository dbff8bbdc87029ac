import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from soseleto_jax import models

# Initializers take far longer to optimise than to run.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

IMAGE = (8, 8, 3)
SMALL = {
  "mlp": ((2,), {}),
  "cifar_quick": (IMAGE, {}),
  "lenet": ((16, 16, 1), {}),
  "resnet": (IMAGE, {"width": 4, "stage_sizes": (1, 1)}),
}
PARAMETERS = {  # With 10 classes, from the published definitions.
  "mlp": ((2,), 2 * 2 + 2 + 2 * 10 + 10),
  "cifar_quick": ((32, 32, 3), 145_578),
  "lenet": ((28, 28, 1), 431_080),
  "resnet": ((32, 32, 3), 11_173_962),
}


def _small(name, num_classes=10, batch=3, **options):
  shape, defaults = SMALL[name]
  model = models.get_model(name, num_classes, **defaults | options)
  x = jax.random.normal(jax.random.key(1), (batch, *shape))
  return model, _jit(model.init)(jax.random.key(0), x), x


def _apply(model):
  return _jit(model.apply, static_argnames=("train", "head"))


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count_and_logits(name):
  shape, count = PARAMETERS[name]
  model = models.get_model(name, 10)
  x = jax.ShapeDtypeStruct((5, *shape), jnp.float32)
  logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
  assert set(variables) == {"params"}
  assert set(variables["params"]) == {"representation", "classifier"}
  assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == count
  assert (logits.shape, logits.dtype) == ((5, 10), jnp.float32)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("num_classes", [10, {"source": 4, "target": 6}])
def test_bfloat16_reaches_neither_parameters_nor_logits(name, num_classes):
  head = None if num_classes == 10 else "source"
  model, variables, x = _small(name, num_classes, dtype="bfloat16")
  logits = _apply(model)(variables, x, head=head)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
  assert logits.dtype == jnp.float32

  exact = models.get_model(name, num_classes, **SMALL[name][1])
  reference = _apply(exact)(variables, x, head=head)
  np.testing.assert_allclose(logits, reference, atol=0.05 * np.abs(reference).max())
  assert np.any(logits != reference)  # The arithmetic really was coarser.


@pytest.mark.parametrize(
  ("name", "options"),
  [(name, options) for name in ("mlp", "cifar_quick", "lenet") for options in ({}, {"feature_norm": 5.0})]
  + [("resnet", {"norm": norm}) for norm in ("group", "batch", "none")],
)
def test_every_layer_computes_in_bfloat16(name, options):
  shape, defaults = SMALL[name]
  model = models.get_model(name, 10, dtype="bfloat16", **defaults | options)

  def forward(rng, x):
    variables = model.init(rng, x)
    _, captured = model.apply(variables, x, capture_intermediates=True)
    layers = captured["intermediates"]
    return layers["representation"], model.apply(variables, x, method="features"), layers["classifier"]

  x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
  outputs = jax.eval_shape(forward, jax.random.key(0), x)
  assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("name", SMALL)
def test_examples_do_not_influence_each_other(name):
  model, variables, x = _small(name)
  apply = _apply(model)
  logits, others = (apply(variables, y, train=True) for y in (x, x.at[1:].set(7.0)))
  np.testing.assert_allclose(logits[0], others[0], rtol=1e-5, atol=1e-6)
  assert not np.allclose(logits[1], others[1])


def test_lists_and_dtype_objects_are_accepted():
  model = models.get_model("mlp", 2, hidden=[5, 4], dtype=jnp.bfloat16)
  assert model.representation.hidden == (5, 4)
  assert model == models.get_model("mlp", 2, hidden=(5, 4), dtype="bfloat16")


def test_equal_requests_give_equal_modules():
  # A module is a static argument of jit: unequal ones would compile again.
  for name in SMALL:
    for classes in (3, {"source": 4, "target": 6}):
      assert models.get_model(name, classes) == models.get_model(name, classes)
      assert hash(models.get_model(name, classes)) == hash(models.get_model(name, classes))


@pytest.mark.parametrize(
  ("name", "num_classes", "options", "words"),
  [
    ("cifar-quick", 10, {}, ["'cifar-quick'", "lenet, mlp", "did you mean 'cifar_quick'"]),
    ("my_package.nets.Wide", 10, {}, ["name='my_package.nets.Wide'", "my_package.nets:Wide"]),
    ("transformer", 10, {}, ["'transformer'", "cifar_quick, lenet, mlp, resnet"]),
    ("cifar_quick", 10, {"inti": "caffe"}, ["inti='caffe'", "dtype, feature_norm, init", "did you mean 'init'"]),
    ("mlp", 10, {"parent": 1}, ["parent=1", "dtype, feature_norm, hidden"]),
    ("cifar_quick", 10, {"init": "cafe"}, ["init='cafe'", "'fan_in' or 'caffe'"]),
    ("resnet", 10, {"norm": "layer"}, ["norm='layer'", "group, batch, none"]),
    ("resnet", 10, {"width": 0}, ["width=0"]),
    ("resnet", 10, {"stage_sizes": (2, 0)}, ["stage_sizes=(2, 0)"]),
    ("mlp", 10, {"feature_norm": 0}, ["feature_norm=0", "5.0"]),
    ("lenet", 10, {"feature_norm": "5"}, ["feature_norm='5'"]),
    ("mlp", 10, {"hidden": ()}, ["hidden=()"]),
    ("mlp", 10, {"hidden": 3}, ["hidden=3"]),
    ("mlp", 10, {"dtype": "float3"}, ["dtype='float3'", "bfloat16"]),
    ("mlp", 10, {"dtype": "int8"}, ["dtype='int8'", "bfloat16"]),
    ("mlp", 0, {}, ["num_classes=0"]),
    ("mlp", True, {}, ["num_classes=True"]),
    ("mlp", "10", {}, ["num_classes='10'"]),
    ("mlp", {"source": 5}, {}, ["num_classes=", "'source'", "'target'"]),
    ("mlp", {"source": 5, "target": 0}, {}, ["num_classes=", "at least one class"]),
  ],
)
def test_errors_name_the_field_the_value_and_the_cure(name, num_classes, options, words):
  with pytest.raises(ValueError) as error:
    models.get_model(name, num_classes, **options)
  for word in words:
    assert word in str(error.value)


def test_network_of_a_config():
  config = ConfigDict({"name": "mlp", "hidden": [5, 4], "dtype": "bfloat16"})
  for model in (config, config.to_dict()):
    network = models.make_network(model, 3, seed=0)
    assert network == models.as_network(models.get_model("mlp", 3, hidden=(5, 4), dtype="bfloat16"))
  heads = {"source": 4, "target": 6}
  network = models.make_network({"name": "cifar_quick", "init": "caffe", "feature_norm": 5.0}, heads, seed=0)
  assert network == models.as_network(models.get_model("cifar_quick", heads, init="caffe", feature_norm=5.0))
  assert config.hidden == [5, 4]  # as it was


@pytest.mark.parametrize(
  ("model", "words"),
  [
    (
      {"name": "cifar-quick"},
      ["config.model.name='cifar-quick'", "resnet", "did you mean 'cifar_quick'", "import path"],
    ),
    ({"name": None}, ["config.model.name=None", "resnet"]),
    ({}, ["config.model.name=None"]),
    ({"name": "resnet", "widht": 8}, ["config.model.widht=8", "resnet has no such option", "did you mean 'width'"]),
    ({"name": "resnet", "norm": "layer"}, ["config.model.norm='layer'", "group, batch, none"]),
    ({"name": "mlp", "num_classes": 3}, ["config.model.num_classes=3", "mlp has no such option"]),
    ({"name": "mlp", "feature_norm": 0}, ["config.model.feature_norm=0", "5.0"]),
    ({"name": "mlp", "dtype": "int8"}, ["config.model.dtype='int8'", "bfloat16"]),
  ],
)
def test_errors_name_the_field_of_the_config(model, words):
  with pytest.raises(ValueError) as error:
    models.make_network(model, 3, seed=0)
  for word in words:
    assert word in str(error.value)


@pytest.mark.parametrize("name", ["cifar_quick", "lenet", "resnet"])
def test_images_without_channels_are_refused(name):
  # Convolutions take [B, H, W] for one unbatched image without a word.
  with pytest.raises(ValueError, match=rf"{name} takes images \[B, H, W, C\].*\(4, 28, 28\)"):
    models.get_model(name, 10).init(jax.random.key(0), jnp.zeros((4, 28, 28)))
