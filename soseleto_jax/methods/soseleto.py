"""SOSELETO as a config describes it."""

from collections.abc import Mapping
from typing import Any

import jax
import optax

from soseleto_jax.core import alignment_rules
from soseleto_jax.core.alignment import Alignment
from soseleto_jax.core.source_weights import SourceWeights, burn_in, sharpened
from soseleto_jax.core.target_descent import TargetDescent
from soseleto_jax.core.train_step import make_train_step
from soseleto_jax.data.task import Task
from soseleto_jax.methods.base import Method, Phase, Setup
from soseleto_jax.models.losses import margin

VERSION = 1  # raised where a change lets it compute something else: records of experiments count by it

TARGET_LOSSES = {"cross_entropy": None, "margin": margin}  # None: the loss that is descended, whichever it is
DIRECTIONS = {"gradient": None, "orthogonal": alignment_rules.orthogonal}
TRANSFORMS = ("center_by_class", "residual_normalize", "scale_by_std", "add_agreement")


def make_method(setup: Setup) -> Method:
  """Makes the paper's method, with the settings of `config.alpha`.

  The step of `alpha` and `lookahead` follow the schedule of λ_p. In transfer the target's own classifier descends the
  target loss.
  """
  alpha, schedule, rate = setup.config.alpha, setup.schedule(), setup.config.optimizer.learning_rate
  _check_classes(setup)
  step = make_train_step(
    setup.loss("source"),
    setup.loss("target", TARGET_LOSSES[alpha.target_loss]),
    setup.optimizer(),
    alpha_step_size=_following(schedule, alpha.step_size, rate),
    alignment=Alignment(
      params=alignment_params(alpha.params, setup.params, setup.task.shared_classes),
      direction=DIRECTIONS[alpha.direction],
      transforms=tuple(_transform(name, setup.task) for name in alpha.transforms),
      contraction=alpha.contraction,
      microbatch_size=alpha.microbatch_size,
    ),
    target_descent=_target_descent(setup),
    source_weights=_source_weights(setup),
    alpha_first=alpha.first,
    lookahead=_following(schedule, alpha.lookahead, rate) if alpha.lookahead else None,
    alpha_every=alpha.every,
    alpha_until=None if alpha.until_epochs is None else max(1, setup.steps_of(alpha.until_epochs)),
    axis_name=setup.axis_name,
  )
  return Method((Phase(setup.num_steps, step),), uses_alpha=True, alpha_init=alpha.init)


def _check_classes(setup: Setup) -> None:
  """Raises ValueError for settings that go by classes where labels are none."""
  if setup.task.has_classes:
    return
  for field, value in (("target_loss", "margin"), ("transforms", "center_by_class")):
    if value in (chosen := setup.config.alpha[field]):
      raise ValueError(
        f"config.alpha.{field}={chosen!r}: {value!r} goes by classes, and the labels of {setup.task.name!r} are none; "
        "leave it out"
      )


def _following(schedule: optax.Schedule, value: float, learning_rate: float) -> optax.Schedule:
  return lambda step: value * schedule(step) / learning_rate


def _source_weights(setup: Setup) -> SourceWeights | None:
  alpha = setup.config.alpha
  weights = None if alpha.gain == 1 else sharpened(alpha.gain)
  if not alpha.burn_in_epochs:
    return weights
  return burn_in(setup.steps_of(alpha.burn_in_epochs), alpha.burn_in_weight, weights)


def _target_descent(setup: Setup) -> TargetDescent | None:
  """Which parameters descend the target's own loss, whatever loss steers."""
  chosen, shared = setup.config.alpha.target_params, setup.task.shared_classes
  if shared and chosen == "none":
    return None
  marks: Any = _marks(chosen, setup.params, shared)
  loss = None if setup.config.alpha.target_loss == "cross_entropy" else setup.loss("target")
  return TargetDescent(marks, loss, setup.config.target_weight)


def _marks(chosen: str, params: Any, shared: bool) -> Any:
  if has_heads(params):
    heads = {"classifier": True} if shared else {"source_head": False, "target_head": True}
    return {"representation": chosen == "all", **heads}
  if chosen == "all":
    return True
  raise ValueError(
    f"config.alpha.target_params={chosen!r}: a network that was given whole has no classifier that is known as such; "
    "take 'all'" + (" or 'none'" if shared else ", so that the target's part of it learns")
  )


def has_heads(params: Any) -> bool:
  """Whether parameters are those of a representation with classifiers of ours."""
  return isinstance(params, Mapping) and "representation" in params


def alignment_params(names: tuple[str, ...], params: Any, shared_classes: bool) -> Any:
  """Marks the leaves that have one of the names in their path; None, for all, where there are no names.

  Raises:
    ValueError: a name that no layer has, or, in transfer, none that source and target share.
  """
  if not names:
    return None
  paths = jax.tree.map_with_path(lambda path, _: {str(getattr(key, "key", key)) for key in path}, params)
  known = set().union(*jax.tree.leaves(paths, is_leaf=_is_set))
  for name in names:
    if name not in known:
      raise ValueError(f"config.alpha.params names {name!r}; the network's layers are {', '.join(sorted(known))}")
  marks = jax.tree.map(lambda path: not path.isdisjoint(names), paths, is_leaf=_is_set)
  if not shared_classes and has_heads(params) and not any(jax.tree.leaves(marks["representation"])):
    raise ValueError(
      f"config.alpha.params={tuple(names)} names no layer that source and target share, and every alignment would be "
      "0; name layers of 'representation', or leave it ()"
    )
  return marks


def _is_set(leaf):
  return isinstance(leaf, set)


def _transform(name: str, task: Task):
  if name == "center_by_class":
    return alignment_rules.center_by_class(task.num_source_classes)
  return {
    "residual_normalize": alignment_rules.residual_normalize,
    "scale_by_std": alignment_rules.scale_by_std,
    "add_agreement": alignment_rules.add_agreement,
  }[name]()
