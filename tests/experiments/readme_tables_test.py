"""The tables in README.md, docs/results.md and experiments/results are those that the records give."""

import json
import re
import shutil

import pytest

from experiments import readme_tables, runs, table1
from soseleto_jax.report import figure_style


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
  """Their drawing takes most of the time, and is tested where they are drawn."""
  monkeypatch.setattr(figure_style, "save", lambda figure, path: None)


def assert_up_to_date(results, pages, folder):
  """Every table beside the records, and in the pages, is what rendering them in `folder` gives."""
  folder.mkdir()
  readme_tables.render_all(results, folder)
  read = lambda path: {file.name: file.read_text(encoding="utf-8") for file in path.glob("*.md")}
  assert read(results) == read(folder)
  for page in pages:
    text = page.read_text(encoding="utf-8")
    assert text == readme_tables.filled(text, folder)


def test_of_this_repository(tmp_path):
  assert_up_to_date(runs.RESULTS, readme_tables.PAGES, tmp_path / "rendered")


@pytest.mark.parametrize("page", readme_tables.PAGES, ids=lambda page: page.name)
def test_places_are_whole_and_name_experiments(page):
  """A misspelt one would stay "not run" for ever."""
  text = page.read_text(encoding="utf-8")
  places = [match.group(2, 3) for match in readme_tables._PLACE.finditer(text)]
  assert places and len(places) == len(set(places)) == text.count("<!-- end -->")
  assert len(places) == len(re.findall(r"<!-- \w+\.md", text))
  for name, number in places:
    experiment, protocol = name.removesuffix(".md").rsplit("_", 1)
    assert hasattr(readme_tables, experiment) and protocol in runs.PROTOCOLS, name
    path = runs.RESULTS / name
    assert not path.exists() or path.read_text(encoding="utf-8").count(":\n\n") >= int(number) > 0, name


PLACES = ("table1_small.md 1", "table2_small.md 1", "table1_small.md 2")


@pytest.fixture
def project(tmp_path):
  """A folder of results with a record each of two seeds, and a README, tables up to date."""
  results, readme = tmp_path / "results", tmp_path / "README.md"
  results.mkdir()
  for seed in (0, 1):
    add_record(results / "table1.jsonl", seed)
  places = "".join(f"\n\n<!-- {place} -->\n<!-- end -->" for place in PLACES)
  readme.write_text(f"Results:{places}\nEnd.\n")
  readme_tables.render_all(results, results)
  readme.write_text(readme_tables.filled(readme.read_text(), results))
  return results, readme


def add_record(path, seed, protocol="small"):
  run = table1.make_runs(protocol, [seed])[0]
  record = {
    "protocol": protocol,
    "method": run.method,
    "conditions": dict(run.conditions),
    "metrics": {"test_accuracy": 0.5 + seed / 10, "test_accuracy_at_best": 0.6 + seed / 10},
    "settings": {},
    "config": run.config.to_dict(),
  }
  with path.open("a") as file:
    file.write(json.dumps(record) + "\n")


def test_tables_in_their_places(project, tmp_path):
  results, readme = project
  text, tables = readme.read_text(), (results / "table1_small.md").read_text()
  starts = [tables.index(f"\n\n{words}") for words in ("Test accuracy in % at", "SOSELETO, for symmetric")]
  first, second = tables[: starts[0]], tables[starts[0] : starts[1]].strip()
  assert "| source only | 55.0 ± 7.1 (2) |" in first and "| source only | 65.0 ± 7.1 (2) |" in second
  between = zip(PLACES, (first, "not run", second), strict=True)
  parts = [f"<!-- {place} -->\n\n{part}\n\n<!-- end -->" for place, part in between]
  assert text == "\n\n".join(["Results:", *parts]) + "\nEnd.\n"
  assert_up_to_date(results, [readme], tmp_path / "rendered")


@pytest.mark.parametrize("change", ["record", "protocol", "table", "stray", "readme", "lost"])
def test_what_is_not_up_to_date_is_found(project, tmp_path, change):
  results, readme = project
  records, table = results / "table1.jsonl", results / "table1_small.md"
  {
    "record": lambda: add_record(records, 2),
    "protocol": lambda: add_record(records, 0, "full"),
    "table": lambda: table.write_text(table.read_text().replace("55.0", "56.0")),
    "stray": lambda: shutil.copy(table, results / "table2_small.md"),
    "readme": lambda: readme.write_text(readme.read_text().replace("55.0", "56.0")),
    "lost": table.unlink,
  }[change]()
  with pytest.raises(AssertionError):
    assert_up_to_date(results, [readme], tmp_path / "rendered")
