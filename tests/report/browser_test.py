"""The report in a browser, where there is one: classes are chosen, and links lead to files."""

import numpy as np
import pytest
from PIL import Image

from soseleto_jax.report.page import write_report
from soseleto_jax.report.source_list import SourceList, Suggestions
from tests import browser

pytestmark = pytest.mark.skipif(browser.find() is None, reason="there is no Chromium")

COUNT, NAMES = 120, ("cat & co", "dog", "owl")
SHOWN = '[...document.querySelectorAll("figure[data-given]")].filter((tile) => tile.checkVisibility())'


@pytest.fixture
def page(tmp_path, monkeypatch):
  """A browser with the report of a run on files of which 90 are cats, 25 dogs and 5 owls."""
  monkeypatch.chdir(tmp_path)
  rng = np.random.default_rng(0)
  label = np.repeat([0, 1, 2], [90, 25, 5])
  x = rng.integers(0, 256, (COUNT, 8, 8, 3), np.uint8)
  files = [f"web/{NAMES[label[row]]}/{row} #{row % 7}.png" for row in range(COUNT)]
  for image, file in zip(x, files, strict=True):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(tmp_path / file)
  suggested = np.where(np.arange(COUNT) % 2, label, (label + 1) % 3).astype(np.int32)
  said = Suggestions(np.full(COUNT, 0.1, np.float32), suggested, np.full(COUNT, 0.8, np.float32))
  listed = SourceList(
    np.linspace(0, 1, COUNT), label, None, np.array(files, np.dtypes.StringDType()), said, class_names=NAMES
  )
  listed.write("runs")
  path = write_report("runs", title="Photos", config={}, records=[], listed=listed, x=x, summary={"steps": 3})
  with browser.Browser(tmp_path / "profile") as opened:
    opened.open(path.absolute().as_uri())
    yield opened


def choose(page, kind, value):
  page.run(f"""{{
    const select = document.querySelector('select[name="{kind}"]');
    select.value = "{value}";
    select.dispatchEvent(new Event("change", {{bubbles: true}}));
  }}""")


def test_the_report_in_a_browser(page):
  assert page.run("document.title") == "Photos"
  assert page.run(f"{SHOWN}.length") == 64

  choose(page, "given", "1")
  assert page.run(f"new Set({SHOWN}.map((tile) => tile.dataset.given)).size") == 1
  assert page.run(f"{SHOWN}.map((tile) => tile.innerText)[0]").startswith("dog")
  assert page.run(f"{SHOWN}.length") == 50  # all dogs, in either sheet, those too that are not among its first 32
  choose(page, "suggested", "2")
  assert page.run(f"new Set({SHOWN}.map((tile) => tile.dataset.given + tile.dataset.suggested)).size") == 1
  choose(page, "given", "")
  choose(page, "suggested", "")
  assert page.run(f"{SHOWN}.length") == 64

  assert page.run(f'{SHOWN}[0].querySelector("a").textContent') == "0 #0.png"
  page.run(f'{SHOWN}[0].querySelector("a").click()')
  page.loaded()
  assert page.run("document.location.pathname").endswith("/web/cat%20%26%20co/0%20%230.png")
  assert page.run("document.images[0].naturalWidth") == 8  # and it is that picture
