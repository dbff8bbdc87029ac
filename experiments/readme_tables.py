"""The README's tables, from the records: `python -m experiments.readme_tables`.

Renders every table of experiments/results anew, and puts into README.md those that it names, each between two lines:

    <!-- table1_small.md -->
    <!-- end -->
"""

import importlib
import pathlib
import re

from experiments import runs, tables

README = pathlib.Path(__file__).resolve().parent.parent / "README.md"

EXPERIMENTS = ("table1", "table2", "figure2")
_PLACE = re.compile(r"(<!-- (\w+\.md) -->\n).*?(<!-- end -->)", re.DOTALL)


def render_all(results: pathlib.Path, folder: pathlib.Path) -> None:
  """Renders the tables and figures of all records.

  Args:
    results: the folder of the files of records.
    folder: where to write.
  """
  for name in EXPERIMENTS:
    experiment = importlib.import_module(f"experiments.{name}").EXPERIMENT
    path = results / f"{experiment.name}.jsonl"
    for protocol in runs.PROTOCOLS:
      if runs.read_records(path, protocol):
        experiment.render(protocol, runs.records_of(experiment, protocol, path), folder)


def filled(text: str, folder: pathlib.Path) -> str:
  """Returns a text with the tables of a folder in their places; "not run" where there is none yet."""

  def table(match):
    path = folder / match[2]
    content = path.read_text(encoding="utf-8") if path.exists() else f"{tables.NOT_RUN}\n"
    return f"{match[1]}\n{content}\n{match[3]}"

  return _PLACE.sub(table, text)


if __name__ == "__main__":
  render_all(runs.RESULTS, runs.RESULTS)
  README.write_text(filled(README.read_text(encoding="utf-8"), runs.RESULTS), encoding="utf-8")
