"""The loop around the train step: what happens between two dispatches."""

import dataclasses
import logging
import signal
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from soseleto_jax.core.alternating import LEARNS, OF_LEARNING
from soseleto_jax.core.sufficient_step import BOUND
from soseleto_jax.core.train_state import TrainState
from soseleto_jax.report import writers
from soseleto_jax.run import processes
from soseleto_jax.run.checkpoint import Checkpoints
from soseleto_jax.run.progress import Progress
from soseleto_jax.run.signals import Preempted, stop_requests
from soseleto_jax.run.trainer import Experiment

_LOGGER = logging.getLogger(__name__)
_MOST_LISTED = 20
_SOUND = ((BOUND, np.inf),)  # of metrics: not finite, and no fault


@dataclasses.dataclass
class Window:
  """What goes with the state of a step: the records so far, and the sums of the steps' metrics since the last of them.

  Attributes:
    task: `fingerprint.of_task` of the run's data.
    identity: what else the run is known by, see `soseleto_jax.run.identity`.
    records: one dict for each evaluation, as metrics.jsonl has them.
    sums: of each metric since the last record.
    counts: of the steps in each of these sums.
    seconds: that the run took so far.
    best_step: of the record with the best validation accuracy.
    best_accuracy: that accuracy.
  """

  task: str
  identity: dict[str, Any] = dataclasses.field(default_factory=dict)
  records: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  sums: dict[str, float] = dataclasses.field(default_factory=dict)
  counts: dict[str, int] = dataclasses.field(default_factory=dict)
  seconds: float = 0.0
  best_step: int | None = None
  best_score: float = 0.0

  @classmethod
  def restored(cls, saved: dict[str, Any]) -> "Window":
    """Returns the window of a checkpoint; in older ones the best score was named as an accuracy."""
    former = {"best_score": saved["best_accuracy"]} if "best_accuracy" in saved else {}
    return cls(**{name: value for name, value in saved.items() if name != "best_accuracy"} | former)

  def add(self, metrics: dict[str, float]) -> None:
    """Takes in what is finite of a step's metrics."""
    for name, value in metrics.items():
      if np.isfinite(value):
        self.sums[name] = self.sums.get(name, 0.0) + value
        self.counts[name] = self.counts.get(name, 0) + 1

  def pop_means(self) -> dict[str, float]:
    """Returns the means, and starts anew."""
    means = {name: total / self.counts[name] for name, total in self.sums.items()}
    self.sums, self.counts = {}, {}
    return means

  def compare(self, step: int, record: dict[str, Any]) -> None:
    """Takes note of the step with the best validation score, the first of those that tie."""
    score = validation_score(record)
    if score is not None and (self.best_step is None or score > self.best_score):
      self.best_step, self.best_score = step, score


def validation_score(record: dict[str, Any]) -> float | None:
  """Returns how good a record is, more being better: the accuracy on validation, or minus the loss without classes."""
  if "validation_accuracy" in record:
    return record["validation_accuracy"]
  return -record["validation_loss"] if "validation_loss" in record else None


def train(
  experiment: Experiment,
  state: TrainState,
  window: Window,
  writer: writers.MetricWriter | None,
  checkpoints: Checkpoints,
  keep_folder: Callable[[], None] = lambda: None,
) -> TrainState:
  """Takes the steps that are left, and returns the last state.

  At each event the order is: evaluate, write the record, save.

  Args:
    experiment: what to train.
    state: where to start, as `experiment.place` places it; donated.
    window: what the steps before left; kept up to date.
    writer: of the records; None where another process has it.
    checkpoints: of the run.
    keep_folder: called before anything is written, to see that the run's folder is still there.

  Raises:
    FloatingPointError: a loss or gradient that is not finite, or a step whose every row is masked.
    KeyboardInterrupt, Preempted: asked to stop, after saving.
    OSError: a write failed.
  """
  return _Loop(experiment, state, window, writer, checkpoints, keep_folder).run()


class _Loop:
  def __init__(self, experiment, state, window, writer, checkpoints, keep_folder):
    self._keep_folder = keep_folder
    self._experiment, self._state, self._window = experiment, state, window
    self._writer, self._checkpoints = writer, checkpoints
    self._step, self._pending = int(state.step), None
    self._started = time.monotonic() - window.seconds
    self._vote = processes.Vote()

  def run(self):
    num_steps, step = self._experiment.num_steps, self._step
    with Progress(num_steps, step) as self._progress, stop_requests() as stops:
      while self._step < num_steps:
        evaluates, saves = self._advance()
        stop = self._vote(bool(stops))
        if not (evaluates or saves or stop):
          continue
        self._read_pending()
        self._keep_folder()
        if evaluates:
          self._evaluate()
        self._save()
        if stop or self._vote(bool(stops)):
          self._stop(stops)
    self._window.seconds = time.monotonic() - self._started
    return self._state

  def _advance(self):
    """Dispatches steps up to the next event, and reads what the dispatch before gave; returns which events are due."""
    config, num_steps = self._experiment.config, self._experiment.num_steps
    every = [self._experiment.interval(epochs) for epochs in (config.eval_every_epochs, config.checkpoint_every_epochs)]
    limit = min(*((self._step // steps + 1) * steps for steps in every), num_steps)
    first = self._step
    self._state, count, metrics = self._experiment.advance(self._state, first, limit)
    self._read_pending()
    self._pending, self._step = (first, count, metrics), first + count
    evaluates, saves = (self._step % steps == 0 for steps in every)
    return evaluates or self._step == num_steps, saves

  def _read_pending(self):
    """Takes in the metrics of a dispatch, which blocks until it is done."""
    if self._pending is None:
      return
    (first, count, metrics), self._pending = self._pending, None
    metrics = {name: np.asarray(values, np.float64) for name, values in jax.device_get(metrics).items()}
    for offset in range(count):
      step, values = first + offset + 1, {name: float(value[offset]) for name, value in metrics.items()}
      if not values.pop(LEARNS, 1):
        values = {name: value for name, value in values.items() if name not in OF_LEARNING or np.isfinite(value)}
      self._check(step, values)
      self._window.add(values)
      self._progress.advance(step, values)

  def _check(self, step, values):
    if values.get("valid_rows") == 0 and not values.get("skipped_rows"):
      raise FloatingPointError(
        f"step {step}: no row of its batch counts; all are masked, or have an index past the set"
      )
    if self._experiment.config.on_nonfinite == "stop":
      if bad := next((item for item in values.items() if not np.isfinite(item[1]) and item not in _SOUND), None):
        self._fail(step, *bad)
    elif values.get("skipped_rows") or values.get("skipped_step"):
      faulty = self._experiment.faulty_examples(self._state, step)
      what = "; its gradient is not finite, and the parameters stay" if values["skipped_step"] else ""
      _LOGGER.warning("step %d goes on without %s%s", step, _listed(faulty), what)

  def _fail(self, step, name, value):
    self._checkpoints.wait()
    state, kept = self._experiment.place(self._experiment.initial_state()), "no checkpoint was saved yet"
    if self._checkpoints.latest_step is not None:
      state, _ = self._checkpoints.restore(self._experiment.state_like)
      kept = f"the checkpoint of step {self._checkpoints.latest_step} in {self._checkpoints.directory} is kept"
    # The parameters of the step are gone, and may not have been finite; those of a while ago tell bad examples too.
    faulty = self._experiment.faulty_examples(state, step)
    cure = "No single example is at fault: try a smaller learning rate."
    if any(faulty.values()):
      cure = (
        f"At fault: {_listed(faulty)}, whose loss or gradient is not finite. Mend or leave them out, or go on without "
        "such examples by --config.on_nonfinite=skip."
      )
    raise FloatingPointError(f"step {step}: {name} is {value}; {kept}. {cure}")

  def _evaluate(self):
    means = self._window.pop_means()
    if means.get("skipped_step") == 1:
      raise FloatingPointError(f"no gradient up to step {self._step} was finite. Try a smaller learning rate.")
    epoch = self._step / self._experiment.steps_per_epoch
    record = {"epoch": epoch} | means | self._experiment.evaluate(self._state)
    self._window.compare(self._step, record)
    record |= {"steps_per_second": self._progress.record(self._step, record)}
    self._window.records.append(writers.plain_record(self._step, record))
    if self._writer:
      self._writer.write(self._step, record)

  def _save(self):
    self._window.seconds = time.monotonic() - self._started
    loop = dataclasses.asdict(self._window) | {"feed": self._experiment.feed_state()}
    self._checkpoints.save(self._state, loop, self._window.best_step)

  def _stop(self, stops):
    self._checkpoints.wait()
    _LOGGER.info("stopped at step %d, which is saved; the same command goes on from there", self._step)
    if signal.SIGINT in stops[:1]:
      raise KeyboardInterrupt
    raise Preempted  # the signal may have been sent to another process


def _listed(faulty):
  """Names examples, such as "source examples 3, 17"."""
  parts = []
  for name, indices in faulty.items():
    if indices:
      more = f" and {len(indices) - _MOST_LISTED} more" if len(indices) > _MOST_LISTED else ""
      shown = ", ".join(map(str, indices[:_MOST_LISTED]))
      parts.append(f"{name} example{'s' * (len(indices) > 1)} {shown}{more}")
  return " and ".join(parts) or "no example"
