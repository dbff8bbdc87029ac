"""Pages of documentation as the tests read them."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent


def python_blocks(page):
  """The Python in a page, with the lines that it stands at."""
  text = page.read_text(encoding="utf-8")
  for match in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
    yield text.count("\n", 0, match.start(1)), match[1]


def sections(page):
  """The headings of a page that have Python under them."""
  return [heading for heading, _ in _by_section(page)[1:]]


def run_section(page, heading):
  """Runs the Python before the first heading and that of one section, and returns the namespace."""
  (_, common), *others = _by_section(page)
  names = {"__name__": "page"}
  for line, block in [*common, *dict(others)[heading]]:
    exec(compile("\n" * line + block, str(page), "exec"), names)
  return names


def _by_section(page):
  """Headings of the second level with their blocks; first those before any, under ""."""
  lines = page.read_text(encoding="utf-8").splitlines()
  starts = {number: line[3:] for number, line in enumerate(lines) if line.startswith("## ")}
  found = {"": []}
  for line, block in python_blocks(page):
    heading = next((starts[number] for number in reversed(starts) if number < line), "")
    found.setdefault(heading, []).append((line, block))
  return list(found.items())


def run(page):
  """Runs a page's Python in order, in one namespace, which it returns; the traceback has the page's own lines."""
  names = {"__name__": "page"}
  for line, block in python_blocks(page):
    exec(compile("\n" * line + block, str(page), "exec"), names)
  return names
