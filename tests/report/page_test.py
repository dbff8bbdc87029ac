"""The report page and the figures."""

import base64
import html.parser
import io
import re

import matplotlib
import numpy as np
import pytest
from matplotlib import image as matplotlib_image

from soseleto_jax.data.lazy import Rows
from soseleto_jax.report import figures
from soseleto_jax.report.page import write_report

RECORDS = [
  {
    "step": 10 * i,
    "epoch": i / 2,
    "source_loss": 2 / (i + 1),
    "target_loss": None,
    "test_accuracy": i / 10,
    "alpha_right": 0.5,
    "alpha_wrong": 0.5 - i / 20,
    "auc": 0.5 + i / 20,
  }
  for i in range(5)
]
SUMMARY = {"method": "soseleto", "test_accuracy": 0.7061, "seconds": 3725.0, "auc": float("nan")}
NAMES = ["<b>cat</b>", "a & b", "$x_$"]


@pytest.fixture(autouse=True)
def coarse_pictures():
  """Saves time: the figures themselves are as they are."""
  with matplotlib.rc_context({"savefig.dpi": 20}):
    yield


class Page(html.parser.HTMLParser):
  """Collects the text, the tags and the pictures of a page."""

  def __init__(self, path):
    super().__init__()
    self.tags, self.text, self.images, self.open = [], "", [], []
    self.source = path.read_text(encoding="utf-8")
    self.feed(self.source)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    if tag not in ("meta", "img", "br"):
      self.open.append(tag)
    if tag == "img":
      self.images.append(dict(attrs))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data

  def table(self):
    return re.findall(r'<tr><th scope="row">(.*?)</th><td>(.*?)</td></tr>', self.source)

  def captions(self):
    return re.findall(r"<figcaption>(.*?)</figcaption>", self.source, re.DOTALL)


def make_source(kind, count, known=True, seed=0):
  rng = np.random.default_rng(seed)
  x = {
    "color": lambda: rng.integers(0, 256, (count, 8, 8, 3), np.uint8),
    "gray": lambda: rng.normal(size=(count, 6, 5, 1)).astype(np.float32),
    "points": lambda: rng.uniform(-1, 1, (count, 2)),
    "other": lambda: rng.normal(size=(count, 7)),
  }[kind]()
  source = {"x": x, "label": rng.integers(0, 3, count)}
  if known:
    source["true_label"] = (source["label"] + (rng.random(count) < 0.3)) % 3
  return source, rng.random(count).astype(np.float32)


def write(workdir, source, alpha, **changes):
  arguments = {
    "title": "Run <b>1</b>",
    "config": {"data": {"name": "<digits>"}, "rate": np.float32(0.5)},
    "records": [],
    "summary": SUMMARY,
    "class_names": NAMES,
  }
  path = write_report(workdir, source=source, alpha=alpha, **(arguments | changes))
  assert path == workdir / "report.html"
  page = Page(path)
  assert not page.open
  # Needs nothing from outside, and no scripts.
  assert "://" not in page.source and "url(" not in page.source
  assert not {"script", "link", "iframe", "object"} & set(page.tags)
  for image in page.images:
    head, data = image["src"].split(",")
    assert head == "data:image/png;base64" and image["alt"]
    matplotlib_image.imread(io.BytesIO(base64.b64decode(data)))
  return page, {path.name for path in (workdir / "figures").iterdir()}


@pytest.mark.parametrize("kind", ["color", "points", "other"])
def test_a_source_on_disk(tmp_path, kind):
  """Gives the same page; pictures are read only where they are shown."""

  class OnDisk(Rows):
    read = 0

    def __getitem__(self, index):
      self.read += len(index)
      return super().__getitem__(index)

  source, alpha = make_source(kind, 100)
  x = OnDisk(source["x"])
  pages = [write(tmp_path / str(n), source | {"x": x}, alpha)[0].source for n, x in enumerate((source["x"], x))]
  assert pages[0] == pages[1]
  assert x.read == {"color": 64, "points": 100, "other": 0}[kind]


@pytest.mark.parametrize("kind", ["color", "gray"])
def test_pictures(tmp_path, kind):
  source, alpha = make_source(kind, 100)
  page, files = write(tmp_path, source, alpha, records=RECORDS)
  assert files == {
    "curves.png", "alpha_histogram.png", "retention.png", "lowest.png", "highest.png"
  }  # fmt: skip
  captions = page.captions()
  assert len(captions) == 64
  lowest, highest = np.argmin(alpha), np.argmax(alpha)
  assert f"α = {alpha[lowest]:.3f}" in captions[0] and f"α = {alpha[highest]:.3f}" in captions[32]
  assert page.images[3]["alt"] == f"source example {lowest}"
  wrong = source["label"] != source["true_label"]
  assert ["→" in caption for caption in captions[:32]] == list(wrong[np.argsort(alpha)[:32]])
  assert (tmp_path / "source_weights.csv").read_text().splitlines()[0].endswith("true_label")


def test_a_picture_is_the_right_one(tmp_path):
  source, alpha = make_source("color", 10)
  page, _ = write(tmp_path, source, alpha)
  for position, row in ((2, np.argmin(alpha)), (2 + 5, np.argmax(alpha))):
    data = base64.b64decode(page.images[position]["src"].split(",")[1])
    shown = matplotlib_image.imread(io.BytesIO(data))[..., :3]
    np.testing.assert_array_equal(np.round(shown * 255), source["x"][row])


def test_data_is_escaped(tmp_path):
  source, alpha = make_source("color", 40)
  page, _ = write(tmp_path, source, alpha, summary={"<i>key": "<i>value", "n": [1, "<"]})
  assert "b" not in page.tags and "i" not in page.tags
  for text in (*NAMES, "Run <b>1</b>", "<digits>", "<i>key", "<i>value", '[1, "<"]'):
    assert text in page.text


def test_summary_table(tmp_path):
  summary = {"custom": 12345, "seconds": 75.2, "test_accuracy": np.float32(0.7061), "auc": None}
  page, files = write(tmp_path, None, None, summary=summary, records=RECORDS[:1])
  assert files == {"curves.png"}
  assert page.table() == [
    ("Test accuracy", "70.61 %"),
    ("Area under ROC curve of 1 − α, wrong labels", "–"),
    ("Time", "1 min 15 s"),
    ("custom", "12,345"),
  ]


@pytest.mark.parametrize("known", [True, False])
def test_points(tmp_path, known):
  source, alpha = make_source("points", 50, known)
  page, files = write(tmp_path, source, alpha, class_names=None)
  expected = {"alpha_histogram.png", "points.png"}
  assert files == (expected | {"retention.png"} if known else expected)
  assert len(page.images) == len(files)


@pytest.mark.parametrize("all_right", [False, True])
def test_without_wrong_labels(tmp_path, all_right):
  source, alpha = make_source("color", 70, known=False)
  if all_right:
    source["true_label"] = source["label"]
  page, files = write(tmp_path, source, alpha)
  assert "retention.png" not in files
  assert "→" not in page.text and "arrow" not in page.text


@pytest.mark.parametrize("count, shown", [(1, 2), (9, 10), (64, 64)])
def test_small_sources(tmp_path, count, shown):
  source, alpha = make_source("gray", count)
  page, _ = write(tmp_path, source, alpha)
  assert len(page.captions()) == shown


@pytest.mark.parametrize("kind", ["gray", "points"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_weights(tmp_path, kind, value):
  source, _ = make_source(kind, 40)
  page, _ = write(tmp_path, source, np.full(40, value, np.float32))
  assert f"{40 if value == 0 else 0} of 40 examples ended at α = 0" in page.text
  assert f"{40 if value == 1 else 0} at α = 1" in page.text


@pytest.mark.parametrize("drop_x", [True, False])
def test_inputs_that_cannot_be_drawn(tmp_path, drop_x):
  source, alpha = make_source("other", 40)
  if drop_x:
    del source["x"]
  _, files = write(tmp_path, source, alpha)
  assert files == {"alpha_histogram.png", "retention.png"}


def test_labels_without_a_name(tmp_path):
  source, alpha = make_source("gray", 20, known=False)
  source["label"][:] = 7
  page, _ = write(tmp_path, source, alpha)
  assert all(caption.startswith("7<br>") for caption in page.captions())


def test_the_same_run_gives_the_same_page(tmp_path):
  source, alpha = make_source("color", 10)
  first, _ = write(tmp_path / "a", source, alpha, records=RECORDS)
  second, _ = write(tmp_path / "b", source, alpha, records=RECORDS)
  assert first.source == second.source


def test_curves_have_panels_for_what_there_is():
  def titles(records):
    return [axes.get_title(loc="left") for axes in figures.curves(records).axes]

  assert figures.curves([]) is None
  assert figures.curves([{"step": 1, "epoch": 1, "grad_norm": 3, "auc": None, "name": "x"}]) is None
  assert len(titles(RECORDS)) == 4
  assert titles([{"step": 1, "auc": 0.5}]) == ["1 − α as detector of wrong labels"]
  (axes,) = figures.curves([{"step": 5, "test_loss": 1.0}, {"step": 6, "epoch": 1}]).axes
  assert axes.get_xlabel() == "step"
  assert [line.get_label() for line in axes.get_lines()] == ["test"]


def test_numbers_of_an_evaluator_of_ones_own(tmp_path):
  records = [{**record, "top_5": 0.5 + number / 10, "<i>": None} for number, record in enumerate(RECORDS)]
  assert figures.own_numbers(records) == ["top_5"]
  panels = {axes.get_title(loc="left"): axes for axes in figures.curves(records).axes}
  (line,) = panels.pop("top_5").get_lines()
  np.testing.assert_allclose(line.get_ydata(), [0.5, 0.6, 0.7, 0.8, 0.9])
  assert len(panels) == 4
  records[-1]["top_5"], records[-1]["<i>"] = None, 7  # the last number counts, wherever it stands
  page, _ = write(tmp_path, None, None, records=records, summary={"steps": 9})
  assert page.table() == [("Steps", "9"), ("top_5", "0.8"), ("&lt;i&gt;", "7")]


def test_of_many_own_numbers_the_first_are_drawn(tmp_path):
  records = [{"step": 1, **{f"number {i:02}": i for i in range(20)}}]
  titles = [axes.get_title(loc="left") for axes in figures.curves(records).axes]
  assert titles == [f"number {i:02}" for i in range(8)]
  page, _ = write(tmp_path, None, None, records=records, summary={})
  assert len(page.table()) == 20


def test_a_summary_goes_before_a_number_of_the_same_name(tmp_path):
  page, _ = write(tmp_path, None, None, records=[{"step": 1, "seed": 0.5}], summary={"seed": 3})
  assert page.table() == [("Seed", "3")]


def test_a_long_curve_is_averaged():
  records = [{"step": i, "source_loss": float(i % 2)} for i in range(1000)]
  every, mean = figures.curves(records).axes[0].get_lines()
  assert len(every.get_xdata()) == 1000 and len(mean.get_xdata()) == 100
  np.testing.assert_allclose(mean.get_ydata(), 0.5)


@pytest.mark.filterwarnings("error")
def test_a_source_whose_labels_are_all_wrong():
  alpha, wrong = np.array([0.25, 0.75]), np.array([True, True])
  (axes,) = figures.alpha_histogram(alpha, wrong).axes
  texts = [text.get_text() for text in axes.get_legend().get_texts()]
  assert texts == ["wrong labels: 2, mean 0.50"]
  line = figures.retention(alpha, wrong).axes[0].get_lines()[0]
  np.testing.assert_array_equal(line.get_ydata(), 1)


@pytest.mark.parametrize(
  "images, expected",
  [
    (np.uint8([0, 100]), [0, 100]),
    (np.array([0.0, 1.0]), [0, 255]),
    (np.array([0.0, 0.5]), [0, 128]),
    (np.array([0.0, 100.0]), [0, 100]),
    (np.array([-2.0, 0.0, 2.0]), [0, 128, 255]),
    (np.array([-1.0, -1.0]), [0, 0]),
    (np.array([np.nan, 1.0]), [0, 255]),
  ],
)
def test_displayable(images, expected):
  result = figures.displayable(images.reshape(-1, 1, 1, 1))
  assert result.dtype == np.uint8 and result.shape == (len(images), 1, 1, 3)
  np.testing.assert_array_equal(result[:, 0, 0, 1], expected)


def test_global_state_is_left_alone(tmp_path):
  before = dict(matplotlib.rcParams)
  source, alpha = make_source("points", 20)
  write(tmp_path, source, alpha)
  assert dict(matplotlib.rcParams) == before


def test_lengths_must_agree(tmp_path):
  source, alpha = make_source("gray", 20)
  with pytest.raises(ValueError, match="label has shape"):
    write(tmp_path, source, alpha[:-1])
