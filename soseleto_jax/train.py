"""Runs a whole experiment: the loop around the train step, and the folder that it leaves."""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import signal
import sys
import threading
import time
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from soseleto_jax import processes, report, writers
from soseleto_jax.checkpoint import Checkpoints
from soseleto_jax.config import changed_fields, validate
from soseleto_jax.data.task import Task, get_task
from soseleto_jax.experiment import Experiment
from soseleto_jax.progress import Progress
from soseleto_jax.train_state import TrainState

_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Result:
  """What a run leaves.

  Attributes:
    state: the final train state, as host arrays.
    alpha: float32 `[N]`, the final weights.
    records: the lines of metrics.jsonl, one dict for each evaluation.
    summary: the contents of summary.json.
    report: the path of report.html.
  """

  state: TrainState
  alpha: np.ndarray
  records: list[dict[str, Any]]
  summary: dict[str, Any]
  report: pathlib.Path


def train_and_evaluate(config: ConfigDict, workdir: str | pathlib.Path, task: Task | None = None) -> Result:
  """Trains as a config says and writes the run's folder; goes on from its newest checkpoint if there is one.

  At each event the order is: evaluate, write the record, save. SIGINT and SIGTERM save first, then stop.

  Args:
    config: the fields of `soseleto_jax.config.default_config`.
    workdir: the run's folder: config.json, metrics.jsonl, TensorBoard events, checkpoints, source_weights.csv,
      figures, report.html and summary.json.
    task: the data; None takes what `config.data` describes.

  Returns:
    A `Result`. A run that had finished before is not repeated.

  Raises:
    ValueError: a config or data that cannot be used, or a folder whose run had a config that computes something else.
    FloatingPointError: a loss or gradient that is not finite; the last checkpoint stays.
  """
  validate(config)
  workdir = pathlib.Path(workdir)
  task = get_task(config.data, config.seed) if task is None else task
  if jax.process_count() > 1:
    _check_processes(config, task)
  experiment = Experiment(config, task)
  with Checkpoints(workdir, max_to_keep=config.max_to_keep, num_source=experiment.task.num_source) as checkpoints:
    _write_config(workdir / "config.json", config, checkpoints)
    state, window = experiment.place(experiment.initial_state()), _Window()
    if checkpoints.latest_step is not None:
      state, saved = checkpoints.restore(state)
      window = _Window(**saved)
      done = "finished before" if checkpoints.latest_step == experiment.num_steps else "going on"
      _LOGGER.info("%s: %s, at step %d of %d", workdir, done, checkpoints.latest_step, experiment.num_steps)
    with _writer(workdir, checkpoints.latest_step) as writer:
      state = _train(experiment, state, window, writer, checkpoints)
  return _finish(experiment, state, window.seconds, workdir)


@dataclasses.dataclass
class _Window:
  """Sums and counts of the steps' metrics since the last record, and the seconds of the whole run so far."""

  sums: dict[str, float] = dataclasses.field(default_factory=dict)
  counts: dict[str, int] = dataclasses.field(default_factory=dict)
  seconds: float = 0.0

  def add(self, metrics):
    for name, value in metrics.items():
      self.sums[name] = self.sums.get(name, 0.0) + value
      self.counts[name] = self.counts.get(name, 0) + 1

  def pop_means(self):
    means = {name: total / self.counts[name] for name, total in self.sums.items()}
    self.sums, self.counts = {}, {}
    return means


def _train(experiment, state, window, writer, checkpoints):
  config = experiment.config
  num_steps, steps_per_epoch = experiment.num_steps, experiment.steps_per_epoch
  eval_every = max(1, round(config.eval_every_epochs * steps_per_epoch))
  save_every = max(1, round(config.checkpoint_every_epochs * steps_per_epoch))
  step = int(state.step)
  pending, vote = None, processes.Vote()
  started = time.monotonic() - window.seconds

  def read(pending):
    """Takes in the metrics of a dispatch, which blocks until it is done."""
    first_step, metrics = pending
    metrics = {name: np.asarray(values, np.float64) for name, values in jax.device_get(metrics).items()}
    for offset in range(len(next(iter(metrics.values())))):
      values = {name: float(value[offset]) for name, value in metrics.items()}
      _check_finite(first_step + offset + 1, values, checkpoints)
      window.add(values)
    progress.advance(first_step + offset + 1, values)

  def save():
    window.seconds = time.monotonic() - started
    checkpoints.save(state, dataclasses.asdict(window))

  with Progress(num_steps, step) as progress, _stop_requests() as stops:
    while step < num_steps:
      events = [(step // every + 1) * every for every in (eval_every, save_every)]
      state, count, metrics = experiment.advance(state, step, min(*events, num_steps))
      if pending:
        read(pending)
      pending, step = (step, metrics), step + count
      evaluate = step % eval_every == 0 or step == num_steps
      stop = vote(bool(stops))
      if not (evaluate or stop or step % save_every == 0):
        continue
      read(pending)
      pending = None
      if evaluate:
        record = {"epoch": step / steps_per_epoch} | window.pop_means() | experiment.evaluate(state)
        record |= {"steps_per_second": progress.record(step, record)}
        if writer:
          writer.write(step, record)
      save()
      if stop or vote(bool(stops)):
        _stop(stops, step, checkpoints)
  window.seconds = time.monotonic() - started
  return state


def _check_finite(step, metrics, checkpoints):
  bad = {name: value for name, value in metrics.items() if not np.isfinite(value)}
  if bad:
    name, value = next(iter(bad.items()))
    kept = "no checkpoint was saved yet"
    if checkpoints.latest_step is not None:
      kept = f"the checkpoint of step {checkpoints.latest_step} in {checkpoints.directory} is kept"
    raise FloatingPointError(f"step {step}: {name} is {value}; {kept}. Try a smaller learning rate.")


@contextlib.contextmanager
def _stop_requests():
  """Collects SIGINT and SIGTERM in a list while it is open, so that they meet a loop that can save.

  A second SIGINT ends the process at once, in the middle of a compilation too.
  """
  stops = []
  if threading.current_thread() is not threading.main_thread():
    yield stops
    return
  reading, writing = os.pipe()
  os.set_blocking(writing, False)
  wakeup = signal.set_wakeup_fd(writing)
  threading.Thread(target=_end_at_second_interrupt, args=[reading], daemon=True).start()
  handlers = {number: signal.signal(number, lambda n, _: stops.append(n)) for number in (signal.SIGINT, signal.SIGTERM)}
  try:
    yield stops
  finally:
    for number, handler in handlers.items():
      signal.signal(number, handler)
    signal.set_wakeup_fd(wakeup)
    os.close(writing)


def _end_at_second_interrupt(reading):
  """Reads the numbers of signals as they come: Python calls its handlers only between two calls into XLA."""
  interrupts = 0
  while number := os.read(reading, 1):
    interrupts += number[0] == signal.SIGINT
    if interrupts == 2:
      print("interrupted twice: ended without saving", file=sys.stderr, flush=True)
      os._exit(128 + signal.SIGINT)
  os.close(reading)


def _stop(stops, step, checkpoints):
  checkpoints.wait()
  _LOGGER.info("stopped at step %d, which is saved; the same command goes on from there", step)
  number = stops[0] if stops else signal.SIGTERM  # which another process was sent
  raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def _write_config(path, config, checkpoints):
  """Writes config.json; refuses where the folder's checkpoints come from a config that computes something else."""
  fields = config.to_dict()
  if checkpoints.latest_step is not None and (changed := changed_fields(json.loads(path.read_text()), fields)):
    raise ValueError(
        f"{path.parent} holds a run with another config: {'; '.join(changed)}. "
        "Choose another --workdir, or the old values"
    )
  if processes.is_main():
    writers.write_json(path, fields)


def _check_processes(config, task):
  """Raises ValueError where processes were started with different configs, or read different labels."""
  fields = config.copy_and_resolve_references().unlock()
  fields.data.data_dir = None  # a machine may have its own
  processes.check_same("the config", fields.to_json(sort_keys=True).encode())
  processes.check_same("the data", task.source["label"].tobytes() + task.target["label"].tobytes())


def _writer(workdir, resume_step):
  """Returns a context with the `MetricWriter`, or with None where another process has it."""
  return writers.MetricWriter(workdir, resume_step) if processes.is_main() else contextlib.nullcontext()


def _finish(experiment, state, seconds, workdir):
  config, task = experiment.config, experiment.task
  alpha = experiment.alpha(state)  # which waits for the process that writes the records
  records = writers.read_metrics(workdir)
  last = records[-1]
  summary = {
      "method": config.method,
      "task": task.name,
      "num_source": task.num_source,
      "num_target": len(task.target["label"]),
      "seed": config.seed,
      "epochs": last["epoch"],
      "steps": experiment.num_steps,
      "seconds": round(seconds, 1),
      "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
      "test_accuracy": last["test_accuracy"],
  }
  if "validation_accuracy" in last:
    best = max(records, key=lambda record: record["validation_accuracy"])
    summary |= {
        "validation_accuracy": last["validation_accuracy"],
        "best_validation_accuracy": best["validation_accuracy"],
        "best_step": best["step"],
        "test_accuracy_at_best": best["test_accuracy"],
    }
  summary |= experiment.alpha_statistics(alpha)
  if processes.is_main():
    _write_results(config, task, workdir, records, alpha, summary)
  processes.wait_for_all()
  host = jax.tree.map(processes.gather, state.replace(alpha=None))
  return Result(host.replace(alpha=alpha), alpha, records, summary, workdir / "report.html")


def _write_results(config, task, workdir, records, alpha, summary):
  writers.write_json(workdir / "summary.json", summary)
  report.write_report(
      workdir,
      title=config.name or f"{config.method} on {task.name}",
      config=config.to_dict(),
      records=records,
      source=task.source,
      alpha=alpha if config.method == "soseleto" else None,
      summary=summary,
      class_names=task.source_class_names,
  )
