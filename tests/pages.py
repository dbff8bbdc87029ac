"""Pages of documentation as the tests read them."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent


def python_blocks(page):
  """The Python in a page, with the lines that it stands at."""
  text = page.read_text(encoding="utf-8")
  for match in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
    yield text.count("\n", 0, match.start(1)), match[1]


def run(page):
  """Runs a page's Python in order, in one namespace, which it returns; the traceback has the page's own lines."""
  names = {"__name__": "page"}
  for line, block in python_blocks(page):
    exec(compile("\n" * line + block, str(page), "exec"), names)
  return names
