"""Runs a whole experiment: the loop around the train step, and the folder that it leaves."""

import contextlib
import dataclasses
import json
import logging
import pathlib
import signal
import time
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from soseleto_jax import fingerprint, methods, processes, report, writers
from soseleto_jax.checkpoint import Checkpoints
from soseleto_jax.config import changed_fields, validate
from soseleto_jax.data.task import Task, get_task
from soseleto_jax.experiment import Experiment
from soseleto_jax.progress import Progress
from soseleto_jax.signals import exit_preempted, on_signals, stop_requests
from soseleto_jax.train_state import TrainState
from soseleto_jax.workdir import claim, failed_writes

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


def train_and_evaluate(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    task: Task | None = None,
    make_phases: methods.MakePhases = methods.make_phases,
) -> Result:
  """Trains as a config says and writes the run's folder; goes on from its newest checkpoint if there is one.

  At each event the order is: evaluate, write the record, save. SIGINT and SIGTERM save first, then stop; after SIGTERM
  the process exits with code 75.

  Args:
    config: the fields of `soseleto_jax.config.default_config`.
    workdir: the run's folder: config.json, metrics.jsonl, TensorBoard events, checkpoints, source_weights.csv,
      figures, report.html and summary.json.
    task: the data; None takes what `config.data` describes.
    make_phases: a method of one's own, called as `methods.make_phases` is; `config.method` is then any other name.

  Returns:
    A `Result`. A run that had finished before is not repeated.

  Raises:
    ValueError: a config or data that cannot be used, or a folder whose run had other data or a config that computes
      something else.
    FloatingPointError: a loss or gradient that is not finite; the last checkpoint stays.
    OSError: the folder cannot be written, at the start or later; the last checkpoint stays.
    RuntimeError: another run is using the folder, or all of its checkpoints are damaged.
  """
  validate(config, own_method=make_phases is not methods.make_phases)
  workdir = pathlib.Path(workdir)
  with on_signals(exit_preempted, signal.SIGTERM), _claimed(workdir):
    task = get_task(config.data, config.seed, jax.process_count()) if task is None else task
    digest = fingerprint.of_task(task)
    if jax.process_count() > 1:
      _check_processes(config, digest)
    experiment = Experiment(config, task, make_phases)
    checkpoints = Checkpoints(workdir, max_to_keep=config.max_to_keep, num_source=experiment.task.num_source)
    with failed_writes(lambda: checkpoints.latest_step):
      with checkpoints:
        _write_config(workdir / "config.json", config, checkpoints)
        state, window = _resume(experiment, digest, checkpoints, workdir)
        with _writer(workdir, checkpoints.latest_step) as writer:
          state = _train(experiment, state, window, writer, checkpoints)
      return _finish(experiment, state, window, checkpoints, workdir)


@dataclasses.dataclass
class _Window:
  """Sums and counts of the steps' metrics since the last record; the run's data, seconds and best record so far."""

  task: str
  sums: dict[str, float] = dataclasses.field(default_factory=dict)
  counts: dict[str, int] = dataclasses.field(default_factory=dict)
  seconds: float = 0.0
  best_step: int | None = None
  best_accuracy: float = 0.0

  def add(self, metrics):
    for name, value in metrics.items():
      self.sums[name] = self.sums.get(name, 0.0) + value
      self.counts[name] = self.counts.get(name, 0) + 1

  def pop_means(self):
    means = {name: total / self.counts[name] for name, total in self.sums.items()}
    self.sums, self.counts = {}, {}
    return means

  def compare(self, step, record):
    """Takes note of the step with the best validation accuracy, the first of those that tie."""
    accuracy = record.get("validation_accuracy")
    if accuracy is not None and (self.best_step is None or accuracy > self.best_accuracy):
      self.best_step, self.best_accuracy = step, accuracy


def _resume(experiment, digest, checkpoints, workdir):
  """Returns the state and window that the run starts with: those of a checkpoint if there is one."""
  state, window = experiment.place(experiment.initial_state()), _Window(digest)
  records = writers.read_metrics(workdir)
  if checkpoints.latest_step is not None:
    state, saved = checkpoints.restore(experiment.state_like)
    if saved["task"] != digest:
      raise ValueError(
          f"{workdir} holds a run on other data: labels or examples differ. Choose another --workdir, or the old data"
      )
    experiment.restore_feed(saved.pop("feed"), int(state.step))
    window = _Window(**saved)
    done = "finished before" if checkpoints.latest_step == experiment.num_steps else "going on"
    _LOGGER.info("%s: %s, at step %d of %d", workdir, done, checkpoints.latest_step, experiment.num_steps)
  if records and records[-1]["step"] > (step := checkpoints.latest_step or 0):
    _LOGGER.warning(
        "%s has records up to step %d but no later checkpoint than step %d: the steps between are taken again",
        workdir, records[-1]["step"], step,
    )  # fmt: skip
  return state, window


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
      if config.on_nonfinite == "stop":
        _check_finite(first_step + offset + 1, values, experiment, checkpoints)
      elif values["skipped_rows"] or values["skipped_step"]:
        faulty = experiment.faulty_examples(state, first_step + offset + 1)
        what = "" if not values["skipped_step"] else "; its gradient is not finite, and the parameters stay"
        _LOGGER.warning("step %d goes on without %s%s", first_step + offset + 1, _listed(faulty), what)
      window.add({name: value for name, value in values.items() if np.isfinite(value)})
    progress.advance(first_step + offset + 1, values)

  def save():
    window.seconds = time.monotonic() - started
    checkpoints.save(state, dataclasses.asdict(window) | {"feed": experiment.feed_state()}, window.best_step)

  with Progress(num_steps, step) as progress, stop_requests() as stops:
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
        means = window.pop_means()
        if means.get("skipped_step") == 1:
          raise FloatingPointError(f"no gradient up to step {step} was finite. Try a smaller learning rate.")
        record = {"epoch": step / steps_per_epoch} | means | experiment.evaluate(state)
        window.compare(step, record)
        record |= {"steps_per_second": progress.record(step, record)}
        if writer:
          writer.write(step, record)
      save()
      if stop or vote(bool(stops)):
        _stop(stops, step, checkpoints)
  window.seconds = time.monotonic() - started
  return state


def _check_finite(step, metrics, experiment, checkpoints):
  bad = {name: value for name, value in metrics.items() if not np.isfinite(value)}
  if not bad:
    return
  name, value = next(iter(bad.items()))
  checkpoints.wait()
  state, kept = experiment.place(experiment.initial_state()), "no checkpoint was saved yet"
  if checkpoints.latest_step is not None:
    state, _ = checkpoints.restore(experiment.state_like)
    kept = f"the checkpoint of step {checkpoints.latest_step} in {checkpoints.directory} is kept"
  # The parameters of the step are gone, and may not have been finite; those of a while ago tell bad examples too.
  faulty = experiment.faulty_examples(state, step)
  cure = "No single example is at fault: try a smaller learning rate."
  if any(faulty.values()):
    cure = (
        f"At fault: {_listed(faulty)}, whose loss or gradient is not finite. Mend or leave them out, or go on without "
        "such examples by --config.on_nonfinite=skip."
    )
  raise FloatingPointError(f"step {step}: {name} is {value}; {kept}. {cure}")


def _listed(faulty):
  """Names examples, such as "source examples 3, 17"."""
  parts = []
  for name, indices in faulty.items():
    if indices:
      more = f" and {len(indices) - 20} more" if len(indices) > 20 else ""
      parts.append(f"{name} example{'s' * (len(indices) > 1)} {', '.join(map(str, indices[:20]))}{more}")
  return " and ".join(parts) or "no example"


def _stop(stops, step, checkpoints):
  checkpoints.wait()
  _LOGGER.info("stopped at step %d, which is saved; the same command goes on from there", step)
  if signal.SIGINT in stops[:1]:
    raise KeyboardInterrupt
  exit_preempted()  # the signal may have been sent to another process


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


def _check_processes(config, digest):
  """Raises ValueError where processes were started with different configs, or read different labels."""
  fields = config.copy_and_resolve_references().unlock()
  fields.data.data_dir = None  # a machine may have its own
  processes.check_same("the config", fields.to_json(sort_keys=True).encode())
  processes.check_same("the data", digest.encode())


def _claimed(workdir):
  return claim(workdir) if processes.is_main() else contextlib.nullcontext()


def _writer(workdir, resume_step):
  """Returns a context with the `MetricWriter`, or with None where another process has it."""
  return writers.MetricWriter(workdir, resume_step) if processes.is_main() else contextlib.nullcontext()


def _finish(experiment, state, window, checkpoints, workdir):
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
      "seconds": round(window.seconds, 1),
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
        "best_checkpoint": window.best_step if window.best_step in checkpoints.steps else None,
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
