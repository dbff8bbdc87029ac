"""Which images the weights favour, and what is drawn of it."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import runs, svhn_instances, table2
from soseleto_jax.config import default_config
from soseleto_jax.data import tfds
from soseleto_jax.report import figures

pytestmark = pytest.mark.usefixtures("no_report")

ROWS = np.arange(40) * 3 + 1  # of the images in their split
SPLIT = {"x": np.arange(120, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)}
SPLIT["label"] = np.repeat([0, 5], 60)


def make_record(shares=(0.25, 0.75), accuracy=0.9, seed=4, of=svhn_instances.DRAWN):
  runs_of_seed = svhn_instances.make_runs("full", [seed])
  config = next(run.config for run in runs_of_seed if (run.method, run.conditions) == of).to_dict()
  config["data"]["source"]["classes"] = (0, 5)
  ends = [{"row": [7, 1], "alpha": [1.0, 0.5]}, {"row": [61, 70], "alpha": [0.75, 0.25]}]
  metrics = {
    "test_accuracy": accuracy,
    "num_source": 60_000,
    "class_names": ["0", "5"],
    "high_share": list(shares),
    "mean_alpha": [0.5, 0.75],
    "highest": ends,
    "lowest": [{name: values[::-1] for name, values in end.items()} for end in ends],
  }
  return {"method": of[0], "conditions": of[1], "config": config, "metrics": metrics}


def test_instances():
  label = np.arange(40) % 2
  alpha = np.linspace(0, 0.99, 40).astype(np.float32)
  alpha[[1, 3, 39]] = 0.8, 1.0, 1.0
  found = svhn_instances.instances(alpha, label, ROWS, ("a", "b"), 0.5)
  assert found["class_names"] == ["a", "b"]
  expected = [np.mean(alpha[label == c] > 0.8) for c in (0, 1)]  # 0.8 itself is just above, as float32
  np.testing.assert_allclose(found["high_share"], expected)
  np.testing.assert_allclose(found["mean_alpha"], [alpha[label == c].mean() for c in (0, 1)], rtol=1e-6)
  assert found["lowest"][0]["row"] == ROWS[0:20:2].tolist()
  assert found["highest"][0]["row"] == ROWS[38:18:-2].tolist()
  assert set(found["highest"][1]["row"][:2]) == {ROWS[3], ROWS[39]} and found["highest"][1]["alpha"][:2] == [1, 1]
  np.testing.assert_allclose(found["lowest"][1]["alpha"], np.sort(alpha[label == 1])[:10], atol=5e-5)


def test_of_equal_weights_some_are_drawn():
  rows = svhn_instances.instances(np.ones(1000, np.float32), np.zeros(1000, int), np.arange(1000), ("a",), 0.5)
  assert np.ptp(rows["highest"][0]["row"]) > 300 and np.ptp(rows["lowest"][0]["row"]) > 300


def test_images_that_were_not_drawn_do_not_count():
  alpha, label = np.full(40, 0.1, np.float32), np.arange(40) % 2
  alpha[[0, 2, 4, 1]] = 0.9, 1.0, 0.2, 0.7
  found = svhn_instances.instances(alpha, label, ROWS, ("a", "b"), 0.1)
  assert found["num_seen"] == [3, 1] and found["high_share"] == pytest.approx([2 / 3, 0])
  np.testing.assert_allclose(found["mean_alpha"], [0.7, 0.7], rtol=1e-6)
  assert found["lowest"][0]["row"] == [ROWS[4], ROWS[0], ROWS[2]] and found["highest"][1]["row"] == [ROWS[1]]


def test_a_run_tells_of_its_images(tmp_path):
  config = default_config()
  config.data.shared_classes = False
  config.data.source.dataset = "digits"
  config.data.target.update(dataset="digits", classes=(5, 6, 7, 8, 9), num_examples=25, num_validation=20)
  config.model = dict(name="mlp", hidden=(8,), dtype="float32")
  config.update(num_steps=4, target_batch_size=10, pretrain_epochs=0.1)
  config.alpha.step_size = 100.0
  values = svhn_instances.train(config, tmp_path / "run")
  assert sum(values["num_seen"]) == 4 * config.batch_size  # none twice in the first pass
  task = runs.task_of(config)
  for name in ("highest", "lowest"):
    for digit, listed in enumerate(values[name]):
      at = np.searchsorted(task.source["row"], listed["row"])
      assert np.all(task.source["label"][at] == digit) and len(set(listed["row"])) == 10
  assert min(values["highest"][0]["alpha"]) > max(values["lowest"][0]["alpha"])
  assert svhn_instances.train(config, tmp_path / "run")["highest"] == values["highest"]


def test_settings_are_those_of_table_2_with_all_digits():
  of_table = {(run.method, run.conditions["augmented"]): run.config for run in table2.make_runs("full", [3])}
  chosen = svhn_instances.make_runs("full", [3])
  assert len({run.folder() for run in chosen}) == len(chosen) == 8
  for run in chosen:
    expected = of_table[run.method, run.conditions["augmented"]].copy_and_resolve_references()
    assert run.config.data.source.classes == tuple(range(10)) and run.config.data.target.num_examples == 25
    expected.data.source.classes, expected.name = run.config.data.source.classes, run.config.name
    expected.data.target.num_examples = expected.target_batch_size = 25
    assert run.config.to_dict() == expected.to_dict()


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
  other = make_record((0.5, 0.25), 0.7, of=("soseleto", {"augmented": False}))
  joint = make_record((), 0.75, of=("joint", {"augmented": True}))
  for name in ("class_names", "high_share", "mean_alpha", "highest", "lowest"):  # of weights
    del joint["metrics"][name]
  svhn_instances.render("full", [joint, other, make_record(), make_record((0.75, 0.75), 0.8, 5)], tmp_path)
  text = (tmp_path / "svhn_instances_full.md").read_text()
  cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
  assert cells[4][4:] == ["85.0 ± 7.1 (2)", "90.3", "-5.3"] and cells[3][1:4] == ["70.0 (1)", "90.3", "-20.3"]
  assert "60,000 SVHN images, of 73,257" in text and cells[4][1] == "not run"
  joint = "source, then both jointly"
  assert cells[2] == [joint, "not run", "", "", "75.0 (1)", "", ""]
  assert [joint, "not run", "", "", "15.0 (1)", "", "1 of 1"] in cells
  assert ["0", "50.0 (1)", "not run", "not run", "50.0 ± 35.4 (2)"] in cells
  assert ["5-9, mean", "25.0 (1)", "not run", "not run", "75.0 ± 0.0 (2)"] in cells
  assert ["5-9 minus 0-4", "-25.0 (1)", "not run", "not run", "25.0 ± 35.4 (2)"] in cells
  assert ["5", "0.750 (1)", "not run", "not run", "0.750 ± 0.000 (2)"] in cells
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
  svhn_instances.render("full", [], tmp_path)
  text = (tmp_path / "svhn_instances_full.md").read_text()
  assert "| not run | 90.3 |  | not run | 90.3 |  |" in text and not list(tmp_path.glob("*.png"))
