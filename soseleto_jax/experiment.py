"""An experiment made ready to run: data on the devices, network, phases and compiled steps."""

import collections
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from soseleto_jax import metrics as metrics_lib
from soseleto_jax import nonfinite, processes, sharding
from soseleto_jax.data import lazy
from soseleto_jax.data.preparation import Preparation
from soseleto_jax.data.resident import Resident, put_set
from soseleto_jax.data.sampling import EpochSampler, TargetSampler
from soseleto_jax.data.streaming import Streaming
from soseleto_jax.data.task import Task
from soseleto_jax.evaluation import Evaluator
from soseleto_jax.losses import predict_fn
from soseleto_jax.methods import MakePhases, Phase, alpha_init, make_phases
from soseleto_jax.models import get_model
from soseleto_jax.train_state import TrainState, init_train_state

_AUGMENTATION = 2**31  # keeps the keys of augmentation apart from those of the step


class Experiment:
  """A config with its task, on a mesh of all devices.

  Attributes:
    num_steps: steps of all phases.
    steps_per_epoch: steps of one pass over the source.
  """

  def __init__(self, config: ConfigDict, task: Task, make_phases: MakePhases = make_phases):
    """Builds the network and puts the data on the devices; compiles nothing yet."""
    _check_fit(config, task)
    self.config, self.task = config, task
    self._mesh = sharding.make_mesh()
    self._samplers = {
        "source": EpochSampler(task.num_source, config.batch_size, config.seed),
        "target": TargetSampler(task.target["label"], config.target_batch_size, config.seed, config.target_balanced),
    }
    self._preparations = {
        "source": Preparation(task.source_normalization, config.flip_source),
        "target": Preparation(task.target_normalization),
    }
    self.steps_per_epoch = self._samplers["source"].steps_per_epoch

    classes = {"source": task.num_source_classes, "target": task.num_target_classes}
    model = get_model(num_classes=task.num_target_classes if task.shared_classes else classes, **config.model)
    image = jnp.zeros((1, *task.source["x"].shape[1:]), jnp.float32)
    self._variables = jax.jit(model.init)(jax.random.key(config.seed), image)
    self._phases = make_phases(
        config,
        model,
        self._variables["params"],
        task,
        self.steps_per_epoch,
        mutable=len(self._variables) > 1,
        axis_name=sharding.AXIS,
    )
    self.num_steps = sum(phase.num_steps for phase in self._phases)

    self._replicated = NamedSharding(self._mesh, P())
    self._evaluator = Evaluator(
        self._phases[0].predict or predict_fn(model, head=None if task.shared_classes else "target"),
        task.target_normalization,
        config.eval_batch_size,
        self._mesh,
    )
    held_out = {"validation": task.validation, "test": task.test}
    self._data = {name: put_set(examples, self._mesh) for name, examples in held_out.items() if examples is not None}
    self._feeds = {
        name: self._feed(name, max(phase.num_steps for phase in self._phases if name in phase.sets))
        for name in dict.fromkeys(name for phase in self._phases for name in phase.sets)
    }
    self._dispatch = functools.cache(self._compile)
    self._find_faulty = functools.cache(self._compile_find_faulty)
    self._fed = collections.deque(maxlen=2)  # a dispatch's metrics are read once the next one is on its way

  def initial_state(self) -> TrainState:
    """Returns the state at step 0, on one device."""
    params, extra = self._variables["params"], self._phases[0].extra
    model_state = {name: value for name, value in self._variables.items() if name != "params"}
    return init_train_state(
        params if extra is None else {"network": params, "extra": extra},
        self._phases[0].optimizer,
        self.task.num_source,
        alpha_init=alpha_init(self.config),
        model_state=model_state or None,
        seed=self.config.seed,
    )

  def place(self, state: TrainState) -> TrainState:
    """Puts a state on the mesh, `alpha` split over its devices."""
    return sharding.shard_train_state(state, self._mesh, self.config.shard_params)

  def state_like(self, step: int) -> TrainState:
    """Returns a state, placed, with the arrays of one after `step` steps: each phase has an optimizer of its own."""
    state = self.place(self.initial_state())
    phase, start = self._phase_at(max(step - 1, 0))
    return self._place_optimizer(phase.optimizer, state) if start else state

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
      state = self._place_optimizer(phase.optimizer, state)
    count = min(self._steps_per_call(), limit - step, start + phase.num_steps - step)
    batches = {name: self._feeds[name].batches(step - start, count) for name in phase.sets}
    self._fed.append((step, batches))
    state, metrics = self._dispatch(phase, count)(state, batches)
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
    """Finds the examples that make a step of the last two dispatches not finite, see `nonfinite.faulty_rows`.

    Args:
      state: placed by `place`, with finite parameters; not donated.
      step: the step's own number: that of the state before it, plus 1.

    Returns:
      Their indices in each set that the step draws from.
    """
    phase, _ = self._phase_at(step - 1)
    first, batches = next(fed for fed in reversed(self._fed) if fed[0] < step)
    found = jax.device_get(self._find_faulty(phase)(state, jax.tree.map(lambda part: part[step - 1 - first], batches)))
    return {name: np.unique(index[faulty]).tolist() for name, (index, faulty) in zip(phase.sets, found, strict=True)}

  def evaluate(self, state: TrainState) -> dict[str, float]:
    """Returns accuracy and loss on validation (if there is one) and test, and what `alpha` shows by now."""
    network = state.params if self._phases[0].extra is None else state.params["network"]
    record, params = {}, jax.device_put(network, self._replicated)
    for name in ("validation", "test"):
      if name in self._data:
        values = self._evaluator(params, state.model_state, self._data[name])
        record |= {f"{name}_{key}": value for key, value in values.items()}
    return record | self.alpha_statistics(self.alpha(state))

  def alpha(self, state: TrainState) -> np.ndarray:
    """Returns the weights on the host, float32 `[N]`; every process has to call it."""
    return processes.gather(state.alpha)[: self.task.num_source]

  def alpha_statistics(self, alpha: np.ndarray) -> dict[str, float]:
    """Returns how well `alpha` tells wrong labels from right ones; {} where they are not known, or all weights 1."""
    if self.config.method != "soseleto" or "true_label" not in self.task.source:
      return {}
    return metrics_lib.detection(alpha, self.task.source["label"] != self.task.source["true_label"])

  def _source_position(self, step):
    """Returns how many batches of the source the phase that read them last has had at a step; each starts anew."""
    start = position = 0
    for phase in self._phases:
      if "source" in phase.sets and start < step:
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
    return state.replace(opt_state=jax.jit(optimizer.init, out_shardings=shardings.opt_state)(state.params))

  def _steps_per_call(self):
    # Convolutions in a loop are slow on CPU, where a dispatch costs nothing beside them.
    return self.config.steps_per_call or (1 if jax.default_backend() == "cpu" else 20)

  def _phase_at(self, step) -> tuple[Phase, int]:
    start = 0
    for phase in self._phases:
      if step < start + phase.num_steps:
        return phase, start
      start += phase.num_steps
    raise ValueError(f"step {step} of {self.num_steps}: the run is over")

  def _prepare(self, phase, state, batches):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(state.seed), state.step), _AUGMENTATION)
    return [
        self._preparations[name](batches[name], jax.random.fold_in(key, number))
        for number, name in enumerate(phase.sets)
    ]

  def _compile_find_faulty(self, phase):
    def find(state, batches):
      batches = self._prepare(phase, state, batches)
      found = nonfinite.faulty_rows(phase.losses, state, *batches)
      return [(batch["index"], faulty) for batch, faulty in zip(batches, found, strict=True)]  # padding's index too

    return jax.jit(find, out_shardings=self._replicated)

  def _compile(self, phase, count):
    def gradients(state, batches):
      gradient, state, metrics = phase.step.gradients(state, *self._prepare(phase, state, batches))
      if "loss" in metrics:  # plain training; named after the set that it is on, as in the other steps
        metrics[f"{phase.sets[0]}_loss"] = metrics.pop("loss")
      return gradient, state, metrics

    step = dataclasses.replace(phase.step, gradients=gradients)
    one = sharding.map_over_devices(step, self._mesh, (P(sharding.AXIS),), self.config.shard_params)

    def several(state, batches):
      if count == 1:
        state, metrics = one(state, jax.tree.map(lambda part: part[0], batches))
        return state, jax.tree.map(lambda metric: metric[None], metrics)
      return jax.lax.scan(one, state, batches)

    return jax.jit(several, donate_argnums=0)


def _check_fit(config, task):
  if task.shared_classes != config.data.shared_classes:
    raise ValueError(
        f"config.data.shared_classes={config.data.shared_classes} but task.shared_classes={task.shared_classes}: "
        "give the config the task's"
    )
  if config.flip_source and len(task.source["x"].shape) != 4:
    raise ValueError(
        f"config.flip_source=True but source x has shape {task.source['x'].shape}; only images [N, H, W, C] can be "
        "mirrored, so leave it False"
    )
