"""The fields of a config, and the errors for values that no run can use."""

import json

import pytest
from ml_collections import ConfigDict

from soseleto_jax.config import changed_fields, default_config, parse_argument, validate
from soseleto_jax.methods.optimizers import OPTIMIZERS, SCHEDULES


def config_with(**fields):
  config = default_config()
  config.update_from_flattened_dict(fields)
  return config


def test_the_defaults_are_valid_and_separate():
  config = default_config()
  validate(config)
  config.alpha.init = 0.1
  config.data.source.dataset = "other"
  assert default_config().alpha.init == 0.5
  assert default_config().data.source.dataset != "other"
  json.dumps(config.to_dict())  # as config.json needs


@pytest.mark.parametrize("method", ["soseleto", "source_only", "target_only", "finetune", "joint"])
@pytest.mark.parametrize("shared", [True, False])
def test_methods(method, shared):
  validate(config_with(**{"method": method, "data.shared_classes": shared}))


@pytest.mark.parametrize(
  "field, values",
  [
    ("optimizer.name", OPTIMIZERS),
    ("optimizer.schedule", [name for name in SCHEDULES if name != "steps"]),
    ("alpha.contraction", ("auto", "jvp", "vjp", "vmap_grad")),
    ("alpha.target_loss", ("cross_entropy", "margin")),
    ("alpha.direction", ("gradient", "orthogonal")),
    ("alpha.transforms", ((), ("scale_by_std",), ("center_by_class", "residual_normalize", "scale_by_std"))),
    ("alpha.init", (0.0, 1.0)),
    ("alpha.step_size", (0.0,)),
    ("optimizer.momentum", (0.0, 0.99)),
    ("seed", (0, 2**32 - 1)),
    ("steps_per_call", (0, 1, 100)),
    ("eval_every_epochs", (0.01, 1e6, float("inf"))),
    ("checkpoint_every_epochs", (float("inf"),)),
    ("finetune_epochs", (0.5,)),
  ],
)
def test_values_at_the_edge(field, values):
  for value in values:
    validate(config_with(**{field: value}))


NOT_FINITE = [
  "target_weight", "domain_weight", "finetune_epochs", "finetune_learning_rate", "optimizer.learning_rate",
  "optimizer.momentum", "optimizer.weight_decay", "alpha.init", "alpha.step_size", "alpha.burn_in_epochs",
  "alpha.burn_in_weight", "alpha.gain", "alpha.lookahead", "data.source.noise_rate",
]  # fmt: skip

BAD = [
  *((field, value, "give a finite number") for field in NOT_FINITE for value in (float("inf"), float("nan"), 1e39)),
  ("eval_every_epochs", float("nan"), "give a finite number"),
  ("checkpoint_every_epochs", -float("inf"), "give a finite number"),
  ("num_epochs", 2**31, "give at most 2147483647"),
  ("eval_batch_size", 10**12, "give at most 16777216"),
  ("name", "caf\udce9", "no UTF-8 text"),
  ("model.name", "m\0p", "zero byte"),
  ("optimizer.drop_epochs", (3,), "schedule='constant' has no drops; take 'steps', or leave it ()"),
  ("optimizer.drop_epochs", ("3",), "give epochs, such as (20, 30)"),
  ("optimizer.drop_epochs", (float("nan"),), "give a finite number"),
  ("alpha.params", (3,), "give names of layers"),
  ("method", "sosoleto", "choose one of soseleto, source_only, target_only, finetune, joint, noise_layer"),
  ("method", "sosoleto", "did you mean 'soseleto'?"),
  ("method", "no.such.module:make_method", "No module named 'no'"),
  ("method", "soseleto_jax.methods.plain:no_such", "no attribute 'no_such'"),
  ("on_nonfinite", "ignore", "choose one of stop, skip"),
  ("alpha.contraction", "reverse", "choose one of auto, jvp, vjp, vmap_grad"),
  ("alpha.target_loss", "hinge", "choose one of cross_entropy, margin"),
  ("alpha.direction", "orthonormal", "choose one of gradient, orthogonal"),
  ("optimizer.name", "lamb", "choose one of sgd, adam"),
  ("optimizer.schedule", "step", "choose one of constant, cosine, steps, inverse"),
  ("batch_size", 0, "at least 1"),
  ("target_batch_size", -3, "at least 1"),
  ("num_epochs", 0, "at least 1"),
  ("eval_batch_size", 0, "at least 1"),
  ("max_to_keep", 0, "at least 1"),
  ("eval_every_epochs", 0.0, "above 0"),
  ("checkpoint_every_epochs", -1.0, "above 0"),
  ("finetune_epochs", 0.0, "above 0"),
  ("finetune_learning_rate", 0.0, "above 0"),
  ("steps_per_call", -1, "give 0 to choose by device, or a number"),
  ("target_weight", 0.0, "above 0"),
  ("domain_weight", -0.1, "give 0 for no such term, or more"),
  ("seed", -1, "from 0 to 2**32 - 1"),
  ("seed", 2**32, "from 0 to 2**32 - 1"),
  ("alpha.init", 1.5, "weights lie in [0, 1]"),
  ("alpha.init", -0.1, "weights lie in [0, 1]"),
  ("alpha.step_size", -0.1, "give 0 or more"),
  ("alpha.lookahead", -0.1, "give a number above 0, or none"),
  ("alpha.burn_in_epochs", -1.0, "give 0 or more"),
  ("alpha.burn_in_weight", 1.5, "give [0, 1]"),
  ("alpha.gain", 0.0, "give a number above 0"),
  ("alpha.burn_in_epochs", 20.0, "less than num_epochs (20)"),
  ("optimizer.learning_rate", 0.0, "above 0"),
  ("optimizer.momentum", 1.0, "[0, 1)"),
  ("optimizer.weight_decay", -1e-4, "give 0 or more"),
]


@pytest.mark.parametrize("field, value, cure", BAD)
def test_bad_values(field, value, cure):
  """The error names the field, its value and the cure."""
  with pytest.raises(ValueError) as raised:
    validate(config_with(**{field: value}))
  start, found = str(raised.value).split(": ", 1)
  assert start == f"config.{field}={value!r}"
  assert cure in found


def test_steps_need_the_epochs_of_their_drops():
  for drops in ((), (0,), (-1.0, 3)):
    fields = {"optimizer.schedule": "steps", "optimizer.drop_epochs": drops}
    with pytest.raises(ValueError, match=r"config.optimizer.drop_epochs=\(.*\): give epochs above 0"):
      validate(config_with(**fields))
  validate(config_with(**fields | {"optimizer.drop_epochs": (0.5, 3)}))


def test_one_bad_transform_of_several():
  with pytest.raises(ValueError, match="config.alpha.transforms='center': choose one of center_by_class, resid"):
    validate(config_with(**{"alpha.transforms": ("scale_by_std", "center")}))


def test_what_needs_shared_classes():
  validate(config_with(**{"alpha.target_params": "classifier"}))
  with pytest.raises(ValueError, match="config.alpha.target_params='classifier': only a shared classifier can"):
    validate(config_with(**{"alpha.target_params": "classifier", "data.shared_classes": False}))


def test_split_parameters_and_gradients_of_each_example():
  for contraction in ("auto", "jvp", "vjp"):
    validate(config_with(**{"shard_params": True, "alpha.contraction": contraction}))
  with pytest.raises(ValueError, match="config.alpha.contraction='vmap_grad': .* shard_params .* take 'auto'"):
    validate(config_with(**{"shard_params": True, "alpha.contraction": "vmap_grad"}))


@pytest.mark.parametrize(
  "path, name, message",
  [
    (["alpha"], "stepsize", r"config.alpha.stepsize is unknown; did you mean 'alpha.step_size'\?"),
    (["data", "source"], "noise_rat", r"config.data.source.noise_rat is unknown; .*'data.source.noise_rate'\?"),
    ([], "batchsize", r"config.batchsize is unknown; did you mean 'batch_size'\?"),
    ([], "zzzzzz", r"config.zzzzzz is unknown; a field of your own goes into config.user"),
  ],
)
def test_a_field_that_does_not_exist(path, name, message):
  """An update takes it silently."""
  config = block = default_config()
  for part in path:
    block = block[part]
  block.update({name: 1})
  with pytest.raises(ValueError, match=message):
    validate(config)


def test_blocks_that_are_open():
  """What others name: of a network, a method, and the user's own."""
  config = default_config()
  config.model.width, config.user.note = 3, "mine"
  validate(config)
  config.method, config.method_options.rate_factor = "noise_layer", 0.1
  validate(config)
  config.method_options.rate_facto = 0.1
  with pytest.raises(ValueError, match="config.method_options.rate_facto: method 'noise_layer' has .*'rate_factor'"):
    validate(config)
  validate(config, lambda setup, rate_facto, rate_factor: None)


def test_fields_as_they_were_called():
  """A run of before resumes, and its records count, where it computed what its config says today."""
  before = config_with(**{"alpha.transforms": ("center_by_class", "standardize")}).to_dict()
  del before["augment"], before["method_options"], before["user"]
  before["flip_source"] = True
  before["alpha"]["contraction"] = "jvp"
  now = config_with(**{"alpha.transforms": ("center_by_class", "scale_by_std"), "augment.source": ("flip",)})
  assert changed_fields(before, now.to_dict()) == []
  before["flip_source"] = False
  assert changed_fields(before, now.to_dict()) == ["augment.source (was [], now ['flip'])"]
  assert before["alpha"]["transforms"][1] == "standardize"


def test_a_field_that_is_missing():
  config = default_config()
  config.alpha = dict(init=0.5)
  with pytest.raises(ValueError, match=r"config.alpha.\w+ is missing; start from .*default_config"):
    validate(config)


def test_the_options_of_a_network_are_its_own():
  config = default_config()
  config.model = dict(name="resnet", width=8)
  validate(config)


# What follows the colon.


@pytest.mark.parametrize(
  "argument, expected",
  [
    (None, {}),
    ("", {}),
    ("noise=0.4", {"noise": 0.4}),
    ("small", {"small": True}),
    ("noise=1,small,epochs=3,kind=pair_flip", {"noise": 1.0, "small": True, "epochs": 3, "kind": "pair_flip"}),
    ("paper=false", {"paper": False}),
    ("paper=False,small=TRUE", {"paper": False, "small": True}),
    ("kind=a=b", {"kind": "a=b"}),
  ],
)
def test_arguments(argument, expected):
  defaults = dict(noise=0.3, small=False, paper=True, epochs=20, kind="symmetric")
  result = parse_argument(argument, **defaults)
  assert isinstance(result, ConfigDict)
  assert result.to_dict() == defaults | expected
  assert all(type(result[name]) is type(default) for name, default in defaults.items())


@pytest.mark.parametrize(
  "argument, message",
  [
    ("nois=0.4", r"'nois' is unknown; valid are noise, small, epochs; did you mean 'noise'\?"),
    ("qqq", r"'qqq' is unknown; valid are noise, small, epochs$"),
    ("noise=much", r"'noise=much': noise is a float, such as 0.3"),
    ("noise", r"'noise': noise is a float"),
    ("epochs=1.5", r"'epochs=1.5': epochs is a int, such as 20"),
    ("small=maybe", r"'small=maybe': small is a bool, such as False"),
    ("noise=0.4 small", r"noise is a float"),
  ],
)
def test_bad_arguments(argument, message):
  with pytest.raises(ValueError, match=message):
    parse_argument(argument, noise=0.3, small=False, epochs=20)


# What may change when a run resumes.


def test_no_field_has_changed_in_what_was_written():
  """Tuples come back as lists."""
  config = config_with(**{"alpha.transforms": ("scale_by_std",), "optimizer.drop_epochs": (1, 2)}).to_dict()
  assert changed_fields(json.loads(json.dumps(config)), config) == []
  assert changed_fields(config, config) == []


@pytest.mark.parametrize(
  "field, value, text",
  [
    ("seed", 3, "seed (was 0, now 3)"),
    ("method", "joint", "method (was 'soseleto', now 'joint')"),
    ("alpha.step_size", 0.5, "alpha.step_size (was 1.0, now 0.5)"),
    ("alpha.lookahead", 0.1, "alpha.lookahead (was None, now 0.1)"),
    ("alpha.transforms", ("scale_by_std",), "alpha.transforms (was [], now ['scale_by_std'])"),
    ("data.source.noise_rate", 0.4, "data.source.noise_rate (was 0.0, now 0.4)"),
  ],
)
def test_changed_fields(field, value, text):
  assert changed_fields(default_config().to_dict(), config_with(**{field: value}).to_dict()) == [text]


def test_a_config_older_than_a_field_has_its_default():
  old = default_config().to_dict()
  del old["alpha"]["direction"]
  assert changed_fields(old, default_config().to_dict()) == []
  changed = "alpha.direction (was 'gradient', now 'orthogonal')"
  assert changed_fields(old, config_with(**{"alpha.direction": "orthogonal"}).to_dict()) == [changed]


def test_changed_fields_are_sorted_and_may_be_missing_on_either_side():
  old = {"b": 1, "model": {"name": "mlp", "hidden": [4]}, "same": 0}
  new = {"a": 2, "b": 2, "model": {"name": "lenet"}, "same": 0}
  assert changed_fields(old, new) == [
    "a (was None, now 2)",
    "b (was 1, now 2)",
    "model.hidden (was [4], now None)",
    "model.name (was 'mlp', now 'lenet')",
  ]


FREE = ("name", "steps_per_call", "max_to_keep", "checkpoint_every_epochs", "eval_every_epochs", "eval_batch_size",
        "shard_params", "on_nonfinite", "data.data_dir", "data.feed")  # fmt: skip


def test_only_these_fields_are_free():
  """Every other one counts as a change."""

  def flat(tree, prefix=""):
    for key, value in tree.items():
      yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]

  config = default_config().to_dict()
  free = []
  for field in flat(config):
    other = json.loads(json.dumps(config))
    *path, last = field.split(".")
    block = other
    for name in path:
      block = block[name]
    block[last] = "something else"
    if not changed_fields(config, other):
      free.append(field)
  assert sorted(free) == sorted(
    [*FREE, "optimizer.drop_epochs"]
  )  # which a constant rate ignored, before it was refused
  config["optimizer"] |= {"schedule": "steps", "drop_epochs": [1]}
  assert changed_fields(config, config | {"optimizer": config["optimizer"] | {"drop_epochs": [2]}})
