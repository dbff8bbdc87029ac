"""The user's own folders of images, one folder for each class, as people have them."""

import collections
import concurrent.futures
import logging
import math
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from soseleto_jax.data import bucket_copies, checked_folders, labels, lazy
from soseleto_jax.data.images import Images, Look, Unreadable, formats

_LOGGER = logging.getLogger(__name__)

SUFFIXES = (
  ".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif",
)  # fmt: skip
ON_UNREADABLE = ("stop", "skip")
SPLITS = ("train", "test", "validation", "val", "valid", "dev")  # folders that are no classes, where "train" is none

# What systems leave beside the user's files.
_LITTER = ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN")

PHOTO = Look(aspect="crop", background="white", photo=True)

_CHUNK = 64  # files that one task of the thread pool reads
_MOST_LISTED = 20


def load_folder(
  path: str,
  split: str,
  look: Look = PHOTO,
  *,
  on_unreadable: str = "stop",
  most_bytes: float = -1,
) -> dict:
  """Reads a folder of images, one folder for each class: `path/train/cat/1.png`, or `path/cat/1.png`.

  The classes are the folders, by name, or by value where all are numbers. The images of a class are the files in its
  folder and in those below, by name. Names that start with a dot, what systems leave behind, such as `__MACOSX`, and
  files that are not images by their suffix are passed over. Every image is decoded once, to see that it can be; those
  that stay on disk are not again at the next start: see `checked_folders`.

  Args:
    path: the folder.
    split: names a folder in it; where `"train"` is not there, or is one of the classes, they are looked for in `path`.
    look: what images are made into.
    on_unreadable: "stop", or "skip" to go on without files that cannot be read.
    most_bytes: images that take more in memory stay on disk.

  Returns:
    A dict of `x`, uint8 `[N, H, W, C]`, an array or `Images`; `label` int32 `[N]`; `file` strings `[N]`, the images'
    paths as `path` has them; `row` int32 `[N]`, their places among all images; `class_names`, a tuple of str; and
    `left_out`, how many of its images are missing, by the reason.

  Raises:
    ValueError: for a folder that is not there, one without classes, a class without images, images that cannot be read,
      all by name, or of unequal size where `look.size` is 0.
  """
  root = split_folder(path, split)
  given = path if root == bucket_copies.local(path) else os.path.join(path, split)
  class_names, names, label = list_images(root)
  rows = np.arange(len(names))
  x, unreadable = _read_all(root, names, look, most_bytes)
  left_out = {}
  if unreadable:
    left_out = _without(unreadable, root, on_unreadable)
    rows = np.delete(rows, list(unreadable))
    x = lazy.take(x, rows)
  paths = np.array([os.path.join(given, names[row]) for row in rows], np.dtypes.StringDType())
  examples = {"x": x, "label": np.asarray(label, np.int32)[rows], "file": paths, "row": rows.astype(np.int32)}
  return {**examples, "class_names": class_names, "left_out": left_out}


def load_unsorted(path: str, look: Look, *, on_unreadable: str = "stop", most_bytes: float = -1) -> dict:
  """Reads the images of a folder and of those below, whose classes are not known.

  Args:
    path: the folder.
    look: what images are made into.
    on_unreadable: as for `load_folder`.
    most_bytes: as for `load_folder`.

  Returns:
    A dict of `x` and `file`, as `load_folder` has them, ordered by path.

  Raises:
    ValueError: as `load_folder`, and for a folder without images.
  """
  root = bucket_copies.local(path)
  if not root.is_dir():
    raise ValueError(f"{path!r} is no folder; give the one that holds your images")
  names = sorted(os.path.normpath(name) for name in _walk(root, "", collections.Counter()))
  if not names:
    raise ValueError(f"{root} holds no images ({', '.join(SUFFIXES)})")
  x, unreadable = _read_all(root, names, look, most_bytes)
  rows = np.arange(len(names))
  if unreadable:
    _without(unreadable, root, on_unreadable)
    rows = np.delete(rows, list(unreadable))
    x = lazy.take(x, rows)
  return {"x": x, "file": np.array([os.path.join(path, names[row]) for row in rows], np.dtypes.StringDType())}


def split_folder(path: str, split: str) -> pathlib.Path:
  """Returns the folder of a split.

  Raises:
    ValueError: there is none.
  """
  root = bucket_copies.local(path)
  if not root.is_dir():
    raise ValueError(f"path={path!r} is no folder; give the one that holds your data")
  folder = root / split
  if folder.is_dir() and not (split == "train" and _is_a_class(folder)):
    return folder
  if split == "train":
    return root
  raise ValueError(f"there is no folder {folder}; make it, or name another split")


def _is_a_class(folder):
  """Whether a folder is a class among others rather than the training set: it, or one beside it, holds images."""
  beside = [other for other in _subfolders(folder.parent) if other != folder]
  if _holds_images(folder):
    return True
  return not any(other.name in SPLITS for other in beside) and any(map(_holds_images, beside))


def _subfolders(root) -> list[pathlib.Path]:
  return [pathlib.Path(e.path) for e in os.scandir(root) if e.is_dir() and not _is_passed_over(e.name)]


def _holds_images(folder):
  return any(entry.is_file() and _is_image(entry.name) for entry in os.scandir(folder))


def _is_passed_over(name):
  return name.startswith(".") or name in _LITTER


def _is_image(name):
  return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def list_images(root: pathlib.Path) -> tuple[tuple[str, ...], list[str], list[int]]:
  """Returns the classes of a folder, its images' files by class and name, and the label of each.

  Raises:
    ValueError: there are no classes, or one has no images.
  """
  class_names = labels.ordered(folder.name for folder in _subfolders(root))
  if not class_names:
    example = root / "cat" / "1.png"
    raise ValueError(f"{root} holds no folders; give each class a folder of its images, such as {example}")
  _check_text(root, class_names)
  names: list[str] = []
  label: list[int] = []
  passed: collections.Counter[str] = collections.Counter()
  passed.update(_kind(entry.name) for entry in os.scandir(root) if not entry.is_dir() or _is_passed_over(entry.name))
  for number, name in enumerate(class_names):
    images = sorted(_walk(root, name, passed))
    if not images:
      raise ValueError(
        f"{root / name} holds no images ({', '.join(SUFFIXES)}), but every folder in {root} is a class; "
        "put images there, or take the folder away"
      )
    _check_text(root, images)
    names += images
    label += [number] * len(images)
  if passed:
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(passed.items()))
    _LOGGER.info("%s: passed over what is no image by its name: %s", root, counts)
  return class_names, names, label


def _check_text(root, names):
  """Raises ValueError for a name that is no text: it could stand in no list and no report."""
  for name in names:
    try:
      name.encode()
    except UnicodeEncodeError as error:
      raise ValueError(f"{root} holds {os.fsencode(name)!r}, whose name is no UTF-8; rename it") from error


def _walk(root, name, passed) -> Iterator[str]:
  """Yields the images of a class, in its folder and those below, by their paths in `root`; counts what is no image."""
  for folder, below, files in os.walk(root / name, followlinks=True):
    passed.update(_kind(other) for other in below if _is_passed_over(other))
    below[:] = [other for other in below if not _is_passed_over(other)]
    for file in files:
      if _is_image(file):
        yield os.path.relpath(os.path.join(folder, file), root)
      else:
        passed[_kind(file)] += 1


def _kind(name):
  return (
    "hidden" if name.startswith(".") else name if name in _LITTER else os.path.splitext(name)[1] or "without suffix"
  )


def _read_all(root, names, look, most_bytes):
  """Decodes every image; returns them, in memory or on disk, and why those that cannot be read cannot, by row."""

  def file(row):
    return str(root / names[row])

  def encoded(rows):
    return [pathlib.Path(file(row)).read_bytes() for row in rows]

  unreadable: dict[int, str] = {}
  for first in range(len(names)):
    try:
      images = Images(encoded, file, len(names), look, first=first)
      break
    except Unreadable as error:
      unreadable[first] = str(error)
  else:
    return np.empty((len(names), 1, 1, 1), np.uint8), unreadable
  x = np.zeros(images.shape, np.uint8) if lazy.num_bytes(images) <= most_bytes else None
  if x is None and (known := checked_folders.recall(root, names, look)) is not None:
    return images, known

  def read(start):
    failed = {}
    for row in range(start, min(start + _CHUNK, len(names))):
      try:
        image = images.decode(encoded([row])[0], row)
        if x is not None:
          x[row] = image
      except Unreadable as error:
        failed[row] = str(error)
    return failed

  with concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
    for failed in pool.map(read, range(0, len(names), _CHUNK)):
      unreadable |= failed
  unreadable = dict(sorted(unreadable.items()))
  if x is None:
    checked_folders.remember(root, names, look, unreadable)
  return images if x is None else x, unreadable


def _without(unreadable, root, on_unreadable):
  """Says which files cannot be read; returns them as what is left out, or raises."""
  reasons = [text.removesuffix("; replace or remove it") for text in unreadable.values()]
  more = len(reasons) - _MOST_LISTED
  listed = "\n  ".join([*reasons[:_MOST_LISTED], *([f"and {more} more"] if more > 0 else [])])
  if on_unreadable == "stop":
    cure = "replace or remove them, or go on without by on_unreadable=skip (config.data.on_unreadable)"
    if len(reasons) == 1:
      raise ValueError(f"{reasons[0]}; {cure.replace('them', 'it')}")
    raise ValueError(f"{len(reasons)} files of {root} cannot be read as images; {cure}:\n  {listed}")
  _LOGGER.warning("%s: going on without %d files that cannot be read:\n  %s", root, len(reasons), listed)
  names = [text.partition(" cannot be read")[0] for text in reasons[:_MOST_LISTED]]
  return {f"unreadable ({', '.join(names)}{', ...' if more > 0 else ''})": len(reasons)}


def shorter_side(root: pathlib.Path, names: list[str], most: int = 200) -> int:
  """Returns the median of the shorter sides of a folder's images, in pixels, by the heads of some of them.

  Raises:
    ValueError: none can be read.
  """
  from PIL import Image

  sides = []
  for row in np.unique(np.linspace(0, len(names) - 1, min(most, len(names)), dtype=int)):
    try:
      with Image.open(root / names[row], formats=formats()) as image:
        sides.append(min(image.size))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
      continue
  if not sides:
    raise ValueError(f"none of {len(names)} files in {root} can be read as an image")
  return math.floor(np.median(sides))
