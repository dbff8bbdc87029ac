"""The fields of an experiment's config, their defaults, and the checks before a run."""

import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from soseleto_jax import config_values
from soseleto_jax.core.contraction import CONTRACTIONS
from soseleto_jax.core.suggest import did_you_mean
from soseleto_jax.data.get_task import data_config
from soseleto_jax.methods import optimizers
from soseleto_jax.methods.base import MakeMethod, check_options, find_method
from soseleto_jax.methods.soseleto import DIRECTIONS, TARGET_LOSSES, TRANSFORMS

TARGET_PARAMS = ("none", "classifier", "all")
ON_NONFINITE = ("stop", "skip")

# What a run may change when it resumes: none of it touches the numbers that training computes.
_FREE_ON_RESUME = (
    "name", "steps_per_call", "max_to_keep", "checkpoint_every_epochs", "eval_every_epochs", "eval_batch_size",
    "shard_params", "on_nonfinite", "data.data_dir", "data.feed",
    "given.task",
)  # fmt: skip

# Blocks whose fields are others' to name: the network's, the method's, and the user's own.
_OPEN = ("model", "method_options", "task_options", "user")


def default_config() -> ConfigDict:
  """Returns every field with its default; an experiment's file starts from here."""
  return ConfigDict(
    dict(
      name="",  # heads the report
      seed=0,
      method="soseleto",  # soseleto_jax.methods.base.METHODS, or "my_package.my_module:make_method"
      method_options={},  # of the method, by name
      data=data_config(),
      task="",  # data of one's own in place of `data`: "my_package.my_data:make_task", (seed, **task_options) -> Task
      task_options={},
      loss="",  # soseleto_jax.models.losses.LOSSES, or "my_package.my_losses:huber"; "": cross_entropy, of classes
      model=dict(name="mlp", dtype="float32"),  # and the network's own options; or name="my_package.nets:Wide"
      augment=dict(source=(), target=()),  # names with strengths, such as ("flip", "crop=4"): docs/augmentation.md
      batch_size=256,  # B
      target_batch_size=32,  # T
      target_balanced=False,  # target batches drawn class by class
      target_weight=1.0,  # of the target's mean loss, beside 1 for the source's, where parameters descend both
      domain_weight=0.0,  # of the discrepancy of source and target features, beside these; 0: none
      num_epochs=20,  # passes over the source; the other methods take as many steps
      num_steps=0,  # in place of num_epochs, where passes are too long; 0: num_epochs
      pretrain_epochs=0.0,  # of plain training on the source alone, before any method; 0: none
      pretrain_learning_rate=1e-2,
      finetune_epochs=5.0,  # of "finetune": on the target, after num_epochs on the source
      finetune_learning_rate=1e-3,
      optimizer=dict(
        name="sgd",
        learning_rate=1e-2,  # λ_p
        momentum=0.9,
        weight_decay=0.0,
        schedule="constant",
        drop_epochs=(),
      ),
      alpha=dict(
        init=0.5,
        trial_epochs=0,  # of a trial that chooses init and burn_in_weight by how good the source is; 0: none
        step_size=1.0,  # s = λ_α λ_p at the first step; it follows the schedule of λ_p
        first=False,
        every=1,  # k: alpha learns at every k-th step; the others cost no inner product
        until_epochs=config_dict.placeholder(float),  # from then on alpha rests; none: it learns to the end
        burn_in_epochs=0.0,  # so long the source loss has one weight for all, while alpha already learns
        burn_in_weight=1.0,
        gain=1.0,  # the source loss has weights 1/2 + gain (alpha - 1/2), clipped to [0, 1]
        lookahead=config_dict.placeholder(float),  # at the first step; it follows the schedule of λ_p
        contraction="auto",  # CONTRACTIONS: "jvp", or "vjp" for a network that forward mode cannot pass
        microbatch_size=config_dict.placeholder(int),
        target_loss="cross_entropy",  # TARGET_LOSSES: whose gradient the source's are aligned with; the default: `loss`
        direction="gradient",  # DIRECTIONS: what is made of that gradient before the inner product
        params=(),  # names of layers that the inner product runs over; () is all
        transforms=(),  # TRANSFORMS, applied in turn
        target_params="none",  # TARGET_PARAMS: what also descends the target's cross-entropy
      ),
      eval_every_epochs=1.0,
      eval_batch_size=500,
      checkpoint_every_epochs=1.0,
      max_to_keep=2,
      shard_params=False,  # parameters and optimizer state split over the devices, for a network too large for one
      on_nonfinite="stop",  # ON_NONFINITE: what to do about a loss or gradient that is not finite
      steps_per_call=0,  # 0: 1 on CPU, 20 on GPU and TPU
      init_from="",  # the folder of another run, from whose network and weights this one starts
      user={},  # whatever a method, network or evaluator of your own wants to find here
    )
  )


def parse_argument(argument: str | None, **defaults: Any) -> ConfigDict:
  """Reads what follows the colon of `--config=FILE:name=value,switch`.

  Args:
    argument: the text, or None.
    **defaults: the names that the file knows, with their values; these also give the types. A bool may be named alone.

  Raises:
    ValueError: a name that the file does not know, or a value of another type.

  >>> dict(parse_argument("noise=0.4,small", noise=0.3, small=False, paper=False))
  {'noise': 0.4, 'paper': False, 'small': True}
  """
  values = dict(defaults)
  for part in filter(None, (argument or "").split(",")):
    name, _, text = part.partition("=")
    if name not in defaults:
      raise ValueError(
        f"config argument {name!r} is unknown; valid are {', '.join(defaults)}{did_you_mean(name, defaults)}"
      )
    kind = type(defaults[name])
    try:
      values[name] = {"": True, "true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError) as error:
      raise ValueError(f"config argument {part!r}: {name} is a {kind.__name__}, such as {defaults[name]}") from error
  return ConfigDict(values)


def validate(config: ConfigDict, method: MakeMethod | None = None) -> None:
  """Raises ValueError for a field that does not exist or is missing, and for a value that no run can use.

  What depends on the data is checked with the data, and the network's options with the network.

  Args:
    config: the experiment.
    method: one that takes the place of `config.method`, whose options are then its own.
  """
  _check_fields(config)
  config_values.check(_flat(config.to_dict()))
  check_options(config.method, method or find_method(config.method), config.method_options)
  _choice("alpha.target_loss", config.alpha.target_loss, TARGET_LOSSES)
  _choice("alpha.direction", config.alpha.direction, DIRECTIONS)
  _choice("alpha.target_params", config.alpha.target_params, TARGET_PARAMS)
  _choice("alpha.contraction", config.alpha.contraction, CONTRACTIONS)
  _choice("optimizer.name", config.optimizer.name, optimizers.OPTIMIZERS)
  _choice("optimizer.schedule", config.optimizer.schedule, optimizers.SCHEDULES)
  _choice("on_nonfinite", config.on_nonfinite, ON_NONFINITE)
  for name in config.alpha.transforms:
    _choice("alpha.transforms", name, TRANSFORMS)
  for field in ("batch_size", "target_batch_size", "num_epochs", "eval_batch_size", "max_to_keep"):
    _check(field, config[field], config[field] >= 1, "give at least 1")
  for field in (
    "eval_every_epochs",
    "checkpoint_every_epochs",
    "finetune_epochs",
    "finetune_learning_rate",
    "pretrain_learning_rate",
  ):
    _check(field, config[field], config[field] > 0, "give a number above 0")
  for field in ("num_steps", "pretrain_epochs"):
    _check(field, config[field], config[field] >= 0, "give 0 for none, or a number above 0")
  _check("steps_per_call", config.steps_per_call, config.steps_per_call >= 0, "give 0 to choose by device, or a number")
  _check("seed", config.seed, 0 <= config.seed < 2**32, "give a whole number from 0 to 2**32 - 1")
  _check("target_weight", config.target_weight, config.target_weight > 0, "give a number above 0")
  _check("domain_weight", config.domain_weight, config.domain_weight >= 0, "give 0 for no such term, or more")
  _check("alpha.init", config.alpha.init, 0 <= config.alpha.init <= 1, "weights lie in [0, 1]")
  _check("alpha.step_size", config.alpha.step_size, config.alpha.step_size >= 0, "give 0 or more")
  _check(
    "alpha.burn_in_epochs",
    config.alpha.burn_in_epochs,
    0 <= config.alpha.burn_in_epochs < config.num_epochs,
    f"give 0 or more, and less than num_epochs ({config.num_epochs}), or the weights never count",
  )
  _check("alpha.burn_in_weight", config.alpha.burn_in_weight, 0 <= config.alpha.burn_in_weight <= 1, "give [0, 1]")
  trial_epochs = config.alpha.trial_epochs
  _check("alpha.trial_epochs", trial_epochs, trial_epochs >= 0, "give 0 for none, or a number")
  _check("alpha.gain", config.alpha.gain, config.alpha.gain > 0, "give a number above 0; with 1 weights are alpha")
  _check("alpha.every", config.alpha.every, config.alpha.every >= 1, "give a number of steps, 1 for each step")
  until = config.alpha.until_epochs
  _check("alpha.until_epochs", until, until is None or until > 0, "give a number of epochs above 0, or none")
  lookahead = config.alpha.lookahead
  _check("alpha.lookahead", lookahead, lookahead is None or lookahead >= 0, "give a number above 0, or none")
  rate = config.optimizer.learning_rate
  _check("optimizer.learning_rate", rate, rate > 0, "give a number above 0")
  drops, schedule = config.optimizer.drop_epochs, config.optimizer.schedule
  if schedule == "steps":
    _check("optimizer.drop_epochs", drops, drops and min(drops) > 0, "give epochs above 0, after which the rate drops")
  else:
    _check(
      "optimizer.drop_epochs", drops, not drops, f"schedule={schedule!r} has no drops; take 'steps', or leave it ()"
    )
  _check("optimizer.momentum", config.optimizer.momentum, 0 <= config.optimizer.momentum < 1, "give [0, 1)")
  _check("optimizer.weight_decay", config.optimizer.weight_decay, config.optimizer.weight_decay >= 0, "give 0 or more")
  _check(
    "alpha.contraction",
    config.alpha.contraction,
    config.alpha.contraction != "vmap_grad" or not config.shard_params,
    "forms a gradient of all parameters for each example, which shard_params is to avoid; take 'auto'",
  )
  _check(
    "alpha.target_params",
    config.alpha.target_params,
    config.data.shared_classes or config.alpha.target_params != "classifier",
    "only a shared classifier can; the target's own classifier descends its loss anyway",
  )


def upgraded(fields: Mapping) -> dict[str, Any]:
  """Returns the fields of a config as they are named today; those of an older version are the same otherwise.

  This is the one place that knows what fields were called before, for the folders of older runs and for records.
  """
  today = json.loads(json.dumps(dict(fields)))  # a copy, with lists for tuples
  if today.pop("flip_source", False):
    today["augment"] = {"source": ["flip"], "target": []}
  alpha, optimizer = (today[block] if isinstance(today.get(block), dict) else {} for block in ("alpha", "optimizer"))
  if isinstance(alpha.get("transforms"), list):
    alpha["transforms"] = ["scale_by_std" if name == "standardize" else name for name in alpha["transforms"]]
  if alpha.get("contraction") == "jvp":  # what "auto" takes wherever it can be taken
    alpha["contraction"] = "auto"
  if optimizer.get("schedule") != "steps":
    optimizer.pop("drop_epochs", None)  # which has no meaning then, and was not refused
  return today


def changed_fields(old: Mapping, new: Mapping, *, one_phase: bool = False) -> list[str]:
  """Names the fields, with both values, in which a resumed run would compute something else.

  A config that is older than a field has its default, and fields may have the names of before.

  Args:
    old: the fields that a run was started with.
    new: what it would go on with.
    one_phase: whether its method has one phase alone. `num_epochs` may then grow, unless the learning rate follows it.
  """
  old, new = (_flat(upgraded(default_config().to_dict())) | _flat(upgraded(fields)) for fields in (old, new))
  changed = {field for field in old.keys() | new.keys() if old.get(field) != new.get(field)} - {*_FREE_ON_RESUME}
  epochs: list[Any] = [fields.get("num_epochs") for fields in (old, new)]
  more = all(isinstance(count, int) for count in epochs) and epochs[0] < epochs[1]
  follows = new.get("optimizer.schedule") == "cosine"
  if more and one_phase and not follows:
    changed.discard("num_epochs")
  why = {"num_epochs": "; it may not grow where optimizer.schedule='cosine'"} if more and follows else {}
  return [f"{f} (was {old.get(f)!r}, now {new.get(f)!r}{why.get(f, '')})" for f in sorted(changed)]


def _flat(tree, prefix=""):
  flat = {}
  for key, value in tree.items():
    flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
  return flat


def _check_fields(config):
  open_blocks = dict.fromkeys(_OPEN)
  given, known = (_flat({**tree.to_dict(), **open_blocks}) for tree in (config, default_config()))
  for field in given.keys() - known.keys():
    suggested = did_you_mean(field, known)
    own = "" if suggested else "; a field of your own goes into config.user, a method's into config.method_options"
    raise ValueError(f"config.{field} is unknown{suggested}{own}")
  for field in known.keys() - given.keys():
    raise ValueError(f"config.{field} is missing; start from soseleto_jax.config.default_config()")
  for field, default in known.items():
    if given[field] is None and default is not None:
      raise ValueError(f"config.{field}=None: give a value, such as {default!r}")


def _choice(field, value, choices):
  _check(field, value, value in choices, f"choose one of {', '.join(choices)}")


def _check(field, value, holds, cure):
  if not holds:
    raise ValueError(f"config.{field}={value!r}: {cure}")
