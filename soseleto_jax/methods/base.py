"""What a method of training is: phases, each with a step, made for a network and its data."""

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from soseleto_jax.core.losses import LossFn
from soseleto_jax.core.step import Step
from soseleto_jax.core.suggest import did_you_mean
from soseleto_jax.data.task import Task
from soseleto_jax.feed.preparation import Preparation
from soseleto_jax.methods import optimizers
from soseleto_jax.models.losses import Loss, classification_loss, cross_entropy
from soseleto_jax.models.network import Network

# Where each name of config.method is found; what is not named here is an import path of one's own.
METHODS = {
  "soseleto": "soseleto_jax.methods.soseleto:make_method",
  "source_only": "soseleto_jax.methods.plain:source_only",
  "target_only": "soseleto_jax.methods.plain:target_only",
  "finetune": "soseleto_jax.methods.plain:finetune",
  "joint": "soseleto_jax.methods.plain:joint",
  "noise_layer": "soseleto_jax.methods.noise_layer:make_method",
  "noise_types": "soseleto_jax.methods.noise_types:make_method",
  "learning_to_reweight": "soseleto_jax.methods.learning_to_reweight:make_method",
  "meta_weight_net": "soseleto_jax.methods.meta_weight_net:make_method",
  "matching_networks": "soseleto_jax.methods.matching_networks:make_method",
  "label_efficient": "soseleto_jax.methods.label_efficient:make_method",
}

Predict = Callable[[Any, Any, jax.Array], jax.Array]  # (params, model_state, x normalised) -> logits [B, K]


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
  """What a method is made for.

  Attributes:
    config: the experiment.
    network: with one classifier where the task shares its classes, else with two heads; whole where labels are no
      classes.
    task: the data.
    params: the network's parameters at the start.
    model_state: what else the network carries, or None.
    steps_per_epoch: steps of one pass over the source.
    axis_name: the axis that steps are mapped over, or None.
    given_optimizer: one that takes the place of the config's.
    preparations: of each side's pixels as the trainer feeds them, for methods that draw examples themselves.
    task_loss: of the network's outputs and the labels, which is descended and reported.
  """

  config: ConfigDict
  network: Network
  task: Task
  params: Any
  model_state: Any
  steps_per_epoch: int
  axis_name: str | None
  given_optimizer: optax.GradientTransformation | None = None
  preparations: Mapping[str, Preparation] = dataclasses.field(default_factory=dict)
  task_loss: Loss = cross_entropy

  @property
  def num_steps(self) -> int:
    """`config.num_steps`, or the steps of `config.num_epochs`."""
    return self.config.num_steps or self.config.num_epochs * self.steps_per_epoch

  def steps_of(self, epochs: float) -> int:
    """Steps of so many passes over the source."""
    return round(epochs * self.steps_per_epoch)

  def schedule(self, num_steps: int | None = None) -> optax.Schedule:
    """The learning rate λ_p of each step, by the config; of training that takes another number of steps, if given."""
    return optimizers.make_schedule(self.config.optimizer, self.steps_per_epoch, num_steps or self.num_steps)

  def optimizer(self, schedule: optax.Schedule | None = None) -> optax.GradientTransformation:
    """The optimizer of the network, at the config's schedule or another: by the config, unless one was given."""
    if self.given_optimizer is not None:
      return self.given_optimizer
    return optimizers.make_optimizer(self.config.optimizer, self.schedule() if schedule is None else schedule)

  def head(self, side: str) -> str | None:
    """The head of "source" or "target"; None for the classifier that they share."""
    return None if self.task.shared_classes else side

  def loss(self, side: str, loss: Loss | None = None) -> LossFn:
    """The `LossFn` of "source" or "target" by the network: of the task's loss, or another of outputs and labels."""
    return classification_loss(self.network, loss=loss or self.task_loss, head=self.head(side))

  def require(self, *, transfer: bool | None = None, stateless: bool = False, classes: bool = False) -> None:
    """Checks what a method cannot do without.

    Args:
      transfer: True for different classes in source and target, False for the same, None for either.
      stateless: a network that carries no state.
      classes: labels that are classes.

    Raises:
      ValueError: where that is not so.
    """
    if classes and not self.task.has_classes:
      raise ValueError(
        f"config.method={self.config.method!r} goes by classes, and the labels of {self.task.name!r} are none; take "
        "'soseleto', 'source_only', 'target_only', 'finetune', 'joint', 'learning_to_reweight' or 'meta_weight_net'"
      )
    if transfer is not None and self.task.shared_classes == transfer:
      use = "transfer, with different classes" if transfer else "noisy labels, with the same classes"
      raise ValueError(
        f"config.data.shared_classes={self.task.shared_classes}: method {self.config.method!r} is for {use} in source "
        "and target; take 'soseleto', 'finetune', 'joint' or 'target_only', which are for both"
      )
    if stateless and self.model_state is not None:
      raise ValueError(
        f"config.model.name={self.config.model.name!r} carries state (BatchNorm), which method {self.config.method!r} "
        "has no room for; take a network without, such as 'cifar_quick'"
      )


@dataclasses.dataclass(frozen=True, eq=False)
class Phase:
  """A stretch of training with one step.

  Attributes:
    num_steps: its length.
    step: says which sets a batch is drawn from, and its optimizer starts afresh with the phase.
  """

  num_steps: int
  step: Step


def keep_params(params: Any) -> Any:
  """The `init` of a method that trains the network's parameters and no others."""
  return params


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
  """A way of training.

  Attributes:
    phases: in their order.
    init: `params -> params`, from the network's to what the steps train, such as `beside_network` makes.
    predict: `(params, model_state, x) -> logits [B, K]`, or other outputs, by which the run is evaluated, with
      `params` as `init` returns them and x normalised as the target is. None: the network's own.
    uses_alpha: whether the steps learn `alpha`, so that a run reports what it says.
    alpha_init: the weight that each source example starts from, in [0, 1].
    predict_source: as `predict`, `logits [B, K]` of the source's classes, by which its labels are judged in the end.
      None: where classes are shared `predict`, else the network's own head, if `init` keeps its parameters.
  """

  phases: tuple[Phase, ...]
  init: Callable[[Any], Any] = keep_params
  predict: Predict | None = None
  uses_alpha: bool = False
  alpha_init: float = 1.0
  predict_source: Predict | None = None

  @property
  def num_steps(self) -> int:
    """Steps of all phases."""
    return sum(phase.num_steps for phase in self.phases)


MakeMethod = Callable[..., Method]  # (setup, **config.method_options) -> Method


def beside_network(extra: Any) -> Callable[[Any], Any]:
  """Returns an `init` for parameters that are trained beside the network's: {"network": ..., "extra": extra}."""
  return lambda params: {"network": params, "extra": extra}


def loss_of_network(setup: Setup, side: str) -> LossFn:
  """`setup.loss(side)`, where `params` are those of `beside_network`."""
  loss = setup.loss(side)

  def of_network(params, *rest):
    return loss(params["network"], *rest)

  return of_network


@dataclasses.dataclass(frozen=True, eq=False)
class PredictOfNetwork:
  """A network's own prediction, where `params` are those of `beside_network`."""

  network: Network
  head: str | None

  def __call__(self, params: Any, model_state: Any, x: jax.Array) -> jax.Array:
    """Returns the logits float32 `[B, K]`, in evaluation mode."""
    return self.network.apply(params["network"], model_state, x, head=self.head)[0]


def predict_of_network(setup: Setup) -> Predict:
  """The prediction of the setup's network for the target, where `params` are those of `beside_network`."""
  return PredictOfNetwork(setup.network, setup.head("target"))


def find_method(name: str) -> MakeMethod:
  """Returns the maker of a method.

  Args:
    name: one of `METHODS`, or an import path "my_package.my_module:make_method".

  Raises:
    ValueError: there is none of this name.
  """
  path = METHODS.get(name, name)
  module, _, attribute = path.partition(":")
  if not (module and attribute):
    raise ValueError(
      f"config.method={name!r}: choose one of {', '.join(METHODS)}, or give the import path of your own, "
      f"'my_package.my_module:make_method'{did_you_mean(name, METHODS)}"
    )
  try:
    return getattr(importlib.import_module(module), attribute)
  except (ImportError, AttributeError) as error:
    raise ValueError(f"config.method={name!r}: {error}") from error


def version_of(name: str) -> int:
  """Returns `VERSION` of a method's module, which a change of what the method computes raises; 1 where it has none."""
  try:
    module = importlib.import_module(METHODS.get(name, name).partition(":")[0])
  except (ImportError, ValueError):
    return 1
  return getattr(module, "VERSION", 1)


def check_options(name: str, make_method: MakeMethod, options: Mapping[str, Any]) -> None:
  """Raises ValueError for options of a method that it does not have."""
  parameters = list(inspect.signature(make_method).parameters.values())[1:]
  if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
    return
  known = [parameter.name for parameter in parameters]
  for option in options:
    if option not in known:
      raise ValueError(
        f"config.method_options.{option}: method {name!r} has {', '.join(known) or 'no options'}"
        f"{did_you_mean(option, known)}"
      )


def options_of(maker: MakeMethod) -> dict[str, Any]:
  """Returns the options of a method that have plain values by default, with these."""
  parameters = list(inspect.signature(maker).parameters.values())[1:]
  return {p.name: p.default for p in parameters if isinstance(p.default, (bool, int, float, str))}


def make_method(setup: Setup, given: MakeMethod | None = None) -> Method:
  """Makes the method of `config.method`, or a given one, with `config.method_options`."""
  maker = find_method(setup.config.method) if given is None else given
  options = setup.config.method_options.to_dict()
  check_options(setup.config.method, maker, options)
  return functools.partial(maker, **options)(setup)
