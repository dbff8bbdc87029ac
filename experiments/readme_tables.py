"""The tables in README.md and docs/results.md, from the records: `python -m experiments.readme_tables`.

Renders every table of experiments/results anew, and puts into these pages those that they name by file and number,
between two lines:

    <!-- table1_small.md 1 -->
    <!-- end -->
"""

import pathlib
import re

from experiments import (
  appendix_c,
  domain_alignment,
  figure1,
  figure2,
  human_noise,
  language_model,
  noise_kinds,
  own_data,
  regression,
  resnet18,
  runs,
  svhn_instances,
  table1,
  table2,
  tables,
  transfer_noise,
  unlabelled,
)

EXPERIMENTS = tuple(
  module.EXPERIMENT
  for module in (
    figure1,
    appendix_c,
    table1,
    figure2,
    table2,
    transfer_noise,
    svhn_instances,
    unlabelled,
    domain_alignment,
    human_noise,
    noise_kinds,
    resnet18,
    language_model,
    regression,
    own_data,
  )
)
_ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = (_ROOT / "README.md", _ROOT / "docs" / "results.md")

_PLACE = re.compile(r"(<!-- (\w+\.md) (\d+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render_all(results: pathlib.Path, folder: pathlib.Path) -> None:
  """Renders the tables and figures of EXPERIMENTS from the files of records in `results` into another folder."""
  for experiment in EXPERIMENTS:
    for protocol in experiment.protocols:
      if records := runs.records_of(experiment, protocol, results / f"{experiment.name}.jsonl"):
        experiment.render(protocol, records, folder)


def filled(text: str, folder: pathlib.Path) -> str:
  """Returns a text with the tables in their places; "not run" where there is no file yet."""

  def table(match):
    path, last = folder / match[2], 2 * int(match[3])
    caption_and_table = path.read_text(encoding="utf-8").split("\n\n")[last - 2 : last] if path.exists() else []
    parts = caption_and_table or [tables.NOT_RUN]
    return "\n\n".join([match[1].strip(), *(part.strip() for part in parts), match[4]])

  return _PLACE.sub(table, text)


if __name__ == "__main__":
  render_all(runs.RESULTS, runs.RESULTS)
  for page in PAGES:
    page.write_text(filled(page.read_text(encoding="utf-8"), runs.RESULTS), encoding="utf-8")
