"""A folder of images on disk is decoded once, until one of them, or how they are read, changes."""

import os

import numpy as np
import pytest
from PIL import Image

from soseleto_jax.data import checked_folders, folders
from soseleto_jax.data.images import Images, Look

LOOK = Look(size=4)


@pytest.fixture
def decoded(tmp_path, monkeypatch):
  """The rows of images that were decoded to be checked."""
  monkeypatch.setenv("SOSELETO_CACHE", str(tmp_path / "cache"))
  rows, decode = [], Images.decode

  def counted(self, encoded, row):
    rows.append(row)
    return decode(self, encoded, row)

  monkeypatch.setattr(Images, "decode", counted)
  return rows


@pytest.fixture
def folder(tmp_path):
  """Two classes of two images each."""
  for name in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"):
    file = tmp_path / "photos" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), 7, np.uint8)).save(file)
  return tmp_path / "photos"


def load(folder, look=LOOK, **options):
  return folders.load_folder(str(folder), "train", look, **options)


def test_images_are_decoded_once(folder, decoded):
  first = load(folder)
  assert sorted(decoded) == [0, 1, 2, 3]
  decoded.clear()
  second = load(folder)
  assert decoded == []
  np.testing.assert_array_equal(first["x"][np.arange(4)], second["x"][np.arange(4)])


def change_time(folder):
  os.utime(folder / "dog" / "2.png", ns=(1, 1))


def change_size(folder):
  with (folder / "dog" / "2.png").open("ab") as file:
    file.write(b"\0")


def add(folder):
  (folder / "dog" / "3.png").write_bytes((folder / "dog" / "2.png").read_bytes())


def damage_what_is_kept(folder):
  (kept,) = (folder.parent / "cache" / "folders").iterdir()
  kept.write_bytes(kept.read_bytes()[:-5])


@pytest.mark.parametrize("change", [change_time, change_size, add, damage_what_is_kept])
def test_they_are_decoded_again_where_something_changed(folder, decoded, change):
  load(folder)
  decoded.clear()
  change(folder)
  load(folder)
  assert len(decoded) >= 4


def test_another_look_is_another_matter(folder, decoded):
  load(folder)
  decoded.clear()
  load(folder, Look(size=2))
  assert len(decoded) == 4


def test_what_cannot_be_read_is_remembered(folder, decoded):
  (folder / "dog" / "2.png").write_bytes(b"no image")
  for _ in range(2):
    with pytest.raises(ValueError, match="dog/2.png cannot be read as an image"):
      load(folder)
  assert load(folder, on_unreadable="skip")["row"].tolist() == [0, 1, 2]
  assert len(decoded) == 4


def test_it_can_be_switched_off(folder, decoded, monkeypatch):
  monkeypatch.setenv("SOSELETO_CACHE", "")
  load(folder)
  load(folder)
  assert len(decoded) == 8
  assert checked_folders.recall(folder, [], LOOK) is None


def test_images_in_memory_are_decoded_anyway(folder, decoded):
  for _ in range(2):
    assert isinstance(load(folder, most_bytes=10**6)["x"], np.ndarray)
  assert len(decoded) == 8
