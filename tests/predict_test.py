"""New images and vectors, classified by the command."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from soseleto_jax import predict, train_and_evaluate
from soseleto_jax.data import deskewing, isolation
from soseleto_jax.data.images import Look
from soseleto_jax.run import interface
from tests import runs

CLASSES = ("cat", "dog", "owl")


@pytest.fixture(scope="module")
def result(tmp_path_factory):
  """Of a run on images of 6x6 bytes, whose config pads what is no square."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr("soseleto_jax.report.page.write_report", lambda workdir, **_: workdir / "report.html")
    workdir = tmp_path_factory.mktemp("run")
    names = {"source_class_names": CLASSES, "target_class_names": CLASSES}
    config = runs.make_config(num_epochs=1, data__target__aspect="pad", data__target__background="#000000")
    return train_and_evaluate(config, workdir, runs.make_task(shape=(6, 6, 3), **names))


@pytest.fixture
def run(result):
  """The run's folder."""
  return result.report.parent


def rows_of(path):
  with open(path, newline="", encoding="utf-8") as file:
    return list(csv.DictReader(file))


def assert_predicts(rows, x, result, files):
  probability = result.predict_proba(x)
  assert [row["file"] for row in rows] == files and [int(row["row"]) for row in rows] == list(range(len(x)))
  assert [int(row["label"]) for row in rows] == np.argmax(probability, axis=1).tolist()
  assert [row["label_name"] for row in rows] == [CLASSES[label] for label in np.argmax(probability, axis=1)]
  np.testing.assert_array_equal(np.float32([row["probability"] for row in rows]), probability.max(axis=1))


def test_a_folder_of_images(result, run, tmp_path, monkeypatch, capsys):
  """Of any size and depth of folders; what is no image by its name is passed over."""
  monkeypatch.chdir(tmp_path)
  rng, shown = np.random.default_rng(0), {}
  for name, shape in {"new/b.png": (6, 6, 3), "new/a.png": (12, 6, 3), "new/deep/er/c.PNG": (20, 20, 4)}.items():
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    shown[name] = Image.fromarray(rng.integers(0, 256, shape, np.uint8))
    shown[name].save(tmp_path / name)
  (tmp_path / "new" / "notes.txt").write_text("no image")
  predict.main([f"--workdir={run}", "--images=new/", "--output=out.csv"])
  files = ["new/a.png", "new/b.png", "new/deep/er/c.PNG"]
  x = np.stack([np.asarray(Look("RGB", 6, "pad", "#000000").of(shown[name])) for name in files])
  assert_predicts(rows_of("out.csv"), x, result, files)
  assert capsys.readouterr().out == "3 predictions: out.csv\n"


@pytest.mark.parametrize("checkpoint", ["last", "best"])
def test_an_array(result, run, tmp_path, checkpoint, monkeypatch):
  x = np.random.default_rng(1).integers(0, 256, (23, 6, 6, 3), np.uint8)
  np.save(tmp_path / "new.npy", x)
  monkeypatch.setattr("soseleto_jax.data.lazy._CHUNK", 1000)  # several parts
  predict.main([f"--workdir={run}", f"--images={tmp_path}/new.npy", f"--output={tmp_path}/o.csv",
                f"--checkpoint={checkpoint}"])  # fmt: skip
  assert result.summary["best_checkpoint"] == int(result.state.step)  # after one epoch they are the same
  assert_predicts(rows_of(tmp_path / "o.csv"), x, result, [""] * 23)


@pytest.mark.parametrize(
  "images, message",
  [
    ("missing", "'.*missing' is no folder"),
    ("missing.npy", "missing.npy cannot be read"),
    ("empty", "empty holds no images"),
    ("broken", "1.png cannot be read as an image"),
    ("other.npy", r"x has shape \(2, 5\): the network takes \(N, 6, 6, 3\)"),
  ],
)
def test_what_cannot_be_read(run, tmp_path, images, message):
  """Nothing is written."""
  (tmp_path / "empty").mkdir()
  (tmp_path / "broken").mkdir()
  (tmp_path / "broken" / "1.png").write_text("no image")
  np.save(tmp_path / "other.npy", np.zeros((2, 5)))
  with pytest.raises(SystemExit, match=f"error: .*{message}"):
    predict.main([f"--workdir={run}", f"--images={tmp_path / images}", f"--output={tmp_path}/o.csv"])
  assert not list(tmp_path.glob("*o.csv*"))


def test_files_that_cannot_be_read_may_be_skipped(run, tmp_path):
  (tmp_path / "new").mkdir()
  (tmp_path / "new" / "1.png").write_text("no image")
  Image.new("RGB", (6, 6)).save(tmp_path / "new" / "2.png")
  predict.main([f"--workdir={run}", f"--images={tmp_path}/new", f"--output={tmp_path}/o.csv", "--on_unreadable=skip"])
  assert [row["file"] for row in rows_of(tmp_path / "o.csv")] == [f"{tmp_path}/new/2.png"]


def test_a_network_of_vectors_takes_no_images(run, tmp_path):
  fields = json.loads((run / "task.json").read_text()) | {"shape": [5]}
  (tmp_path / "task.json").write_text(json.dumps(fields))
  with pytest.raises(ValueError, match=r"takes no images but inputs \(5,\); give a .npy file"):
    predict.read_inputs(str(tmp_path), interface.read(tmp_path))


@pytest.mark.parametrize("isolate", [False, True])
def test_gray_images_are_made_as_those_of_training_were(run, tmp_path, isolate):
  fields = json.loads((run / "task.json").read_text()) | {"shape": [14, 14, 1]}
  (tmp_path / "task.json").write_text(json.dumps(fields))
  image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20), np.uint8))
  image.save(tmp_path / "new.png")
  side = {"isolate": isolate, "deskew": True}
  found = predict.read_inputs(str(tmp_path), interface.read(tmp_path), side)["x"]
  small = np.asarray(Look("L", 14).of(image))[None].reshape(1, 14, 14, 1)
  if isolate:
    small = isolation.isolate(np.asarray(image)[None, ..., None], 14)
  np.testing.assert_array_equal(found, deskewing.deskew(small))


def test_no_run(tmp_path):
  with pytest.raises(SystemExit, match="error: .*config.json is not there: give the folder of a run"):
    predict.main([f"--workdir={tmp_path}", "--images=x"])
