"""From data as people have it to a result, in one call."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import soseleto_jax
from soseleto_jax.models.mlp import MLP

pytestmark = pytest.mark.usefixtures("no_report")

NAMES = np.array(["ape", "bee", "cow"])


def points(count, seed):
  """Points around one centre for each class, and their labels as names."""
  rng = np.random.default_rng(seed)
  label = np.arange(count) % 3
  return (rng.normal(size=(count, 4)) + 4 * np.eye(4)[label]).astype(np.float32), label


def fit(*sets, **fields):
  """Two short epochs, without the trial, which takes the time of two more runs."""
  alpha = {"trial_epochs": 0} | fields.pop("alpha", {})
  return soseleto_jax.fit(*sets, **({"num_epochs": 2, "batch_size": 16, "alpha": alpha} | fields))


@pytest.fixture(name="sets", scope="module")
def sets_fixture():
  """Source with 10 of 60 labels wrong, target and test."""
  (x, right), target, test = points(60, 0), points(15, 1), points(30, 2)
  label = np.where(np.arange(60) < 10, (right + 1) % 3, right)
  return (x, label), target, test


def test_arrays(sets, tmp_path, capsys):
  result = fit(*sets, workdir=tmp_path / "run")
  said = capsys.readouterr().out
  assert "60 source and 15 clean examples of 3 classes" in said and "num_epochs=2" in said and str(tmp_path) in said
  assert result.alpha.shape == (60,) and result.summary["test_accuracy"] > 0.8
  assert result.predict(sets[2][0]).dtype.kind == "i"
  assert np.mean(result.predict(sets[2][0]) == sets[2][1]) == pytest.approx(result.summary["test_accuracy"])
  again = fit(*sets, workdir=tmp_path / "run", verbose=False)
  assert again.alpha.tobytes() == result.alpha.tobytes() and not capsys.readouterr().out


def test_data_frames_and_names(sets, tmp_path):
  """The same numbers whatever holds them, and names come back."""
  (x, label), (target_x, target_label), _ = sets
  frame = pd.DataFrame(x, columns=list("abcd"), index=range(100, 160))
  shuffled = pd.DataFrame(target_x, columns=list("abcd"))
  np.save(tmp_path / "x.npy", target_x)
  series = pd.Series(NAMES[label], index=frame.index, dtype="category")
  result = fit((frame, series), (shuffled, NAMES[target_label].tolist()), workdir=tmp_path / "run")
  mapped = fit((x, label), (np.load(tmp_path / "x.npy", mmap_mode="r"), target_label), workdir=tmp_path / "plain")
  assert result.alpha.tobytes() == mapped.alpha.tobytes()
  assert set(result.predict(x)) <= set(NAMES) and result.class_names == tuple(NAMES)
  assert set(result.suspects(5)["label_name"]) <= set(NAMES)
  assert "test_accuracy" not in result.summary and "there is no test set" in result.summary["not_known"]


def test_sets_that_are_drawn_from_the_target(sets, tmp_path):
  result = fit(*sets[:2], workdir=tmp_path / "run", num_test=6, num_validation=3)
  assert result.summary["num_target"] == 6
  assert {"test_accuracy", "validation_accuracy"} <= result.summary.keys()


def test_a_network_and_fields_of_ones_own(sets, tmp_path):
  result = fit(
    *sets,
    workdir=tmp_path / "run",
    network=MLP(hidden=(4,)),
    seed=3,
    optimizer={"learning_rate": 0.01},
    alpha={"step_size": 0.0},
    method="soseleto",
  )
  assert set(result.alpha) == {np.float32(0.5)} and result.summary["seed"] == 3
  assert result.state.params["representation"]["dense1"]["kernel"].shape == (4, 4)


def test_sequences(tmp_path):
  x, label = np.random.default_rng(0).normal(size=(30, 5, 3)), np.arange(30) % 2 == 0
  result = fit((x, label), (x[:8], label[:8]), workdir=tmp_path / "run", model={"name": "mlp", "hidden": (4,)})
  assert result.predict(x).dtype == bool


def write_photos(root, count, seed):
  rng = np.random.default_rng(seed)
  for number in range(count):
    for name, colour in (("red", 0), ("blue", 2)):
      image = rng.integers(0, 80, (20, 26, 3), dtype=np.uint8)
      image[..., colour] += 150
      (root / name / "more").mkdir(parents=True, exist_ok=True)
      Image.fromarray(image).save(root / name / "more" / f"{number}.png")


@pytest.fixture(name="photos")
def photos_fixture(tmp_path, monkeypatch):
  """Folders web, clean/train, clean/test, in the current folder."""
  monkeypatch.chdir(tmp_path)
  for seed, (name, count) in enumerate((("web", 10), ("clean/train", 4), ("clean/test", 3))):
    write_photos(tmp_path / name, count, seed)
  (tmp_path / "web" / "red" / "page.jpg").write_text("<html>")


def test_folders(photos, capsys):
  small = {"model": {"name": "mlp", "hidden": (4,)}, "alpha": {"params": (), "direction": "gradient"}}
  with pytest.raises(ValueError, match="source: web/red/page.jpg cannot be read .*on_unreadable=skip"):
    fit("web", "clean", **small)
  result = fit("web", "clean", workdir="run", on_unreadable="skip", **small)
  assert "20 source and 8 clean examples of 2 classes, images 20x20x3" in capsys.readouterr().out
  assert result.alpha.shape == (20,) and "test_accuracy" in result.summary
  assert result.suspects()["file"].str.startswith("web/").all()
  assert [count for reason, count in result.summary["left_out"].items() if "page.jpg" in reason] == [1]


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda s, t, e: (s[0], t, e), "source is ndarray; give a folder, or a pair"),
    (lambda s, t, e: ((s[0], s[1].astype(float)), t, e), r"source labels .*label.astype\(int\)"),
    (lambda s, t, e: (s, (t[0], np.eye(3)[t[1]]), e), r"target labels .*label.argmax\(axis=1\)"),
    (lambda s, t, e: (s, (t[0], t[1] * 0)), "'1', '2' in the source alone .40 examples.; .*0 of their|1 of their"),
    (lambda s, t, e: ("nowhere", t, e), "path='nowhere' is no folder"),
  ],
)
def test_what_cannot_be_used(sets, change, message):
  with pytest.raises(ValueError, match=message):
    fit(*change(*sets))


def test_fields_that_do_not_exist(sets, tmp_path):
  with pytest.raises(ValueError, match="config.num_epoch is unknown; did you mean"):
    fit(*sets, num_epoch=3, workdir=tmp_path / "run")


@pytest.mark.parametrize(
  "field, words",
  [
    ({"data": {"target": {"num_test": 3}}}, ["data={'target': {'num_test': 3}}", "num_test", "feed alone"]),
    ({"data": {"feed": "streaming", "on_unreadable": "skip"}}, ["data={'on_unreadable': 'skip'}"]),
    ({"task": "my.tasks:make"}, ["task='my.tasks:make'"]),
  ],
)
def test_fields_of_the_data_which_is_given(sets, field, words):
  with pytest.raises(ValueError) as error:
    fit(*sets, **field)
  assert all(word in str(error.value) for word in words) and "{'feed'" not in str(error.value)


def test_the_feed_is_read_by(sets, tmp_path):
  with pytest.raises(ValueError, match="config.data.feed='steaming'"):
    fit(*sets, data={"feed": "steaming"}, workdir=tmp_path / "wrong")
  streamed = fit(*sets, data={"feed": "streaming"}, workdir=tmp_path / "streaming")
  assert streamed.alpha.tobytes() == fit(*sets, workdir=tmp_path / "auto").alpha.tobytes()


def test_a_test_set_that_is_in_the_source(sets, tmp_path, caplog):
  from soseleto_jax.data import own
  from soseleto_jax.data.get_task import data_config

  own.make_task(sets[0], sets[1], (sets[0][0][:3], sets[0][1][:3]), None, data_config(), 0)
  assert "3 source examples are in the test or validation set too, such as 0, 1, 2" in caplog.text
