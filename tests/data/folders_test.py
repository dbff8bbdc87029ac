"""Folders of images as people have them, and what is said of broken ones."""

import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from soseleto_jax.data import folders, lazy
from soseleto_jax.data.images import Look, formats
from tests.data.written import CLASSES, write_images


def test_a_folder_is_read_in_order(tmp_path):
  x = write_images(tmp_path / "train", 4, 0)
  (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
  (tmp_path / "train" / "cat" / ".hidden.png").write_text("no image")
  (tmp_path / "train" / ".cache").mkdir()
  found = folders.load_folder(str(tmp_path), "train")
  assert found["class_names"] == CLASSES
  assert found["label"].tolist() == [0] * 4 + [1] * 4 + [2] * 4 and found["label"].dtype == np.int32
  assert [pathlib.Path(file).exists() for file in found["file"]] == [True] * 12
  assert [pathlib.Path(file).parent.name for file in found["file"]] == [name for name in CLASSES for _ in range(4)]
  assert lazy.is_lazy(found["x"]) and found["x"].shape == x.shape and found["x"].dtype == np.uint8
  np.testing.assert_array_equal(lazy.load(found["x"]), x)
  order = np.array([7, 0, 7, 11])
  np.testing.assert_array_equal(found["x"][order], x[order])


def test_train_may_be_the_folder_itself_and_home_is_known(tmp_path, monkeypatch):
  x = write_images(tmp_path / "web", 2, 0)
  monkeypatch.setenv("HOME", str(tmp_path))
  found = folders.load_folder("~/web", "train")
  np.testing.assert_array_equal(lazy.load(found["x"]), x)
  assert {os.path.dirname(file) for file in found["file"]} == {f"~/web/{name}" for name in CLASSES}  # as it was given


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".JFIF", ".bmp", ".webp", ".gif", ".tiff", ".avif"])
def test_sizes_colours_and_formats(tmp_path, suffix):
  if suffix == ".avif" and "AVIF" not in formats():
    pytest.skip("this Pillow reads no AVIF")
  x = write_images(tmp_path, 1, 0, (8, 8, 1), suffix)
  found = folders.load_folder(str(tmp_path), "train", Look(size=4))["x"]
  assert found.shape == (3, 4, 4, 3)
  gray = lazy.load(folders.load_folder(str(tmp_path), "train", Look("L"))["x"])
  assert gray.shape == x.shape
  if suffix in (".png", ".bmp", ".tiff"):
    np.testing.assert_array_equal(gray, x)


def test_images_of_unequal_size_need_a_size(tmp_path):
  write_images(tmp_path, 2, 0)
  Image.new("RGB", (7, 9)).save(tmp_path / "owl" / "z.png")
  with pytest.raises(ValueError, match=r"cat/000.png is 5x6, .*owl/z.png is 7x9; set `size`"):
    folders.load_folder(str(tmp_path), "train")
  assert folders.load_folder(str(tmp_path), "train", Look(size=3))["x"][np.arange(7)].shape == (7, 3, 3, 3)


def empty_class(root):
  (root / "bat").mkdir()


def no_classes(root):
  for name in CLASSES:
    os.rename(root / name, root / f".{name}")


def no_image(root):
  (root / "dog" / "x.jpg").write_text("<html>not found</html>")


def floats(root):
  Image.fromarray(np.zeros((6, 5), np.float32)).save(root / "dog" / "deep.tif")


def several(root):
  no_image(root)
  (root / "cat" / "a.png").touch()
  image = (root / "owl" / "005.png").read_bytes()
  (root / "owl" / "b.jpg").write_bytes(image[: len(image) // 2])


@pytest.mark.parametrize(
  "spoil, message",
  [
    (empty_class, "bat holds no images .*take the folder away"),
    (no_classes, "holds no folders; give each class a folder"),
    (
      no_image,
      "dog/x.jpg cannot be read as an image: .*; replace or remove it, or go on without by .*on_unreadable=skip",
    ),
    (floats, "dog/deep.tif cannot be read as an image: its pixels are of mode 'F'; save it with 8 bits"),
    (several, "3 files of .* cannot be read as images(.|\n)*cat/a.png(.|\n)*dog/x.jpg(.|\n)*owl/b.jpg"),
  ],
)
def test_broken_folders(tmp_path, spoil, message):
  write_images(tmp_path, 2, 0)
  spoil(tmp_path)
  with pytest.raises(ValueError, match=message):
    folders.load_folder(str(tmp_path), "train")


@pytest.mark.parametrize("most_bytes", [-1, 10**9])
def test_going_on_without_what_cannot_be_read(tmp_path, caplog, most_bytes):
  """The first file of all among them; one ends too soon, which its head does not say."""
  x = write_images(tmp_path, 3, 0, (32, 32, 3))
  (tmp_path / "cat" / "000.png").write_bytes(b"")
  file = tmp_path / "dog" / "004.png"
  file.write_bytes(file.read_bytes()[:2000])
  found = folders.load_folder(str(tmp_path), "train", on_unreadable="skip", most_bytes=most_bytes)
  kept = [1, 2, 3, 5, 6, 7, 8]
  np.testing.assert_array_equal(lazy.load(found["x"]), x[kept])
  assert found["row"].tolist() == kept and found["label"].tolist() == [0, 0, 1, 1, 2, 2, 2]
  assert [os.path.basename(name)[:3] for name in found["file"]] == [f"{row:03}" for row in kept]
  (reason, count), *_ = found["left_out"].items()
  assert count == 2 and "cat/000.png" in reason and "dog/004.png" in reason
  assert "cat/000.png cannot be read" in caplog.text


def save(path, pixels):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def test_nested_folders_and_what_systems_leave_behind(tmp_path, caplog):
  for name in ("cat/x.png", "cat/batch2/y.png", "cat/batch2/deep/z.png", "dog/a.png"):
    save(tmp_path / name, np.zeros((4, 4, 3)))
  for name in ("__MACOSX/cat/._x.png", "cat/__MACOSX/x.png", "cat/notes.txt", "dog/.DS_Store", "read me"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("no image")
  with caplog.at_level("INFO", logger="soseleto_jax"):
    found = folders.load_folder(str(tmp_path), "train")
  assert [name.removeprefix(f"{tmp_path}/") for name in found["file"]] == [
    "cat/batch2/deep/z.png", "cat/batch2/y.png", "cat/x.png", "dog/a.png",
  ]  # fmt: skip
  assert found["class_names"] == ("cat", "dog")
  assert caplog.text.count("passed over") == 1
  assert "1 .txt, 2 __MACOSX, 1 hidden, 1 without suffix" in caplog.text


@pytest.mark.parametrize(
  "names, expected",
  [
    (("train/1.png", "car/1.png"), ("car", "train")),  # a class called "train"
    (("train/batch/1.png", "car/1.png"), ("car", "train")),
    (("train/cat/1.png", "test/cat/1.png", "extra/1.png"), ("cat",)),
    (("train/cat/1.png", "train/train/1.png", "test/cat/1.png"), ("cat", "train")),
    (("train/10/1.png", "train/9/1.png", "train/1/1.png"), ("1", "9", "10")),
  ],
)
def test_which_folders_are_the_classes(tmp_path, names, expected):
  for name in names:
    save(tmp_path / name, np.zeros((2, 2, 3)))
  assert folders.load_folder(str(tmp_path), "train")["class_names"] == expected


@pytest.mark.parametrize("name", [b"caf\xe9/1.png", b"cat/caf\xe9.png"])
def test_names_that_are_no_text(tmp_path, name):
  """They could stand in no report, which would be found at the end."""
  for path in (b"cat/1.png", b"dog/1.png", name):
    file = pathlib.Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), path)))
    file.parent.mkdir(exist_ok=True)
    file.touch()
  with pytest.raises(ValueError, match="whose name is no UTF-8; rename it"):
    folders.list_images(tmp_path)
