"""The runs of an experiment: trained one after the other, and a line for each in experiments/results/NAME.jsonl.

A run that has its line is not repeated, and one that was stopped goes on from its checkpoint. The same command, started
several times with one `--workdir`, shares the runs out.
"""

import argparse
import dataclasses
import datetime
import functools
import hashlib
import json
import logging
import os
import pathlib
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging as absl_logging
from ml_collections import ConfigDict

from experiments import provenance
from soseleto_jax.config import changed_fields
from soseleto_jax.data import reading
from soseleto_jax.data.get_task import task_of as _task_of
from soseleto_jax.data.selection import Examples
from soseleto_jax.data.task import Task, known_wrong
from soseleto_jax.methods.base import METHODS
from soseleto_jax.report import source_weights
from soseleto_jax.run.signals import EXIT_PREEMPTED, Preempted
from soseleto_jax.train import Result, train_and_evaluate

PROTOCOLS = ("full", "small")
RESULTS = pathlib.Path(__file__).parent / "results"

_read = functools.cache(reading.read)
_NOT_METRICS = ("method", "task", "seed", "device", "best_checkpoint")

# Methods that read nothing of config.alpha.
_WITHOUT_ALPHA = METHODS.keys() - {"soseleto"}

# Rows whose config.method was their own name, before methods had options.
_FORMER_METHODS = {"matching_networks_tuned": "matching_networks", "adversarial": "label_efficient"}

_LOGGER = logging.getLogger("soseleto_jax.experiments")

Train = Callable[..., dict[str, Any]]  # (config, workdir, **settings) -> metrics, JSON-like
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """A run of an experiment, trained or not.

  Attributes:
    method: its key among the experiment's methods.
    conditions: what else tells it from the others, such as {"noise": 0.3}; JSON-like.
    config: with its seed.
    train: trains in the folder it is given, or goes on there, and returns what to record.
    settings: keyword arguments of `train` that the config has no fields for; JSON-like.
  """

  method: str
  conditions: Mapping[str, Any]
  config: ConfigDict
  train: Train
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def folder(self) -> str:
    """Returns a name that is another one for other settings."""
    computed = json.dumps([self.config.to_dict(), dict(self.settings)], sort_keys=True)
    conditions = [f"{name}={value}" for name, value in self.conditions.items()]
    digest = hashlib.sha256(computed.encode()).hexdigest()[:8]
    return "-".join([self.method, *conditions, f"seed={self.config.seed}", digest])

  def versions(self) -> dict[str, int]:
    """Returns by which versions of the code it is computed."""
    return provenance.versions(self.config, self.train)

  def is_recorded_by(self, record: Record) -> bool:
    """Whether a record, as `upgraded` returns it, is of this run: same conditions, settings, and what it computes."""
    if (self.method, self.config.seed) != (record["method"], record["config"]["seed"]):
      return False  # which spares the comparison of most
    own = json.loads(json.dumps([dict(self.conditions), dict(self.settings)]))  # tuples become lists
    if not provenance.agree(record, self.versions()):
      return False
    configs = record["config"], self.config.to_dict()
    return own == [record["conditions"], record["settings"]] and not changed_fields(*map(_computing, configs))


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A table or figure of the paper.

  Attributes:
    name: of the file of records.
    make_runs: `(protocol, seeds) -> runs`, in the order in which they are to be trained.
    render: `(protocol, records, folder)`, writes tables and figures. The records are those of the runs that
      `make_runs` returns for the seeds found in the file.
    seeds: where the command line names none.
    protocols: of PROTOCOLS; the last is run unless the command line names another.
  """

  name: str
  make_runs: Callable[[str, Sequence[int]], Sequence[Run]]
  render: Callable[[str, Sequence[Record], pathlib.Path], None]
  seeds: Sequence[int] = (0, 1, 2)
  protocols: Sequence[str] = PROTOCOLS


def train_run(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
  """Trains one network by `train_and_evaluate`, in a run's folder, and returns what to record."""
  task = task_of(config)
  return recorded_metrics(train_and_evaluate(config, workdir, task), task.source)


def task_of(config: ConfigDict) -> Task:
  """Returns the data of a config; what was read for one run is kept for the next."""
  return _task_of(config, read=_read)


def recorded_metrics(result: Result, source: Examples) -> dict[str, Any]:
  """Returns the summary of a run; for weights whose wrong labels are known, also the curve of Figure 2.

  "retention" is the fraction of wrong labels among the 2, 4, ... 100 % of the source with the largest weights.
  """
  values = {name: value for name, value in result.summary.items() if name not in _NOT_METRICS}
  if "auc" in values:
    _, wrong = source_weights.retention_curve(result.alpha, known_wrong(source), points=51)
    values["retention"] = np.round(wrong[1:], 5).tolist()
  return values


def read_records(path: pathlib.Path, protocol: str) -> list[Record]:
  """Returns a protocol's lines of a file of records, in the order of writing; none where there is no file.

  Older ones are returned as they would be written today.
  """
  lines = path.read_text().splitlines() if path.exists() else []
  return [upgraded(record) for record in map(json.loads, lines) if record["protocol"] == protocol]


def upgraded(record: Record) -> Record:
  """Returns a record with method and options where they are today; hours of computing stand in older ones.

  Before config.method_options, options were settings of the run. What else was renamed of a config
  `soseleto_jax.config.upgraded` knows, by which configs are compared.
  """
  config, settings = dict(record["config"]), dict(record["settings"])
  if "method_options" in config:
    return record
  options, method = {}, config["method"]
  if method == "confident_learning":  # now the experiment's alone, whose runs are of the last training's method
    method = settings.pop("final_method")
  elif method != "soseleto":  # of which the settings are its experiment's
    options, settings = settings, options
  config |= {"method": _FORMER_METHODS.get(method, method), "method_options": options}
  return record | {"config": config, "settings": settings}


def find_record(run: Run, records: Iterable[Record]) -> Record | None:
  """Returns the newest record of a run, or None."""
  return next((record for record in reversed(list(records)) if run.is_recorded_by(record)), None)


def records_of(experiment: Experiment, protocol: str, path: pathlib.Path) -> list[Record]:
  """Returns the records of the runs that the experiment has today, in their order: others do not count."""
  records = read_records(path, protocol)
  runs = experiment.make_runs(protocol, sorted({record["config"]["seed"] for record in records}))
  found = (find_record(run, records) for run in runs)
  return [record for record in found if record is not None]


def train_all(
  runs: Sequence[Run], protocol: str, workdir: pathlib.Path, path: pathlib.Path, after_each: Callable[[], None]
) -> None:
  """Trains the runs that have no record yet; those that another process is training are left to it.

  Args:
    runs: in their order.
    protocol: of PROTOCOLS.
    workdir: the folder of the runs' folders.
    path: the file of records, to which lines are appended.
    after_each: called after each new record.
  """
  commit = _commit()  # of the code that runs, whatever is committed until a run ends
  for number, run in enumerate(runs, start=1):
    if find_record(run, read_records(path, protocol)):
      continue
    _LOGGER.info("run %d of %d: %s", number, len(runs), run.folder())
    try:
      values = run.train(run.config, workdir / protocol / run.folder(), **run.settings)
    except RuntimeError as error:
      if "is in use by" not in str(error):
        raise
      _LOGGER.info("left to the process that is training it")
      continue
    if find_record(run, read_records(path, protocol)):  # trained by another process since
      continue
    record = {
      "protocol": protocol,
      "method": run.method,
      "conditions": dict(run.conditions),
      "metrics": values,
      "settings": dict(run.settings),
      "machine": _machine(),
      "commit": commit,
      "versions": run.versions(),
      "date": datetime.date.today().isoformat(),
      "config": run.config.to_dict(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
      file.write(json.dumps(record) + "\n")
    after_each()


def main(experiment: Experiment, argv: Sequence[str] | None = None) -> None:
  """Runs an experiment from the command line: trains what is missing, and renders.

  Args:
    experiment: what to run.
    argv: the arguments; None takes the command's.
  """
  arguments = _parser(experiment)
  given = arguments.parse_args(argv)
  absl_logging.set_verbosity(absl_logging.WARNING)
  logging.basicConfig(format="%(asctime)s %(message)s")
  logging.getLogger("soseleto_jax").setLevel(logging.INFO)
  path = given.results / f"{experiment.name}.jsonl"

  def render():
    experiment.render(given.protocol, records_of(experiment, given.protocol, path), given.results)

  chosen = experiment.make_runs(given.protocol, given.seeds)
  if given.methods:
    known = dict.fromkeys(run.method for run in chosen)
    if unknown := [method for method in given.methods if method not in known]:
      arguments.error(f"--methods={','.join(unknown)}: the methods are {', '.join(known)}")
    chosen = [run for run in chosen if run.method in given.methods]
  try:
    train_all(chosen, given.protocol, given.workdir, path, render)
  except Preempted:
    raise SystemExit(EXIT_PREEMPTED) from None
  except (ValueError, FloatingPointError, OSError) as error:
    raise SystemExit(f"error: {error}") from error
  render()


def _parser(experiment):
  formatter = argparse.ArgumentDefaultsHelpFormatter
  parser = argparse.ArgumentParser(allow_abbrev=False, formatter_class=formatter)
  add = parser.add_argument
  add(
    "--protocol",
    choices=experiment.protocols,
    default=experiment.protocols[-1],
    help="the paper's sizes, or what a CPU can do",
  )
  add("--seeds", type=_seeds, default=experiment.seeds, help="each draws its own sets and initial weights")
  add("--methods", type=lambda text: text.split(","), help="only these methods")
  add("--workdir", type=pathlib.Path, default=pathlib.Path("runs", experiment.name), help="where the runs go")
  add("--results", type=pathlib.Path, default=RESULTS, help="the folder of records, tables and figures")
  return parser


def _seeds(text):
  try:
    return [int(seed) for seed in text.split(",")]
  except ValueError:
    raise argparse.ArgumentTypeError(f"{text!r}: give whole numbers, such as 0,1,2") from None


def _computing(fields):
  """Returns a config's fields without those of `alpha` where the method reads none."""
  return {name: value for name, value in fields.items() if name != "alpha" or fields["method"] not in _WITHOUT_ALPHA}


def _machine():
  devices = jax.devices()
  return f"{len(devices)} x {devices[0].device_kind}, {os.cpu_count()} cores {platform.machine()}"


def _commit():
  """Returns the commit of the code, with a plus where files differ from it; "" outside of a repository."""

  def git(*command):
    command = ["git", *command]
    return subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True, check=False).stdout.strip()

  changed = git("status", "--porcelain", "--untracked-files=no", "--", "..", ":!results")
  return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
