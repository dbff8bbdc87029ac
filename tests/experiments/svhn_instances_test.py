"""Which images the weights favour, and what is drawn of it."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import runs, svhn_instances
from soseleto_jax.config import default_config
from soseleto_jax.data import tfds
from soseleto_jax.report import figures

pytestmark = pytest.mark.usefixtures("no_report")

ROWS = np.arange(40) * 3 + 1  # of the images in their split
SPLIT = {"x": np.arange(120, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)}
SPLIT["label"] = np.repeat([0, 5], 60)


def make_record(shares=(0.25, 0.75), accuracy=0.9, seed=4):
  config = svhn_instances._config("full", seed).to_dict()
  config["data"]["source"]["classes"] = (0, 5)
  ends = [{"row": [7, 1], "alpha": [1.0, 0.5]}, {"row": [61, 70], "alpha": [0.75, 0.25]}]
  metrics = {
    "test_accuracy": accuracy,
    "test_accuracy_at_best": accuracy + 0.02,
    "num_source": 60_000,
    "class_names": ["0", "5"],
    "high_share": list(shares),
    "highest": ends,
    "lowest": [{name: values[::-1] for name, values in end.items()} for end in ends],
  }
  return {"method": "soseleto", "conditions": {}, "config": config, "metrics": metrics}


def test_instances():
  label = np.arange(40) % 2
  alpha = np.linspace(0, 0.99, 40).astype(np.float32)
  alpha[[1, 3, 39]] = 0.8, 1.0, 1.0
  found = svhn_instances.instances(alpha, label, ROWS, ("a", "b"))
  assert found["class_names"] == ["a", "b"]
  expected = [np.mean(alpha[label == c] > 0.8) for c in (0, 1)]  # 0.8 itself is just above, as float32
  np.testing.assert_allclose(found["high_share"], expected)
  assert found["lowest"][0]["row"] == ROWS[0:20:2].tolist()
  assert found["highest"][0]["row"] == ROWS[38:18:-2].tolist()
  assert set(found["highest"][1]["row"][:2]) == {ROWS[3], ROWS[39]} and found["highest"][1]["alpha"][:2] == [1, 1]
  np.testing.assert_allclose(found["lowest"][1]["alpha"], np.sort(alpha[label == 1])[:10], atol=5e-5)


def test_of_equal_weights_some_are_drawn():
  rows = svhn_instances.instances(np.ones(1000, np.float32), np.zeros(1000, int), np.arange(1000), ("a",))
  assert np.ptp(rows["highest"][0]["row"]) > 300 and np.ptp(rows["lowest"][0]["row"]) > 300


def test_a_run_tells_of_its_images(tmp_path):
  config = default_config()
  config.data.shared_classes = False
  config.data.source.dataset = "digits"
  config.data.target.update(dataset="digits", classes=(5, 6, 7, 8, 9), num_examples=25, num_validation=20)
  config.model = dict(name="mlp", hidden=(8,), dtype="float32")
  config.update(num_epochs=1, target_batch_size=10)
  config.alpha.step_size = 100.0
  values = svhn_instances.train(config, tmp_path / "run")
  task = runs.task_of(config)
  for name in ("highest", "lowest"):
    for digit, listed in enumerate(values[name]):
      at = np.searchsorted(task.source["row"], listed["row"])
      assert np.all(task.source["label"][at] == digit) and len(set(listed["row"])) == 10
  assert min(values["highest"][0]["alpha"]) > max(values["lowest"][0]["alpha"])
  assert svhn_instances.train(config, tmp_path / "run")["highest"] == values["highest"]


def test_protocols():
  full, small = (svhn_instances.make_runs(protocol, [3])[0].config for protocol in ("full", "small"))
  assert (full.data.source.num_examples, small.data.source.num_examples) == (0, 10_000)
  assert full.data.source.classes == tuple(range(10)) and full.data.target.num_examples == 25
  assert full.seed == small.seed == 3


def test_bars():
  shares = np.array([[0.25, 0.5, 0.75], [0.75, 0.5, 0.25]])
  axes = svhn_instances.draw_shares(["4", "5", "6"], shares, np.array([False, True, True])).axes[0]
  heights = {bar.get_x() + bar.get_width() / 2: bar.get_height() for bar in axes.patches}
  assert {round(place): height for place, height in heights.items()} == {0: 0.5, 1: 0.5, 2: 0.5}
  of_target, other = [c for c in axes.containers if c.get_label()[0] != "_"]
  assert (len(of_target), of_target.get_label(), len(other)) == (2, "also a target class", 1)
  assert [tick.get_text() for tick in axes.get_xticklabels()] == ["4", "5", "6"]


def test_table_and_sheets(tmp_path, monkeypatch):
  sheets = []
  monkeypatch.setattr(tfds, "load", lambda *_, **__: SPLIT)
  monkeypatch.setattr(figures, "example_sheet", lambda *arguments: sheets.append(arguments) or Figure())
  svhn_instances.render("full", [make_record(), make_record((0.75, 0.75), 0.8, 5)], tmp_path)
  text = (tmp_path / "svhn_instances_full.md").read_text()
  assert "| last epoch | 60,000 | 85.0 ± 7.1 (2) | 90.3 | -5.3 |" in text and "of 73,257" in text
  assert "| 0 | 50.0 ± 35.4 (2) |" in text and "| 5 | 75.0 ± 0.0 (2) |" in text
  assert "| 5-9, mean | 75.0 ± 0.0 (2) |" in text and "| 0-4, mean | 50.0 ± 35.4 (2) |" in text
  (high, high_captions, columns), (low, low_captions, _) = sheets
  assert high[:, 0, 0, 0].tolist() == [7, 1, 61, 70] and low[:, 0, 0, 0].tolist() == [1, 7, 70, 61]
  assert high_captions == ["0: α 1.000", "0: α 0.500", "5: α 0.750", "5: α 0.250"] and columns == 10
  assert low_captions[-1] == "5: α 0.750"
  assert sorted(path.name[-11:] for path in tmp_path.glob("*.png")) == ["figure3.png", "figure4.png", "figure5.png"]


def load_nothing(*_, **__):
  raise RuntimeError("the data set 'svhn_cropped' is not ready")


@pytest.mark.parametrize(
  ("load", "why"),
  [
    (load_nothing, "'svhn_cropped' is not ready"),
    (lambda *_, **__: SPLIT | {"label": SPLIT["label"][::-1]}, "another copy of svhn_cropped"),
    (lambda *_, **__: {name: values[:65] for name, values in SPLIT.items()}, "another copy of svhn_cropped"),
  ],
)
def test_sheets_that_cannot_be_drawn(tmp_path, monkeypatch, caplog, load, why):
  monkeypatch.setattr(tfds, "load", load)
  svhn_instances.render("full", [make_record()], tmp_path)
  assert why in caplog.text
  assert [path.name for path in tmp_path.glob("*.png")] == ["svhn_instances_full_figure3.png"]


def test_nothing_run(tmp_path):
  svhn_instances.render("small", [], tmp_path)
  assert "| last epoch | No | not run | 90.3 |  |" in (tmp_path / "svhn_instances_small.md").read_text()
