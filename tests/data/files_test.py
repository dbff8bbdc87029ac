"""Folders of images and NumPy files as sets, what is said of broken ones, and the examples of docs/your_data.md."""

import pathlib
import re
import shlex
import sys

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from PIL import Image

from soseleto_jax.data import files, folders, lazy, selection, sides
from soseleto_jax.data.get_task import data_config, get_task
from soseleto_jax.train import train_and_evaluate
from tests.data.written import config_of, write_arrays, write_images

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs" / "your_data.md"


@pytest.mark.parametrize("load", [folders.load_folder, files.load_arrays])
def test_missing_folders(tmp_path, load):
  with pytest.raises(ValueError, match="path='nowhere' is no folder"):
    load("nowhere", "train")
  with pytest.raises(ValueError, match=f"there is no folder {tmp_path / 'test'}; make it, or name another split"):
    load(str(tmp_path), "test")


# NumPy files.


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.int16])
def test_arrays_stay_on_disk(tmp_path, dtype):
  x, label = np.arange(24).reshape(6, 4).astype(dtype), np.arange(6) % 3
  write_arrays(tmp_path, x=x, label=label, true_label=label[::-1])
  found = files.load_arrays(str(tmp_path), "train")
  expected = np.uint8 if dtype == np.uint8 else np.float32
  assert lazy.is_lazy(found["x"]) and found["x"].dtype == expected
  assert found["x"][np.array([5, 1])].dtype == expected
  np.testing.assert_array_equal(lazy.load(found["x"]), x)
  np.testing.assert_array_equal(found["label"], label)
  np.testing.assert_array_equal(found["true_label"], label[::-1])
  assert found["label"].dtype == found["true_label"].dtype == np.int32
  assert found["class_names"] == ("0", "1", "2")


def test_without_true_labels(tmp_path):
  write_arrays(tmp_path, x=np.zeros((3, 2)), label=np.arange(3))
  assert files.load_arrays(str(tmp_path), "train").keys() == {"x", "label", "row", "class_names", "meanings"}


@pytest.mark.parametrize(
  "columns, message",
  [
    ({"label": None}, "there is no file .*label.npy; save x.npy and label.npy there"),
    ({"x": None}, "there is no file .*x.npy"),
    ({"label": np.arange(5) % 3}, r"has 6 examples but 5 of label; give one label for each"),
    ({"true_label": np.arange(7) % 3}, r"has 6 examples but 7 of true_label"),
    ({"label": np.arange(6.0)}, r"labels have dtype float64; .*label.astype\(int\) converts them"),
    ({"label": np.eye(6, dtype=int)}, r"labels have shape \(6, 6\); one-hot rows become numbers by label.argmax"),
    ({"x": np.array([{}] * 6)}, "x.npy cannot be read: .*as plain numbers"),
  ],
)
def test_broken_arrays(tmp_path, columns, message):
  good = {"x": np.zeros((6, 4)), "label": np.arange(6) % 3}
  write_arrays(tmp_path, **{name: column for name, column in (good | columns).items() if column is not None})
  with pytest.raises(ValueError, match=message):
    files.load_arrays(str(tmp_path), "train")


def test_a_file_that_is_cut_off(tmp_path):
  write_arrays(tmp_path, x=np.zeros((6, 4)), label=np.arange(6) % 3)
  content = (tmp_path / "x.npy").read_bytes()
  (tmp_path / "x.npy").write_bytes(content[:-8])
  with pytest.raises(ValueError, match="x.npy cannot be read"):
    files.load_arrays(str(tmp_path), "train")


# Tasks.


@pytest.mark.parametrize("dataset", ["folder", "arrays"])
@pytest.mark.parametrize("feed", ["auto", "streaming"])
def test_a_task_of_files(tmp_path, dataset, feed):
  """Source in the folder itself; target and test in subfolders; an image of both is left out of the source."""
  source, target, test = tmp_path / "web", tmp_path / "clean" / "train", tmp_path / "clean" / "test"
  if dataset == "folder":
    x = {folder: write_images(folder, count, seed) for seed, (folder, count) in enumerate([(source, 9), (target, 3)])}
    write_images(test, 2, 7)
    Image.fromarray(x[target][0]).save(source / "dog" / "copy.png")
    Image.fromarray(x[target][3]).save(source / "owl" / "copy.png")
    Image.fromarray(x[target][6]).save(source / "owl" / "copy2.png")
  else:
    rng = np.random.default_rng(0)
    x = {root: rng.normal(size=(3 * n, 2, 2, 1)).astype(np.float32) for root, n in [(source, 9), (target, 3)]}
    write_arrays(target, x=x[target], label=np.arange(9) // 3)
    write_arrays(test, x=rng.normal(size=(6, 2, 2, 1)), label=np.arange(6) % 3)
    copies = np.concatenate([x[source], x[target][::3]])
    write_arrays(source, x=copies, label=np.r_[np.arange(27) // 9, 0, 0, 0])
  config = config_of(dataset, source, target.parent, feed)
  config.target.num_validation = 3
  found = get_task(config, 0)
  assert lazy.is_lazy(found.source["x"]) == (feed == "streaming")
  held_out = {image.tobytes() for part in (found.target, found.validation) for image in lazy.load(part["x"])}
  images = [image.tobytes() for image in lazy.load(found.source["x"])]
  assert len(held_out) == 9 and not held_out & set(images)
  assert images == [image.tobytes() for image in x[source]]
  np.testing.assert_array_equal(found.source["label"], np.arange(27) // 9)
  assert found.name == f"{source} -> {target.parent}"
  assert len(found.test["label"]) == 6


@pytest.mark.parametrize("feed", ["auto", "streaming"])
@pytest.mark.parametrize("path", ["", "/test/.."])
def test_source_and_target_of_one_folder(tmp_path, monkeypatch, feed, path):
  """They share no image, whichever way the folder is written; where it is the same, no pixels are compared."""
  write_images(tmp_path / "train", 5, 0)
  write_images(tmp_path / "test", 1, 1)
  if not path:
    monkeypatch.setattr(selection, "same_images", lambda *_: pytest.fail("compared"))
  config = config_of("folder", tmp_path, f"{tmp_path}{path}", feed)
  config.source.update(noise="symmetric", noise_rate=0.5)
  found = get_task(config, 0)
  rows = [set(part["row"].tolist()) for part in (found.source, found.target)]
  assert not rows[0] & rows[1] and rows[0] | rows[1] == set(range(15))
  assert np.count_nonzero(found.source["label"] != found.source["true_label"]) == 4


def test_the_feed_changes_nothing_of_a_task(tmp_path):
  """Which examples, which labels, and the normalisation, to the last bit."""
  write_images(tmp_path / "train", 9, 0)
  write_images(tmp_path / "test", 2, 1)
  tasks = []
  for feed in ("resident", "streaming"):
    config = config_of("folder", tmp_path, tmp_path, feed)
    config.source.update(noise="symmetric", noise_rate=0.5, num_examples=15)
    tasks.append(get_task(config, 3))
  for name in ("source", "target", "test"):
    for column, values in getattr(tasks[0], name).items():
      np.testing.assert_array_equal(lazy.load(getattr(tasks[1], name)[column]), values)
  for part in ("mean", "std"):
    values = [getattr(found.source_normalization, part) for found in tasks]
    assert values[0].tobytes() == values[1].tobytes()


def test_large_sets_stay_on_disk(tmp_path, monkeypatch):
  write_images(tmp_path / "train", 9, 0)
  write_images(tmp_path / "test", 2, 1)
  config = config_of("folder", tmp_path, tmp_path)
  assert not lazy.is_lazy(get_task(config, 0).source["x"])
  assert lazy.is_lazy(get_task(config, 0, num_processes=2).source["x"])
  monkeypatch.setattr(lazy, "MOST_RESIDENT_BYTES", 27 * 90 - 1)
  found = get_task(config, 0)
  assert lazy.is_lazy(found.source["x"]) and not lazy.is_lazy(found.test["x"])


@pytest.mark.parametrize(
  "side, fields, message",
  [
    ("source", {"path": ""}, "config.data.source.path='' but dataset='folder'"),
    ("target", {"dataset": "digits"}, "config.data.target.path='.*' but dataset='digits'"),
    ("source", {"label_key": "human"}, "config.data.source: label_key='human'"),
    ("target", {"test_split": "tset"}, "config.data.target.test_split: there is no folder .*tset"),
    ("source", {"dataset": "arrays", "size": 3}, "config.data.source: grayscale=False, size=3: x.npy is taken"),
    ("source", {"dataset": "arrays"}, "config.data.source: there is no file .*x.npy"),
    ("source", {"size": 3}, "images are"),
  ],
)
def test_configs_that_do_not_fit(tmp_path, side, fields, message):
  write_images(tmp_path / "train", 3, 0)
  write_images(tmp_path / "test", 1, 1)
  config = config_of("folder", tmp_path, tmp_path)
  config[side].update(fields)
  with pytest.raises(ValueError, match=message):
    get_task(config, 0)


def test_an_unknown_feed():
  config = data_config()
  config.feed = "steaming"
  with pytest.raises(ValueError, match="config.data.feed='steaming' is unknown; .*did you mean 'streaming'"):
    sides.check_config(config)


# The page.


def run_command(command, monkeypatch, argument):
  """What `soseleto_jax.main` does with a command line, in this process; with one more argument of the config's file."""
  python, option, module, *arguments = shlex.split(command.replace("\\\n", ""))
  assert (python, option, module) == ("python3", "-m", "soseleto_jax.main")
  config, *arguments = arguments
  arguments = [module, f"{config.replace('configs/', f'{ROOT}/configs/')},{argument}", *arguments]
  monkeypatch.setattr(sys, "argv", arguments)  # where the config's fields are looked for
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", None, flag_values=values)
  flags.DEFINE_string("workdir", None, "", flag_values=values)
  values(arguments)
  return train_and_evaluate(values.config, values.workdir)


@pytest.mark.slow
def test_the_page_runs_as_it_stands(tmp_path, monkeypatch, no_report, two_epochs):
  """Its commands and its Python, in order, but for epochs, of which two are enough, and trials."""
  monkeypatch.chdir(tmp_path)
  for folder, count in (("web", 30), ("clean/train", 5), ("clean/test", 4)):
    write_images(tmp_path / folder, count, count, (40, 36, 3), ".jpg")
  blocks = re.findall(r"<!-- (\w+) -->\n```(\w+)\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
  blocks = [block for block in blocks if block[0] != "sentences"]  # tests/sentences_test.py runs it
  order = "data fit frame folders photos files arrays pretrained frozen tuned again python"
  assert [name for name, _, _ in blocks] == order.split()
  names, results = {}, {}
  for name, language, block in blocks:
    if language == "bash":
      results[name] = run_command(block, monkeypatch, "epochs=1")
    else:
      exec(compile(block, str(DOCS), "exec"), names)
      results[name] = names.get("tuned" if name == "tuned" else "again" if name == "again" else "result")
  assert results["folders"].summary["num_source"] == len(results["photos"].alpha) == 90
  assert results["arrays"].summary["task"] == "many -> few"
  assert all(len(results[name].alpha) == 300 for name in ("fit", "frame", "arrays", "frozen", "tuned", "python"))
  assert results["photos"].suspects(3)["file"].str.startswith("web/").all()
  assert lazy.is_lazy(names["task"].source["x"])


def test_an_archive_that_is_called_npy(tmp_path):
  with (tmp_path / "x.npy").open("wb") as file:
    np.savez(file, x=np.ones((4, 2)))
  np.save(tmp_path / "label.npy", np.arange(4) % 2)
  with pytest.raises(ValueError, match="x.npy is an archive of several arrays .npz.; save the one array there"):
    files.load_arrays(str(tmp_path), "train")
