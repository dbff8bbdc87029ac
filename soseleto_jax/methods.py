"""The methods that a config can name, as phases of training: a step, the sets it draws from, and its optimizer."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from soseleto_jax import directions, optimizers, transforms
from soseleto_jax.alignment import LossFn
from soseleto_jax.data.task import Task
from soseleto_jax.losses import classification_loss, cross_entropy, margin
from soseleto_jax.train_step import Step, make_joint_step, make_plain_step, make_train_step

TARGET_LOSSES = {"cross_entropy": cross_entropy, "margin": margin}
DIRECTIONS = {"gradient": None, "orthogonal": directions.orthogonal}


@dataclasses.dataclass(frozen=True, eq=False)
class Phase:
  """A stretch of training with one step function.

  Attributes:
    num_steps: its length.
    sets: "source" and "target", those that a batch is drawn from at each step, in the order of the step's arguments.
    losses: of each of the sets, as the step has them.
    step: `(state, *batches) -> (state, metrics)`.
    optimizer: starts afresh with the phase.
    extra: of the first phase: parameters that are trained beside the network's, at their start. The state's `params`
      are then {"network": ..., "extra": ...}, for losses and optimizers too. None: the network's alone.
    predict: of the first phase: `(network's params, model_state, x) -> logits [B, K]`, by which the whole run is
      evaluated, x normalised as the target is. None: the network's own classifier of the target.
  """

  num_steps: int
  sets: tuple[str, ...]
  losses: tuple[LossFn, ...]
  step: Step
  optimizer: optax.GradientTransformation
  extra: Any = None
  predict: Callable[[Any, Any, jax.Array], jax.Array] | None = None


MakePhases = Callable[..., tuple[Phase, ...]]  # called as `make_phases` is


def alpha_init(config: ConfigDict) -> float:
  """Returns the weights that a method starts from: those of the config for SOSELETO, 1 for the others."""
  return config.alpha.init if config.method == "soseleto" else 1.0


def make_phases(
    config: ConfigDict,
    model: nn.Module,
    params: Any,
    task: Task,
    steps_per_epoch: int,
    *,
    mutable: bool,
    axis_name: str | None,
) -> tuple[Phase, ...]:
  """Builds the phases of `config.method`.

  - "soseleto": the paper's step.
  - "source_only": plain training on the source, every weight 1.
  - "target_only": plain training on the target, for as many steps.
  - "finetune": "source_only", then `finetune_epochs` more of "target_only".
  - "joint": the source's loss, every weight 1, and `target_weight` times the target's.

  Args:
    config: the experiment.
    model: from `get_model`, two-headed unless the task shares its classes.
    params: the network's parameters, or their shapes.
    task: names the number of classes.
    steps_per_epoch: steps of one pass over the source.
    mutable: whether the model carries state.
    axis_name: the axis that the steps are mapped over, or None.
  """
  heads = {"source": None, "target": None} if task.shared_classes else {"source": "source", "target": "target"}
  losses = {side: classification_loss(model, head=head, mutable=mutable) for side, head in heads.items()}
  num_steps = config.num_epochs * steps_per_epoch
  schedule = optimizers.make_schedule(config.optimizer, steps_per_epoch, num_steps)
  optimizer = optimizers.make_optimizer(config.optimizer, schedule)

  options = dict(skip_nonfinite=config.on_nonfinite == "skip", axis_name=axis_name)

  def plain(side, steps, optimizer):
    step = make_plain_step(losses[side], optimizer, **options)
    return Phase(steps, (side,), (losses[side],), step, optimizer)

  if config.method == "source_only":
    return (plain("source", num_steps, optimizer),)
  if config.method == "target_only":
    return (plain("target", num_steps, optimizer),)
  if config.method == "finetune":
    last = optimizers.make_optimizer(config.optimizer, optax.constant_schedule(config.finetune_learning_rate))
    finetune_steps = round(config.finetune_epochs * steps_per_epoch)
    return plain("source", num_steps, optimizer), plain("target", finetune_steps, last)

  steering = losses["target"]
  if config.method == "joint":
    step = make_joint_step(losses["source"], steering, optimizer, target_weight=config.target_weight, **options)
  else:
    steering = classification_loss(
        model, loss=TARGET_LOSSES[config.alpha.target_loss], head=heads["target"], mutable=mutable
    )
    step = make_train_step(
        losses["source"],
        steering,
        optimizer,
        alpha_step_size=lambda step: config.alpha.step_size * schedule(step) / config.optimizer.learning_rate,
        target_params=_target_params(config, task),
        target_weight=config.target_weight,
        target_params_loss=None if config.alpha.target_loss == "cross_entropy" else losses["target"],
        alignment_params=_alignment_params(config.alpha.params, params, task.shared_classes),
        alignment_direction=DIRECTIONS[config.alpha.direction],
        alignment_transform=[_transform(name, task) for name in config.alpha.transforms],
        contraction=config.alpha.contraction,
        microbatch_size=config.alpha.microbatch_size,
        alpha_first=config.alpha.first,
        burn_in=round(config.alpha.burn_in_epochs * steps_per_epoch),
        lookahead=config.alpha.lookahead,
        **options,
    )
  return (Phase(num_steps, ("source", "target"), (losses["source"], steering), step, optimizer),)


def _target_params(config, task):
  everything = config.alpha.target_params == "all"
  if not task.shared_classes:
    return {"representation": everything, "source_head": False, "target_head": True}
  if config.alpha.target_params == "none":
    return None
  return {"representation": everything, "classifier": True}


def _alignment_params(names, params, shared_classes):
  """Marks the leaves that have one of the names in their path; None, for all, where there are no names."""
  if not names:
    return None
  paths = jax.tree.map_with_path(lambda path, _: {key.key for key in path}, params)
  known = set().union(*jax.tree.leaves(paths, is_leaf=lambda leaf: isinstance(leaf, set)))
  for name in names:
    if name not in known:
      raise ValueError(f"config.alpha.params names {name!r}; the network's layers are {', '.join(sorted(known))}")
  marks = jax.tree.map(lambda path: not path.isdisjoint(names), paths, is_leaf=lambda leaf: isinstance(leaf, set))
  if not shared_classes and not any(jax.tree.leaves(marks["representation"])):
    raise ValueError(
        f"config.alpha.params={tuple(names)} names no layer that source and target share, and every alignment would be "
        "0; name layers of 'representation', or leave it ()"
    )
  return marks


def _transform(name, task):
  if name == "center_by_class":
    return transforms.center_by_class(task.num_source_classes)
  return {"residual_normalize": transforms.residual_normalize, "standardize": transforms.standardize}[name]()
