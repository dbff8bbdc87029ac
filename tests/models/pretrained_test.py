import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax import nnx

from soseleto_jax import models
from soseleto_jax.models.network import as_network
from soseleto_jax.models.pretrained import load_params, start_from
from tests import problems

KEY = jax.random.key(0)
X = np.ones((2, 4), np.float32)


class LinenNet(nn.Module):
  @nn.compact
  def __call__(self, x, train=False):
    x = nn.Dense(5, name="dense")(x)
    return nn.BatchNorm(use_running_average=not train, name="norm")(x)


class NnxNet(nnx.Module):
  def __init__(self, *, rngs):
    self.blocks = nnx.List([nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 5, rngs=rngs)])
    self.norm = nnx.BatchNorm(5, rngs=rngs)
    self.drop = nnx.Dropout(0.5, rngs=rngs)

  def __call__(self, x):
    for block in self.blocks:
      x = block(x)
    return self.drop(self.norm(x))


@functools.cache
def _start(kind, heads=False):
  classes = {"source": 3, "target": 2} if heads else 3
  network = as_network(LinenNet() if kind == "linen" else NnxNet(rngs=nnx.Rngs(0)), classes)
  return network.init(KEY, X)


def _other(tree):
  """Other values of the same kinds."""
  return jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(0.1), tree)


BOTH = pytest.mark.parametrize("kind", ["linen", "nnx"])


@BOTH
@pytest.mark.parametrize("parts", [("representation",), ("classifier",), ("representation", "classifier")])
def test_parts(kind, parts):
  params, state = _start(kind)
  given = {part: _other(params[part]) for part in parts}
  started, kept = start_from(given, params, state)
  problems.assert_same_bits(started, {**params, **given})
  problems.assert_same_bits(kept, state)
  assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(started))


@BOTH
def test_the_representation_alone_starts_a_network_with_other_heads(kind):
  params, state = _start(kind, heads=True)
  given = _other(_start(kind)[0]["representation"])
  started, kept = start_from(given, params, state)
  problems.assert_same_bits(started, {**params, "representation": given})
  problems.assert_same_bits(kept, state)


@pytest.mark.parametrize("of", ["network", "representation"])
def test_linen_variables_bring_statistics(of):
  params, state = _start("linen")
  new_params, new_state = _other(params), _other(state)
  if of == "network":
    given = {"params": new_params, **new_state}
  else:
    given = {
      "params": new_params["representation"],
      "batch_stats": new_state["batch_stats"]["representation"],
    }
    new_params = {**params, "representation": new_params["representation"]}
  started = start_from(given, params, state)
  problems.assert_same_bits(started, (new_params, new_state))
  only_params = start_from({"params": new_params}, params, state)
  problems.assert_same_bits(only_params, (new_params, state))


def test_variables_of_a_module_trained_elsewhere():
  """A classifier and all, whose names are not those of the parts: only the representation's part is taken."""
  module = LinenNet()
  variables = module.init(jax.random.key(7), X)
  params, state = _start("linen")
  started, new_state = start_from(variables, params, state)
  problems.assert_same_bits(started["representation"], variables["params"])
  problems.assert_same_bits(new_state["batch_stats"]["representation"], variables["batch_stats"])


def _trained_module():
  module = NnxNet(rngs=nnx.Rngs(7))
  module(jnp.arange(8.0).reshape(2, 4))
  return module


@pytest.mark.parametrize("form", ["state", "params", "pure", "strings"])
def test_nnx_state(form):
  params, state = _start("nnx", heads=True)
  module = _trained_module()
  given = nnx.state(module, nnx.Param) if form == "params" else nnx.state(module)
  if form in ("pure", "strings"):
    given = nnx.to_pure_dict(given)
  if form == "strings":
    given["blocks"] = {str(key): block for key, block in given["blocks"].items()}
  started, new_state = start_from(given, params, state)
  expected = nnx.to_pure_dict(nnx.state(module, nnx.Param))
  problems.assert_same_bits(started, {**params, "representation": expected})
  statistics = {"representation": nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))}
  problems.assert_same_bits(new_state, state if form == "params" else statistics)


def test_networks_without_parts():
  params = {"linear": {"w": jnp.ones((4, 3))}, "other": {"b": jnp.ones(3)}}
  given = {"linear": {"w": np.zeros((4, 3), np.float32)}}
  problems.assert_same_bits(start_from(given, params, None), ({**params, **given}, None))
  params = [jnp.ones(2), (jnp.ones(3),)]
  problems.assert_same_bits(start_from(_other(params), params, None)[0], _other(params))


def _without(tree, *path):
  if len(path) == 1:
    return {key: value for key, value in tree.items() if key != path[0]}
  return {**tree, path[0]: _without(tree[path[0]], *path[1:])}


@BOTH
@pytest.mark.parametrize(
  ("change", "words"),
  [
    (
      lambda p, s: {**p, "classifier": {"kernel": np.ones((5, 1000)), "bias": np.ones(1000)}},
      ["classifier/", "1000", "leave 'classifier' out"],
    ),
    (lambda p, s: {**p, "head": p["classifier"]}, ["head/bias, head/kernel", "has not"]),
    (lambda p, s: {**p, "clasifier": p["classifier"]}, ["clasifier/bias", "did you mean 'classifier'"]),
    (lambda p, s: _without(p, "classifier", "bias"), ["'classifier' without classifier/bias", "leave it out"]),
    (lambda p, s: _without(p["representation"], "norm", "scale"), ["without representation/norm/scale"]),
    (lambda p, s: {**p["representation"], "more": np.ones(3)}, ["representation/more", "its own are"]),
    (
      lambda p, s: jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), p),
      ["dtype float64", "has float32", "astype('float32')"],
    ),
    (lambda p, s: {"params": p, "statistics": {"norm": np.ones(5)}}, ["statistics", "norm", "has not"]),
    (
      lambda p, s: {"params": p, **jax.tree.map(lambda leaf: leaf[:3], s)},
      ["norm/mean", "of shape (3,)", "has (5,)"],
    ),
    (lambda p, s: {}, ["no arrays"]),
    (lambda p, s: None, ["no arrays"]),
  ],
)
def test_errors_name_the_array_both_kinds_and_the_cure(kind, change, words):
  params, state = _start(kind)
  with pytest.raises(ValueError) as error:
    start_from(change(params, state), params, state)
  for word in words:
    assert word in str(error.value)


def test_a_state_that_the_network_has_not():
  params = as_network(models.MLP((5,)), 3).init(KEY, X)[0]
  given = {"params": params, "batch_stats": {"representation": {"mean": np.ones(5)}}}
  with pytest.raises(ValueError, match="batch_stats/representation/mean.*its own are none"):
    start_from(given, params, None)


def _save(path, tree, how):
  if how == "standard":
    with ocp.StandardCheckpointer() as checkpointer:
      checkpointer.save(path, tree)
    return path
  if how == "pytree":
    with ocp.PyTreeCheckpointer() as checkpointer:
      checkpointer.save(path, tree)
    return path
  with ocp.CheckpointManager(path) as manager:
    manager.save(3, args=ocp.args.StandardSave(tree))
    manager.wait_until_finished()
  return path / "3"


@pytest.mark.parametrize("how", ["standard", "pytree", "manager"])
def test_checkpoints(tmp_path, how):
  params, state = _start("nnx")
  new = _other(params)
  path = _save(tmp_path / "saved", jax.tree.map(jnp.asarray, new), how)
  for name in (path, str(path)):
    loaded = load_params(name)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(loaded))
    problems.assert_same_bits(start_from(loaded, params, state), (new, state))


def test_checkpoint_of_an_nnx_state(tmp_path):
  module = _trained_module()
  path = _save(tmp_path / "saved", nnx.state(module), "standard")
  started, new_state = start_from(load_params(path), *_start("nnx"))
  problems.assert_same_bits(started["representation"], nnx.to_pure_dict(nnx.state(module, nnx.Param)))
  problems.assert_same_bits(new_state["representation"], nnx.to_pure_dict(nnx.state(module, nnx.BatchStat)))


@BOTH
def test_checkpoint_of_a_run(tmp_path, kind):
  """A train state, as a run saves it under "state"."""
  params, model_state = _start(kind)
  new = {"params": _other(params), "model_state": _other(model_state)}
  state = {"step": jnp.int32(7), "opt_state": optax.sgd(0.1, 0.9).init(params), "alpha": jnp.ones(4), **new}
  with ocp.CheckpointManager(tmp_path / "run", item_names=("state", "loop")) as manager:
    manager.save(7, args=ocp.args.Composite(state=ocp.args.StandardSave(state), loop=ocp.args.JsonSave({"a": 1})))
    manager.wait_until_finished()
  started = start_from(load_params(tmp_path / "run" / "7"), params, model_state)
  problems.assert_same_bits(started, (new["params"], new["model_state"]))
  with pytest.raises(ValueError, match=r"holds no checkpoint.*one of its steps, such as .*/run/7"):
    load_params(tmp_path / "run")


def test_split_arrays_are_read_whole(tmp_path):
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  array = jax.device_put(jnp.arange(16.0), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
  path = _save(tmp_path / "saved", {"w": array.astype(jnp.bfloat16)}, "standard")
  problems.assert_same_bits(load_params(path), {"w": np.arange(16.0).astype(jnp.bfloat16)})


def test_folders_that_cannot_be_read(tmp_path):
  with pytest.raises(ValueError, match="params='.*nowhere'.*no such folder"):
    load_params(tmp_path / "nowhere")
  with pytest.raises(ValueError, match=f"params='{tmp_path}' holds no checkpoint"):
    load_params(tmp_path)
  path = _save(tmp_path / "saved", {"w": jnp.ones(3)}, "standard")
  (path / "_METADATA").write_text("{")
  with pytest.raises(ValueError, match="params='.*saved' cannot be read"):
    load_params(path)
