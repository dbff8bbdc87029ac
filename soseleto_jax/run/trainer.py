"""An experiment made ready to run: data on the devices, network, method and compiled steps."""

import dataclasses
import functools
import logging
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from soseleto_jax.core import arrays, nonfinite, sharding
from soseleto_jax.core.compiling import jit_once
from soseleto_jax.core.train_state import TrainState, init_train_state
from soseleto_jax.data import lazy
from soseleto_jax.data.task import Task
from soseleto_jax.feed.preparation import make_preparations
from soseleto_jax.feed.resident import Resident, put_set
from soseleto_jax.feed.sampling import EpochSampler, TargetSampler
from soseleto_jax.feed.streaming import Streaming
from soseleto_jax.methods.base import Phase, Setup, make_method
from soseleto_jax.methods.domain import with_domain_term
from soseleto_jax.models import make_network
from soseleto_jax.models.losses import predict_fn
from soseleto_jax.models.network import as_network
from soseleto_jax.models.pretrained import load_params, start_from
from soseleto_jax.report import source_weights
from soseleto_jax.run import task_fit
from soseleto_jax.run.evaluation import Evaluator
from soseleto_jax.run.given import Given
from soseleto_jax.run.init_from import start_from as start_from_run
from soseleto_jax.run.programs import make_dispatch, make_find_faulty, make_prepare

_LOGGER = logging.getLogger(__name__)
_MOST_STEPS_PER_CALL = 20


class Shared(NamedTuple):
  """What experiments on one network and seed have in common; nothing of the data.

  Attributes:
    setup: what their methods are made from.
    evaluator: of the network's own prediction; None where the method has one of its own.
  """

  setup: Setup
  evaluator: Evaluator | None


class Experiment:
  """A config with its task, on a mesh of all devices.

  Attributes:
    setup: what the method was made for.
    method: how it is trained.
    shared: what another experiment on the network can go on from.
    num_steps: steps of all phases.
    steps_per_epoch: steps of one pass over the source.
  """

  def __init__(
    self,
    config: ConfigDict,
    task: Task,
    given: Given | None = None,
    like: Shared | None = None,
    *,
    compiles_quickly: bool = False,
  ):
    """Builds the network and puts the data on the devices; compiles nothing of the steps yet.

    Args:
      config: the experiment.
      task: its data.
      given: what the caller gave in place of what the config names.
      like: of another experiment with the same network and seed, which is then not built, initialized and compiled
        for evaluation again.
      compiles_quickly: its steps are few, and may be slower where that compiles them sooner.
    """
    given = Given() if given is None else given
    task_fit.check(config, task)
    self.config, self.task, self._compiles_quickly = config, task, compiles_quickly
    self._evaluators = tuple(given.evaluators)
    self._mesh = sharding.make_mesh()
    self._replicated = NamedSharding(self._mesh, P())
    source = EpochSampler(task.num_source, config.batch_size, config.seed)
    target = TargetSampler(task.target["label"], config.target_batch_size, config.seed, config.target_balanced)
    self._samplers: dict[str, EpochSampler | TargetSampler] = {"source": source, "target": target}
    self._preparations = make_preparations(task, config.augment, given.augment)
    self.steps_per_epoch = source.steps_per_epoch
    self.setup = self._make_setup(given, like)
    self.method = with_domain_term(self.setup, make_method(self.setup, given.method))
    self.num_steps = self.method.num_steps
    if self.num_steps >= 2**31:
      raise ValueError(
        f"config.num_epochs={config.num_epochs}: {self.num_steps} steps; give so few that there are 2**31"
      )
    self._steps = {phase: self._careful(phase.step) for phase in self.method.phases}

    self._evaluator = self._make_evaluator(like)
    self.shared = Shared(self.setup, None if self.method.predict else self._evaluator)
    held_out = {"validation": task.validation, "test": task.test}
    self._held_out = {name: examples for name, examples in held_out.items() if examples is not None}
    self._data = {name: put_set(examples, self._mesh) for name, examples in self._held_out.items()}
    self._feeds = {
      name: self._feed(name, max(phase.num_steps for phase in self.method.phases if name in phase.step.sets))
      for name in dict.fromkeys(name for phase in self.method.phases for name in phase.step.sets)
    }
    self._dispatch = functools.cache(self._compile)
    self._find_faulty = functools.cache(self._compile_find_faulty)

  def _make_setup(self, given, like):
    config, task = self.config, self.task
    if like is not None:
      own = {"steps_per_epoch": self.steps_per_epoch, "preparations": self._preparations}
      return dataclasses.replace(like.setup, config=config, task=task, **own)
    sizes = {side: task_fit.head_size(task, side) for side in ("source", "target")}
    num_classes = sizes["target"] if task.shared_classes else sizes
    if given.network is None:
      network = make_network(config.model.to_dict(), num_classes, seed=config.seed, whole=not task.has_classes)
    else:
      network = as_network(given.network, num_classes if task.has_classes else None)
    x = task.source_normalization.apply(np.zeros((1, *task.source["x"].shape[1:]), task.source["x"].dtype))
    params, model_state = network.init(jax.random.key(config.seed), jnp.asarray(x))
    if given.params is not None:
      start = load_params(given.params) if isinstance(given.params, (str, os.PathLike)) else given.params
      params, model_state = start_from(start, params, model_state)
    return Setup(
      config,
      network,
      task,
      params,
      model_state,
      self.steps_per_epoch,
      sharding.AXIS,
      given.optimizer,
      self._preparations,
      task_fit.loss_of(config, task, given),
    )

  def _make_evaluator(self, like):
    if like is not None and like.evaluator is not None and self.method.predict is None:
      return like.evaluator
    return Evaluator(
      self.method.predict or predict_fn(self.setup.network, head=self.setup.head("target")),
      self.task.target_normalization,
      self.config.eval_batch_size,
      self._mesh,
      loss=self.setup.task_loss,
      has_classes=self.task.has_classes,
    )

  def _careful(self, step):
    """Returns the step as the config wants it about rows that are not finite."""
    if self.config.on_nonfinite == "stop":
      return step
    if not step.losses:
      _LOGGER.warning("the method's step names no losses: config.on_nonfinite='skip' cannot find rows at fault for it")
      return step
    return nonfinite.skip_nonfinite(step)

  def initial_state(self) -> TrainState:
    """Returns the state at step 0, on one device; see also `first_state`."""
    return init_train_state(
      self.method.init(self.setup.params),
      self.method.phases[0].step.optimizer,
      self.task.num_source,
      alpha_init=self.method.alpha_init,
      model_state=self.setup.model_state,
      seed=self.config.seed,
    )

  def first_state(self) -> TrainState:
    """Returns the state that a run starts with: `initial_state`, or what `config.init_from` holds."""
    state = self.initial_state()
    if not self.config.init_from:
      return state
    return start_from_run(self.config.init_from, state, self.method.phases[0].step.optimizer, self.task.num_source)

  def place(self, state: TrainState) -> TrainState:
    """Puts a state on the mesh, `alpha` split over its devices."""
    return sharding.shard_train_state(state, self._mesh, self.config.shard_params)

  def state_like(self, step: int) -> TrainState:
    """Returns a state, placed, with the arrays of one after `step` steps: each phase has an optimizer of its own."""
    state = self.place(self.initial_state())
    phase, start = self._phase_at(max(step - 1, 0))
    return self._place_optimizer(phase.step.optimizer, state) if start else state

  def advance(self, state: TrainState, step: int, limit: int) -> tuple[TrainState, int, dict[str, jax.Array]]:
    """Takes one or several steps in one dispatch, none past `limit` or the end of a phase.

    Args:
      state: placed by `place`; donated.
      step: its step.
      limit: a later step.

    Returns:
      The new state, how many steps were taken, K, and their metrics, arrays `[K]`, not waited for.
    """
    phase, start = self._phase_at(step)
    if step == start > 0:  # opt_state depends on params alone, so that a run resumed here repeats it
      state = self._place_optimizer(phase.step.optimizer, state)
    room = min(limit, start + phase.num_steps) - step
    count = self._steps_per_call if room >= self._steps_per_call else 1  # two programs at most are compiled
    batches = {name: self._feeds[name].batches(step - start, count) for name in phase.step.sets}
    own = self._steps[phase].at(step) if count == 1 else self._steps[phase]
    state, metrics = self._dispatch(phase, own, count)(state, batches)
    return state, count, metrics

  def feed_state(self) -> Any:
    """Returns how far the source was read, JSON-like: what `restore_feed` takes."""
    return self._feeds["source"].state() if "source" in self._feeds else None

  def restore_feed(self, state: Any, step: int) -> None:
    """Goes on reading the source from where `feed_state` was called, at a step.

    Raises:
      ValueError: the state belongs to another step.
    """
    if "source" in self._feeds:
      self._feeds["source"].restore(state, self._source_position(step))

  def faulty_examples(self, state: TrainState, step: int) -> dict[str, list[int]]:
    """Finds the examples that make a step not finite, see `nonfinite.faulty_rows`; reads its batches once more.

    Args:
      state: placed by `place`, with finite parameters; not donated.
      step: the step's own number: that of the state before it, plus 1.

    Returns:
      Their indices in each set that the step draws from.
    """
    phase, start = self._phase_at(step - 1)
    batches = {name: self._feeds[name].again(step - 1 - start) for name in phase.step.sets}
    found = jax.device_get(self._find_faulty(phase)(state, batches))
    pairs = zip(phase.step.sets, found, strict=False)
    return {name: np.unique(index[faulty]).tolist() for name, (index, faulty) in pairs}

  def evaluate(self, state: TrainState) -> dict[str, float]:
    """Returns loss and, of classes, accuracy on validation and test, where given, and what `alpha` shows by now."""
    record: dict[str, float] = {}
    params = jax.device_put(state.params, self._replicated)
    for name, data in self._data.items():
      values = self._evaluator(params, state.model_state, data)
      record |= {f"{name}_{key}": value for key, value in values.items()}
    predict = functools.partial(self._evaluator.predict, params, state.model_state)
    for evaluate in self._evaluators:
      record |= {name: float(value) for name, value in evaluate(predict, self._held_out).items()}
    return record | self.alpha_statistics(self.alpha(state))

  def alpha(self, state: TrainState) -> np.ndarray:
    """Returns the weights on the host, float32 `[N]`; every process has to call it."""
    return arrays.gather(state.alpha)[: self.task.num_source]

  def alpha_statistics(self, alpha: np.ndarray) -> dict[str, float]:
    """Returns how well `alpha` tells wrong labels from right ones; {} where that is not known or not learned."""
    wrong = self.task.wrong if self.method.uses_alpha else None
    return {} if wrong is None else source_weights.detection(alpha, wrong)

  def _source_position(self, step):
    """Returns how many batches of the source the phase that read them last has had at a step; each starts anew."""
    start = position = 0
    for phase in self.method.phases:
      if "source" in phase.step.sets and start < step:
        position = min(step - start, phase.num_steps)
      start += phase.num_steps
    return position

  def _feed(self, name, num_steps):
    examples, sampler = getattr(self.task, name), self._samplers[name]
    if name == "source" and lazy.streams(examples["x"], self.config.data.feed, jax.process_count()):
      return Streaming(examples, sampler, num_steps, self._mesh)
    return Resident(examples, sampler, self._mesh)

  def _place_optimizer(self, optimizer, state):
    """Returns the state with the optimizer at its start."""
    abstract = state.replace(opt_state=jax.eval_shape(optimizer.init, state.params))
    shardings = sharding.state_shardings(abstract, self._mesh, self.config.shard_params)
    return state.replace(opt_state=jit_once(optimizer.init, out_shardings=shardings.opt_state)(state.params))

  @functools.cached_property
  def _steps_per_call(self):
    """How many steps a dispatch takes where there is room for them; else it takes one."""
    if self.config.steps_per_call:
      return self.config.steps_per_call
    if jax.default_backend() == "cpu":  # convolutions in a loop are slow there, and a dispatch costs next to nothing
      return 1
    stretch = min(self.interval(self.config.eval_every_epochs), self.interval(self.config.checkpoint_every_epochs))
    least = _MOST_STEPS_PER_CALL // 2
    even = [count for count in range(_MOST_STEPS_PER_CALL, least, -1) if stretch % count == 0]
    return even[0] if even else min(_MOST_STEPS_PER_CALL, stretch)

  def interval(self, epochs: float) -> int:
    """Returns the steps of so many passes over the source, at least one; infinity is the whole run."""
    return max(1, round(min(epochs * self.steps_per_epoch, self.num_steps)))

  def _phase_at(self, step) -> tuple[Phase, int]:
    start = 0
    for phase in self.method.phases:
      if step < start + phase.num_steps:
        return phase, start
      start += phase.num_steps
    raise ValueError(f"step {step} of {self.num_steps}: the run is over")

  def _compile_find_faulty(self, phase):
    return make_find_faulty(phase.step, make_prepare(self._preparations, phase.step.sets), self._mesh)

  def _compile(self, phase, step, count):
    prepare = make_prepare(self._preparations, phase.step.sets)
    return make_dispatch(step, prepare, self._mesh, count, self.config.shard_params, self._compiles_quickly)
