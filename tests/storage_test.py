"""Where files lie."""

import os
import pathlib

import pytest

from soseleto_jax import storage


@pytest.mark.parametrize(
  "where, path",
  [
    ("runs/a", "runs/a"),
    ("~/runs/a", os.path.expanduser("~/runs/a")),
    ("file:///data/a", "/data/a"),
    ("C:/a", "C:/a"),  # one letter is no scheme
    (pathlib.Path("runs/a"), "runs/a"),
  ],
)
def test_a_folder(where, path):
  assert storage.as_path(where) == pathlib.Path(path)
  assert not storage.is_bucket(storage.as_path(where))


@pytest.mark.parametrize("where", ["gs://bucket/runs/a", "gs://bucket/runs/a/", pathlib.Path("gs://bucket/runs/a")])
def test_a_bucket(where):
  pytest.importorskip("gcsfs")
  path = storage.as_path(where)
  assert os.fspath(path) == "gs://bucket/runs/a" and storage.is_bucket(path)
  assert os.fspath(storage.as_path(path)) == "gs://bucket/runs/a" and os.fspath(path / "x") == "gs://bucket/runs/a/x"


@pytest.mark.parametrize("where", ["s3://bucket/a", "hdfs://a/b", "http://example.org/a", "gs://", "gs:///"])
def test_no_place_for_files(where, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match="give .*gs://BUCKET/FOLDER"):
    storage.as_path(where)
  assert not list(tmp_path.iterdir())


def test_a_bucket_without_its_client(monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
  with pytest.raises(ValueError, match=r"gs://bucket/a needs gcsfs; pip install 'soseleto_jax\[cloud\]'"):
    storage.as_path("gs://bucket/a")


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
  path = tmp_path / "file"
  storage.write_bytes(path, b"old")

  def full(_):
    raise OSError("disk full")

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(OSError, match="disk full"):
    storage.write_bytes(path, b"new")
  assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_what_a_link_points_to_is_not_written(tmp_path):
  """Neither that of the file nor that of the temporary one beside it."""
  precious = tmp_path / "precious"
  precious.write_text("words")
  for name in (".report.html.tmp", "report.html"):
    (tmp_path / name).symlink_to(precious)
  storage.write_bytes(tmp_path / "report.html", b"page")
  assert (tmp_path / "report.html").read_bytes() == b"page" and not (tmp_path / "report.html").is_symlink()
  assert precious.read_text() == "words"
