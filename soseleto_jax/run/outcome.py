"""The end of a run: what it says of itself, its list and its report."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from soseleto_jax.core import arrays
from soseleto_jax.core.train_state import TrainState
from soseleto_jax.models.losses import predict_fn
from soseleto_jax.report import page, source_list, writers
from soseleto_jax.run import loop, processes
from soseleto_jax.run.checkpoint import Checkpoints
from soseleto_jax.run.interface import interface_of
from soseleto_jax.run.prediction import Predictor
from soseleto_jax.run.result import Result
from soseleto_jax.run.suggestions import suggest
from soseleto_jax.run.trainer import Experiment


def finish(
  experiment: Experiment,
  state: TrainState,
  window: loop.Window,
  checkpoints: Checkpoints,
  workdir: pathlib.Path,
  start: Mapping[str, Any],
) -> Result:
  """Writes summary, list and report of a run that has ended, and returns its result; every process has to call it.

  Args:
    experiment: what was trained.
    state: where training ended, as it lies on the devices.
    window: of the loop, with all records.
    checkpoints: of the run.
    workdir: its folder.
    start: what the trial before training found, which the summary tells.
  """
  alpha = experiment.alpha(state)
  summary = _summary(experiment, window, checkpoints) | start | experiment.alpha_statistics(alpha)
  listed = _listed(experiment, state, alpha)
  if listed is not None and (area := listed.auc) is not None:
    summary["list_auc"] = area
  if processes.is_main():
    _write_results(experiment, workdir, window.records, listed, summary)
  processes.wait_for_all()
  host = jax.tree.map(arrays.gather, state.replace(alpha=None))
  return Result(
    host.replace(alpha=alpha),
    alpha,
    window.records,
    summary,
    workdir / "report.html",
    _predictor(experiment, host),
    listed,
  )


def _summary(experiment, window, checkpoints):
  """Returns what summary.json says, but for the trial and the weights."""
  config, task, records = experiment.config, experiment.task, window.records
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
  }
  score = "accuracy" if task.has_classes else "loss"
  if f"test_{score}" in last:
    summary[f"test_{score}"] = last[f"test_{score}"]
  if f"validation_{score}" in last:
    best = max(records, key=loop.validation_score)
    summary |= {
      f"validation_{score}": last[f"validation_{score}"],
      f"best_validation_{score}": best[f"validation_{score}"],
      "best_step": best["step"],
      "best_checkpoint": window.best_step if window.best_step in checkpoints.steps else None,
    }
    if f"test_{score}" in best:
      summary[f"test_{score}_at_best"] = best[f"test_{score}"]
  if task.test is None:
    summary["not_known"] = "how good predictions are on other examples: there is no test set"
  if task.left_out:
    summary["left_out"] = dict(task.left_out)
  return summary


def _listed(experiment, state, alpha):
  """Returns the source's examples as they are listed; None where the method learns no weights."""
  if not experiment.method.uses_alpha:
    return None
  task, source = experiment.task, experiment.task.source
  labels = {"label": source["label"], "true_label": source.get("true_label")} if task.has_classes else {}
  if not task.has_classes and source["label"].ndim == 1:
    labels = {"value": source["label"], "true_value": source.get("true_label")}
  return source_list.SourceList(
    alpha,
    row=source.get("row"),
    file=source.get("file"),
    suggestions=suggest(experiment.setup, experiment.method, state),
    class_names=task.source_class_names,
    known_wrong=task.wrong,
    **labels,
  )


def _predictor(experiment, host):
  setup, method = experiment.setup, experiment.method
  predict = method.predict or predict_fn(setup.network, head=setup.head("target"))
  interface = interface_of(experiment.task, method)
  return Predictor(interface, predict, host.params, host.model_state, experiment.config.eval_batch_size)


def _write_results(experiment, workdir, records, listed, summary):
  config, task = experiment.config, experiment.task
  writers.write_json(workdir / "summary.json", summary)
  if listed is not None:
    listed.write(workdir)
  title = f"{task.name}: which labels to trust" if listed and task.shared_classes else f"{config.method} on {task.name}"
  page.write_report(
    workdir,
    title=config.name or title,
    config=config.to_dict(),
    records=records,
    listed=listed,
    x=task.source["x"],
    summary=summary,
  )
