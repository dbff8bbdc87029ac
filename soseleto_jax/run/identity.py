"""What a run is known by: a resumed one has to have the same config, data and settings of what was given to it."""

import logging
import pathlib
from typing import Any

from ml_collections import ConfigDict

from soseleto_jax.data.task import Task
from soseleto_jax.methods.base import find_method, options_of
from soseleto_jax.run import fingerprint
from soseleto_jax.run.given import Given

_LOGGER = logging.getLogger(__name__)


def of_run(config: ConfigDict, given: Given, task: Task, *, task_given: bool) -> dict[str, Any]:
  """Returns what a run is known by, JSON-like.

  Args:
    config: the experiment.
    given: what the caller gave in place of what it names.
    task: its data.
    task_given: whether the caller gave that too.

  Returns:
    "config": the fields of config.json, among them the method's options with their defaults and, under "given", the
    names of what was given; "given": digests of its settings; "data": `fingerprint.parts_of_task`.
  """
  fields = config.to_dict()
  fields["method_options"] = options_of(given.method or find_method(config.method)) | fields["method_options"]
  names = given.names() | ({"task": _about(task)} if task_given else {})
  if names:
    fields["given"] = names
  return {"config": fields, "given": given.settings(), "data": fingerprint.parts_of_task(task)}


def check(workdir: pathlib.Path, old: dict[str, Any], new: dict[str, Any]) -> None:
  """Raises ValueError where a run that was saved had other data, or was given other settings.

  Args:
    workdir: its folder.
    old: what was saved of `of_run`; {} by versions before.
    new: what the run would be now.
  """
  if not old:
    _LOGGER.info(
      "%s was saved by an older version: of its data only labels and a few examples can be compared, and no "
      "normalization, class names or settings of a method, network or augmentation of your own",
      workdir,
    )
    return
  if changed := fingerprint.changed_parts(old["data"], new["data"]):
    raise other_data(workdir, ", ".join(changed))
  changed = [door for door, digest in new["given"].items() if old["given"].get(door, digest) != digest]
  if changed:
    raise ValueError(
      f"{workdir} holds a run that was given another {' and '.join(changed)}: of the same name, but with other "
      "settings. Choose another --workdir, or the old settings"
    )


def other_data(workdir: pathlib.Path, what: str) -> ValueError:
  """Returns the error for a folder whose run had other data."""
  return ValueError(f"{workdir} holds a run on other data: {what} differ. Choose another --workdir, or the old data")


def _about(task):
  sizes = [f"{name} {len(examples['label'])}" for name, examples in fingerprint.sets(task).items()]
  x = task.source["x"]
  classes = f"{task.num_source_classes} source classes" if task.has_classes else "no classes"
  return f"{task.name}: {x.dtype}{list(x.shape[1:])}, {', '.join(sizes)}, {classes}"
