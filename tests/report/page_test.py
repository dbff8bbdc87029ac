"""The report page and the figures."""

import base64
import html.parser
import io
import os
import re

import matplotlib
import numpy as np
import pytest
from matplotlib import image as matplotlib_image

from soseleto_jax.data.lazy import Rows
from soseleto_jax.report import figures
from soseleto_jax.report.page import write_report
from soseleto_jax.report.sheets import link
from soseleto_jax.report.source_list import SourceList, Suggestions

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
    self.tags, self.text, self.images, self.links, self.open = [], "", [], [], []
    self.examples, self.options, self.scripts = [], [], []
    self.source = path.read_text(encoding="utf-8")
    self.feed(self.source)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    if tag not in ("meta", "img", "br"):
      self.open.append(tag)
    attrs = dict(attrs)
    if tag == "img":
      self.images.append(attrs)
    if tag == "script":
      self.scripts.append(attrs)
    if tag == "a":
      self.links.append(attrs["href"])
    if tag == "option":
      self.options.append(attrs["value"])
    if "data-given" in attrs:
      self.examples.append(attrs)

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


def write(workdir, source, alpha, class_names=NAMES, file=None, suggestions=None, **changes):
  arguments = {
    "title": "Run <b>1</b>",
    "config": {"data": {"name": "<digits>"}, "rate": np.float32(0.5)},
    "records": [],
    "summary": SUMMARY,
  }
  if source is None:
    arguments |= {"listed": None}
  else:
    known = source.get("true_label")
    listed = SourceList(alpha, source["label"], None, file, suggestions, known, class_names)
    arguments |= {"x": source.get("x"), "listed": listed}
  path = write_report(workdir, **(arguments | changes))
  assert path == workdir / "report.html"
  page = Page(path)
  assert not page.open
  # Needs nothing from outside.
  assert "://" not in page.source and "url(" not in page.source
  assert not {"link", "iframe", "object"} & set(page.tags)
  assert page.scripts == [{}] * len(page.scripts)
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
  assert x.read == {"color": len(Page(tmp_path / "1" / "report.html").examples), "points": 100, "other": 0}[kind]


@pytest.mark.parametrize("kind", ["color", "gray"])
def test_pictures(tmp_path, kind):
  source, alpha = make_source(kind, 100)
  page, files = write(tmp_path, source, alpha, records=RECORDS)
  assert files == {
    "curves.png", "alpha_histogram.png", "retention.png", "most_suspect.png", "least_suspect.png"
  }  # fmt: skip
  captions = [
    caption for caption, example in zip(page.captions(), page.examples, strict=True) if "hidden" not in example
  ]
  assert len(captions) == 64
  lowest, highest = np.argmin(alpha), np.argmax(alpha)
  assert f"α = {alpha[lowest]:.3f}" in captions[0] and f"α = {alpha[highest]:.3f}" in captions[32]
  assert page.images[3]["alt"] == f"source example {lowest}"
  wrong = source["label"] != source["true_label"]
  assert ['class="wrong"' in caption for caption in captions[:32]] == list(wrong[np.argsort(alpha)[:32]])


def test_more_of_each_class_wait_until_it_is_chosen(tmp_path):
  """Behind the first 32 of a sheet, up to 32 of a class, in the list's order."""
  source, alpha = make_source("color", 300)
  source["label"] = np.repeat([0, 1, 2], [250, 45, 5])
  page, _ = write(tmp_path, source, alpha)
  rows = [int(image["alt"].rsplit(" ", 1)[1]) for image in page.images if "example" in image["alt"]]
  cut = rows.index(np.argmax(alpha))
  for sheet, order in ((slice(0, cut), np.argsort(alpha)), (slice(cut, None), np.argsort(-alpha))):
    examples = page.examples[sheet]
    assert ["hidden" in example for example in examples] == [False] * 32 + [True] * (len(examples) - 32)
    assert rows[sheet][:32] == order[:32].tolist() and len(set(rows[sheet])) == len(examples)
    for c, count in enumerate((32, 32, 5)):
      found = [row for row in rows[sheet] if source["label"][row] == c]
      first = [row for row in order if source["label"][row] == c][:count]
      assert sorted(found) == sorted(first) or len(found) > 32 and set(first) < set(found)
  assert page.options == ["", "0", "1", "2"]


def test_what_the_network_suggests(tmp_path):
  source, alpha = make_source("other", 5, known=False)
  source["label"], alpha = np.array([0, 1, 2, 0, 1]), np.arange(5, dtype=np.float32) / 10
  said = Suggestions(np.full(5, 0.1, np.float32), np.array([1, 1, 0, 0, 2], np.int32), np.full(5, 0.9, np.float32))
  page, files = write(tmp_path, source, alpha, suggestions=said)
  rows = [re.sub(r"\s+", " ", row) for row in re.findall(r"<tr data-given.*?</tr>", page.source, re.DOTALL)]
  assert ["→ a &amp; b 90 %" in row for row in rows[:3]] == [True, False, False]
  assert "→" not in rows[1] and "→ &lt;b&gt;cat&lt;/b&gt; 90 %" in rows[2]
  assert [example["data-suggested"] for example in page.examples[:3]] == ["1", "1", "0"]
  assert page.options == ["", "0", "1", "2", "", "0", "1", "2"] and "examples" in page.source
  assert files == {"alpha_histogram.png"}


@pytest.mark.parametrize("kind", ["color", "other"])
@pytest.mark.parametrize("known", [True, False])
def test_labels_that_are_no_classes(tmp_path, kind, known):
  source, alpha = make_source(kind, 5)
  value = np.array([0.5, 1, 2, 3, 4], np.float32)
  truth = {"true_value": value + [0, 10, 0, 0, 0], "known_wrong": np.arange(5) == 1} if known else {}
  path = write_report(
    tmp_path, title="", config={}, records=[], x=source["x"], summary={}, listed=SourceList(alpha, value=value, **truth)
  )
  page = Page(path)
  assert not page.options and not page.examples
  for text in ("0.5", "4"):
    assert f"<span>{text}</span>" in page.source
  assert ('<span class="wrong">1 (11)</span>' in page.source) == known


@pytest.mark.parametrize("kind", ["color", "other"])
def test_files_are_linked(tmp_path, monkeypatch, kind):
  """Relative to the page, or absolute, as they were given."""
  monkeypatch.chdir(tmp_path)
  source, alpha = make_source(kind, 4)
  file = np.array(["web/a #1.jpg", "web/<b>/2.jpg", "/data/\u00e9.jpg", "~/4.jpg"], np.dtypes.StringDType())
  monkeypatch.setattr(os.path, "expanduser", lambda path: path.replace("~", "/home/me"))
  links = [link(name, "runs/mine") for name in file]
  assert links == [
    "../../web/a%20%231.jpg", "../../web/%3Cb%3E/2.jpg", "file:///data/%C3%A9.jpg", "file:///home/me/4.jpg",
  ]  # fmt: skip
  assert link("gs://bucket/web/a #1.jpg", "runs/mine") == "https://storage.cloud.google.com/bucket/web/a%20%231.jpg"
  listed = SourceList(alpha, source["label"], None, file, None, None, NAMES)
  path = write_report("runs/mine", title="", config={}, records=[], listed=listed, x=source["x"], summary={})
  page = Page(path)
  assert set(page.links) == set(links)
  for name in ("a #1.jpg", "2.jpg", "\u00e9.jpg"):
    assert f">{name}</a>" in page.source


def test_large_pictures_are_made_smaller(tmp_path):
  source = {"x": np.zeros((1, 320, 200, 3), np.uint8), "label": np.zeros(1, int)}
  page, _ = write(tmp_path, source, np.zeros(1, np.float32))
  shown = matplotlib_image.imread(io.BytesIO(base64.b64decode(page.images[1]["src"].split(",")[1])))
  assert shown.shape[:2] == (160, 100)


def test_what_was_left_out(tmp_path):
  page, _ = write(tmp_path, None, None, summary={"left_out": {"of other classes": 1200, "unreadable": 1}})
  assert page.table() == [("Left out of the source", "1,200 of other classes; 1 unreadable")]


def test_a_picture_is_the_right_one(tmp_path):
  source, alpha = make_source("color", 10)
  page, _ = write(tmp_path, source, alpha)
  pictures = [image for image in page.images if "example" in image["alt"]]
  assert pictures[0]["alt"] == f"source example {np.argmin(alpha)}"
  assert {int(image["alt"].rsplit(" ", 1)[1]) for image in pictures} == set(range(10))
  for image in pictures:
    row = int(image["alt"].rsplit(" ", 1)[1])
    data = base64.b64decode(image["src"].split(",")[1])
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
  assert 'class="wrong"' not in page.source and "brackets" not in page.text


@pytest.mark.parametrize("count, shown", [(1, 2), (9, 10), (64, 64)])
def test_small_sources(tmp_path, count, shown):
  source, alpha = make_source("gray", count)
  page, _ = write(tmp_path, source, alpha)
  assert sum("hidden" not in example for example in page.examples) == shown


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
  assert page.captions() and all(caption.startswith("<span>7</span><br>") for caption in page.captions())


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
  assert titles([{"step": 1, "alpha_mean": 0.5, "loss": 1.0}]) == ["Loss", "Mean weight of the source"]
  assert titles([{"step": 1, "alpha_mean": 0.5, "alpha_wrong": 0.1}]) == ["Weights of right and wrong labels"]
  (axes,) = figures.curves([{"step": 5, "test_loss": 1.0}, {"step": 6, "epoch": 1}]).axes
  assert axes.get_xlabel() == "step"
  assert [line.get_label() for line in axes.get_lines()] == ["test"]


@pytest.mark.filterwarnings("error")
def test_steps_of_alpha_are_drawn_beside_what_is_sufficient():
  """On a logarithmic axis, on which a step of 0 has no place."""
  steps = [{"step": n, "alpha_step_size": size, "alpha_step_bound": 40.0} for n, size in enumerate([0.5, 0.25, 0.0])]
  (axes,) = figures.curves(steps).axes
  assert (axes.get_title(loc="left"), axes.get_yscale()) == ("Step of α", "log")
  used, bound = (line.get_ydata().tolist() for line in axes.get_lines())
  assert used == [0.5, 0.25, 0.0] and bound == [40.0] * 3


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
