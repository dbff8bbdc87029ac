"""Runs a whole experiment: from a config to the folder that it leaves."""

import contextlib
import dataclasses
import functools
import json
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from soseleto_jax import pretraining, storage
from soseleto_jax.config import changed_fields, validate
from soseleto_jax.data.get_task import task_of
from soseleto_jax.data.task import Task
from soseleto_jax.methods.base import MakeMethod
from soseleto_jax.report import source_list, writers
from soseleto_jax.run import checkpoint, fingerprint, identity, loop, outcome, processes, trial
from soseleto_jax.run.checkpoint import Checkpoints
from soseleto_jax.run.given import Evaluate, Given
from soseleto_jax.run.interface import interface_of
from soseleto_jax.run.result import Result
from soseleto_jax.run.signals import PREEMPTION, on_signals, raise_preempted
from soseleto_jax.run.trainer import Experiment
from soseleto_jax.run.workdir import claim, failed_writes

_LOGGER = logging.getLogger(__name__)


def train_and_evaluate(
  config: ConfigDict,
  workdir: str | pathlib.Path,
  task: Task | None = None,
  *,
  network: Any = None,
  params: Any = None,
  augment: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] | None = None,
  optimizer: optax.GradientTransformation | None = None,
  method: MakeMethod | None = None,
  loss: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
  evaluators: Sequence[Evaluate] = (),
) -> Result:
  """Trains as a config says and writes the run's folder; goes on from its newest checkpoint if there is one.

  At each event the order is: evaluate, write the record, save. SIGINT, SIGTERM and SIGHUP save first, then stop. What
  is given takes the place of what the config names; a resumed run has to be given the same.

  Args:
    config: the fields of `soseleto_jax.config.default_config`.
    workdir: the run's folder: config.json, task.json, trial.json where `alpha.trial_epochs` asks for one, the folder
      `pretraining` of another run where `pretrain_epochs` does, metrics.jsonl, TensorBoard events, checkpoints,
      alpha.npy, source_weights.csv, figures, report.html and summary.json.
    task: the data; None takes what `config.data` describes, or `config.task` makes.
    network: a Flax module, Linen or NNX, from inputs float32 `[B, ...]` to features `[B, F]`, which get classifiers; or
      a whole network as an object with `init(key, x) -> params` and `apply(params, x) -> logits`. Where labels are no
      classes a module is whole as well, and returns what the loss takes.
    params: what the network starts from: a pytree of some or all of its parameters, or the folder of an Orbax
      checkpoint of such.
    augment: {"source": f, "target": g}, either or both: `f(key, x) -> x`, on the device, before normalisation, for x
      float32 `[B, H, W, C]` in the units in which it is stored.
    optimizer: any optax transformation; the step of `alpha` goes on following `config.optimizer.schedule`.
    method: `(setup, **config.method_options) -> Method`, see `soseleto_jax.methods.base`.
    loss: `(outputs, label) -> float32 [B]`, of what the network returns, float32 `[B, ...]`, and the labels `[B, ...]`;
      it takes the place of `config.loss`.
    evaluators: each called at every evaluation as `f(predict, sets) -> {name: number}`, whose numbers stand in the
      records, TensorBoard and the report. `predict(x)` gives the network's outputs, such as the logits `[N, K]`, of
      inputs as they are stored; `sets` holds "test" and, where there is one, "validation", each with "x" and "label".

  Returns:
    A `Result`. A run that had finished before is not repeated.

  Raises:
    ValueError: a config or data that cannot be used, or a folder whose run had other data or a config that computes
      something else.
    FloatingPointError: a loss or gradient that is not finite; the last checkpoint stays.
    OSError: the folder cannot be written, at the start or later; the last checkpoint stays.
    RuntimeError: another run is using the folder, or all of its checkpoints are damaged.
    KeyboardInterrupt, soseleto_jax.run.signals.Preempted: SIGINT; SIGTERM, SIGHUP.
  """
  given = Given(network, params, augment, optimizer, method, loss, evaluators)
  validate(config, method)
  if config.init_from and params is not None:
    raise ValueError(
      f"config.init_from={config.init_from!r} and params are both what the network starts from; give one"
    )
  if config.init_from and config.pretrain_epochs:
    raise ValueError(
      f"config.init_from={config.init_from!r} and config.pretrain_epochs={config.pretrain_epochs} both say what the "
      "network starts from; give one"
    )
  workdir = storage.as_path(workdir)
  with on_signals(raise_preempted, *PREEMPTION), storage.os_errors(workdir), _claimed(workdir) as hold:
    task_given = task is not None
    task = task_of(config, jax.process_count()) if task is None else task
    known = identity.of_run(config, given, task, task_given=task_given)
    digest = fingerprint.of_task(task)
    if jax.process_count() > 1:
      _check_processes(config, digest)
    if config.pretrain_epochs and not checkpoint.is_in(workdir):  # which is what a run goes on from
      given = _pretrained(config, workdir, task, given)
    if task.left_out:
      _LOGGER.info("left out of the source: %s", source_list.left_out_line(task.left_out))
    experiment = Experiment(config, task, given)
    checkpoints = Checkpoints(
      workdir, max_to_keep=config.max_to_keep, num_source=task.num_source, num_steps=experiment.num_steps
    )
    with failed_writes(lambda: checkpoints.latest_step):
      with checkpoints:
        before = (checkpoints.newest_loop() or {}).get("identity", {})
        one_phase = len(experiment.method.phases) == 1
        _write_config(workdir / "config.json", known["config"], before.get("config"), checkpoints, one_phase)
        if processes.is_main():
          interface_of(task, experiment.method).write(workdir)
        start: dict[str, Any] = {}
        if trial.is_wanted(config, given):
          shared = experiment.shared
          del experiment  # and with it what the devices hold: it has shown that config and data can be used
          resumes = checkpoints.latest_step is not None
          config, start = trial.with_start(shared, given, workdir, resumes, before.get("start"))
          experiment = Experiment(config, task, given, like=shared)
        state, window = _resume(experiment, loop.Window(digest, known | {"start": start}), checkpoints, workdir)
        keep_folder = functools.partial(_keep_folder, hold, workdir, window.identity, experiment)
        with _writer(workdir, window, int(state.step)) as writer:
          state = loop.train(experiment, state, window, writer, checkpoints, keep_folder)
      keep_folder()
      return outcome.finish(experiment, state, window, checkpoints, workdir, start)


def _pretrained(config, workdir, task, given):
  """Trains on the source alone, in a folder within the run's, or goes on there; the network then starts from it."""
  _LOGGER.info("pretraining on the source: %g epochs", config.pretrain_epochs)
  result = train_and_evaluate(
    pretraining.config_of(config),
    workdir / pretraining.FOLDER,
    pretraining.without_held_out(task),
    network=given.network,
    params=given.params,
    augment={side: f for side, f in (given.augment or {}).items() if side == "source"} or None,
    optimizer=given.optimizer,
    method=pretraining.make_method,
    loss=given.loss,
  )
  return dataclasses.replace(given, params={"params": result.state.params, **(result.state.model_state or {})})


def _resume(experiment, window, checkpoints, workdir):
  """Returns the state and window that the run starts with: those of a checkpoint if there is one, else `window`."""
  step = 0
  if checkpoints.latest_step is None:
    state = experiment.place(experiment.first_state())
  else:
    state, saved = checkpoints.restore(experiment.state_like)
    step = int(state.step)
    if saved["task"] != window.task:
      raise identity.other_data(workdir, "labels or examples")
    identity.check(workdir, saved.get("identity", {}), window.identity)
    experiment.restore_feed(saved.pop("feed"), step)
    window = loop.Window.restored(saved | {"identity": window.identity})
    done = "finished before" if step == experiment.num_steps else "going on"
    _LOGGER.info("%s: %s, at step %d of %d", workdir, done, step, experiment.num_steps)
    if "records" not in saved:
      window.records = _records_of_older_version(workdir, window, step, experiment.num_steps)
    elif not writers.holds_records(workdir, window.records, step):
      _LOGGER.warning(
        "%s lacks records of the run, or has others: it is written anew, as the checkpoint has them",
        workdir / writers.METRICS_FILE,
      )
  last = writers.last_step(workdir)
  if last > step:
    _LOGGER.warning(
        "%s has records up to step %d but no later checkpoint than step %d: the steps between are taken again",
        workdir, last, step,
    )  # fmt: skip
  return state, window


def _records_of_older_version(workdir, window, step, num_steps):
  """Returns the records of metrics.jsonl up to a step; its checkpoint, of an older version, has none of its own."""
  records = [record for record in writers.read_metrics(workdir) if record["step"] <= step]
  steps = {record["step"] for record in records}
  if (step == num_steps and step not in steps) or (window.best_step is not None and window.best_step not in steps):
    raise ValueError(
      f"{workdir / writers.METRICS_FILE} lacks records of the steps before the checkpoint of step {step}, which has "
      "none of its own; put back a copy of the file, or choose another --workdir"
    )
  return records


def _write_config(path, fields, before, checkpoints, one_phase):
  """Writes config.json; refuses where the folder's checkpoints come from a config that computes something else.

  What a caller gave in place of what the config names stands there by name, under "given".

  Args:
    path: of the file.
    fields: what to write.
    before: the fields that the newest checkpoint was saved with; None where it has none.
    checkpoints: of the run.
    one_phase: whether the method has one phase alone.
  """
  if checkpoints.latest_step is not None:
    if before is None:
      before = _read_config(path)
      before["method_options"] = fields["method_options"] | before.get("method_options", {})
    if changed := changed_fields(before, fields, one_phase=one_phase):
      raise ValueError(
        f"{path.parent} holds a run with another config: {'; '.join(changed)}. "
        "Choose another --workdir, or the old values"
      )
  if processes.is_main():
    writers.write_json(path, fields)


def _read_config(path):
  try:
    fields = json.loads(path.read_bytes())
    if not isinstance(fields, dict):
      raise ValueError(f"it holds a {type(fields).__name__}, no fields")
  except (OSError, ValueError, RecursionError) as error:
    what = error.strerror if isinstance(error, OSError) else error
    raise ValueError(
      f"{path} cannot be read: {what}. It says which experiment the checkpoints beside it belong to: put back a copy, "
      "or choose another --workdir"
    ) from error
  return fields


def _check_processes(config, digest):
  """Raises ValueError where processes were started with different configs, or read different labels."""
  fields = config.copy_and_resolve_references().unlock()
  fields.data.data_dir = None  # a machine may have its own
  processes.check_same("the config", fields.to_json(sort_keys=True).encode())
  processes.check_same("the data", digest.encode())


def _claimed(workdir):
  return claim(workdir) if processes.is_main() else contextlib.nullcontext(lambda: None)


def _keep_folder(hold, workdir, known, experiment):
  """Sees that the folder is there and this run's; writes anew what was written at the start and taken away."""
  hold()
  if processes.is_main() and not (workdir / "config.json").exists():
    writers.write_json(workdir / "config.json", known["config"])
    interface_of(experiment.task, experiment.method).write(workdir)
    if known["start"]:
      trial.write(workdir, known["start"])


def _writer(workdir, window, step):
  """Returns a context with the `MetricWriter`, or with None where another process has it."""
  if not processes.is_main():
    return contextlib.nullcontext()
  return writers.MetricWriter(workdir, window.records, step if step else -1)
