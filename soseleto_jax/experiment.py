"""An experiment made ready to run: data on the devices, network, phases and compiled steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from soseleto_jax import metrics as metrics_lib
from soseleto_jax import processes, sharding
from soseleto_jax.data.resident import Assembly
from soseleto_jax.data.sampling import EpochSampler, TargetSampler
from soseleto_jax.data.task import Task
from soseleto_jax.evaluation import Evaluator
from soseleto_jax.losses import predict_fn
from soseleto_jax.methods import Phase, alpha_init, make_phases
from soseleto_jax.models import get_model
from soseleto_jax.train_state import TrainState, init_train_state

_AUGMENTATION = 2**31  # keeps the keys of augmentation apart from those of the step


class Experiment:
  """A config with its task, on a mesh of all devices.

  Attributes:
    num_steps: steps of all phases.
    steps_per_epoch: steps of one pass over the source.
  """

  def __init__(self, config: ConfigDict, task: Task):
    """Builds the network and puts the data on the devices; compiles nothing yet."""
    _check_fit(config, task)
    self.config, self.task = config, task
    self._mesh = sharding.make_mesh()
    self._samplers = {
        "source": EpochSampler(task.num_source, config.batch_size, config.seed),
        "target": TargetSampler(task.target["label"], config.target_batch_size, config.seed, config.target_balanced),
    }
    self._assemblies = {
        "source": Assembly(task.source_normalization, config.flip_source),
        "target": Assembly(task.target_normalization),
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
        predict_fn(model, head=None if task.shared_classes else "target"),
        task.target_normalization,
        config.eval_batch_size,
        self._mesh,
    )
    sets = {name: getattr(task, name) for name in ("source", "target", "validation", "test")}
    self._data = {
        name: self._put({"x": examples["x"], "label": examples["label"]})  # never true_label
        for name, examples in sets.items()
        if examples is not None
    }
    self._dispatch = functools.cache(self._compile)

  def initial_state(self) -> TrainState:
    """Returns the state at step 0, on one device."""
    params = self._variables["params"]
    model_state = {name: value for name, value in self._variables.items() if name != "params"}
    return init_train_state(
        params,
        self._phases[0].optimizer,
        self.task.num_source,
        alpha_init=alpha_init(self.config),
        model_state=model_state or None,
        seed=self.config.seed,
    )

  def place(self, state: TrainState) -> TrainState:
    """Puts a state on the mesh, `alpha` split over its devices."""
    return sharding.shard_train_state(state, self._mesh)

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
      state = state.replace(opt_state=jax.jit(phase.optimizer.init, out_shardings=self._replicated)(state.params))
    count = min(self._steps_per_call(), limit - step, start + phase.num_steps - step)
    data = {name: self._data[name] for name in phase.sets}
    state, metrics = self._dispatch(phase, count)(state, data, self._rows(phase, step - start, count))
    return state, count, metrics

  def evaluate(self, state: TrainState) -> dict[str, float]:
    """Returns accuracy and loss on validation (if there is one) and test, and what `alpha` shows by now."""
    record = {}
    for name in ("validation", "test"):
      if name in self._data:
        values = self._evaluator(state.params, state.model_state, self._data[name])
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

  def _put(self, tree):
    return processes.put(tree, self._replicated)

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

  def _rows(self, phase, step, count):
    """Index and mask `[K, B]` of each set for `count` steps from `step` of the phase, padded for the mesh."""
    rows = {}
    for name in phase.sets:
      batches = [self._samplers[name].batch(s) for s in range(step, step + count)]
      index, mask = (np.stack(parts) for parts in zip(*batches, strict=True))
      missing = -index.shape[1] % self._mesh.size
      rows[name] = tuple(np.pad(part, ((0, 0), (0, missing))) for part in (index, mask))
    return processes.put(rows, NamedSharding(self._mesh, P(None, sharding.AXIS)))

  def _compile(self, phase, count):
    def one(state, data, rows):
      key = jax.random.fold_in(jax.random.fold_in(jax.random.key(state.seed), state.step), _AUGMENTATION)
      batches = [
          self._assemblies[name](data[name], *rows[name], jax.random.fold_in(key, number))
          for number, name in enumerate(phase.sets)
      ]
      state, metrics = phase.step(state, *batches)
      if "loss" in metrics:  # plain training; named after the set that it is on, as in the other steps
        metrics[f"{phase.sets[0]}_loss"] = metrics.pop("loss")
      return state, metrics

    def several(state, data, rows):
      if count == 1:
        state, metrics = one(state, data, jax.tree.map(lambda row: row[0], rows))
        return state, jax.tree.map(lambda metric: metric[None], metrics)
      return jax.lax.scan(lambda state, row: one(state, data, row), state, rows)

    mapped = sharding.map_over_devices(several, self._mesh, (P(), P(None, sharding.AXIS)))
    return jax.jit(mapped, donate_argnums=0)


def _check_fit(config, task):
  if task.shared_classes != config.data.shared_classes:
    raise ValueError(
        f"config.data.shared_classes={config.data.shared_classes} but task.shared_classes={task.shared_classes}: "
        "give the config the task's"
    )
  if config.flip_source and task.source["x"].ndim != 4:
    raise ValueError(
        f"config.flip_source=True but source x has shape {task.source['x'].shape}; only images [N, H, W, C] can be "
        "mirrored, so leave it False"
    )
