"""Tables of an experiment, from records of runs that nobody trained."""

import json

from experiments import runs


def small_tables(experiment, metrics_of, folder):
  """Returns the text of an experiment's `small` tables, of two seeds.

  Args:
    experiment: its `EXPERIMENT`.
    metrics_of: of a run, what to record of it; None of one that was not trained.
    folder: where the records and the tables are written.
  """
  path = folder / f"{experiment.name}.jsonl"
  with path.open("w") as file:
    for run in experiment.make_runs("small", [0, 1]):
      if (metrics := metrics_of(run)) is not None:
        record = {"protocol": "small", "method": run.method, "conditions": dict(run.conditions), "metrics": metrics}
        record |= {"settings": dict(run.settings), "config": run.config.to_dict(), "versions": run.versions()}
        file.write(json.dumps(record) + "\n")
  experiment.render("small", runs.records_of(experiment, "small", path), folder)
  return (folder / f"{experiment.name}_small.md").read_text(encoding="utf-8")
