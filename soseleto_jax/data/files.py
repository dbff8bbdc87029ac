"""The user's own sets: folders of images, and NumPy files."""

import concurrent.futures
import itertools
import os
import pathlib

import numpy as np

from soseleto_jax.data import checks, lazy
from soseleto_jax.data.images import FORMATS, Images

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")

# Files that one task of the thread pool looks at.
_CHUNK = 512

# Modes that Pillow turns into 8-bit colour or gray without loss of range.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


def load_folder(path: str, split: str, *, grayscale: bool = False, size: int = 0) -> dict:
  """Opens a folder of images, one folder for each class: `path/train/cat/1.png`, or `path/cat/1.png`.

  The classes are the folders, ordered by name, and the images of a class its files, ordered by name. Files and folders
  whose name starts with a dot are passed over, and so are files that are not images by their suffix. The first bytes of
  every image are read, to see that it is one.

  Args:
    path: the folder.
    split: names a folder in it; where `"train"` is not there, the classes are looked for in `path` itself.
    grayscale: whether to convert images to one channel (luma); else they become RGB.
    size: height and width to resize images to, in pixels; 0 where all have one size.

  Returns:
    A dict of `x`, `Images` uint8 `[N, H, W, C]`, `label` int32 `[N]`, `file` strings `[N]`, the images' paths as
    `path` has them, and `class_names` tuple of str.

  Raises:
    ValueError: for a folder that is not there, one without classes, a class without images, a file that is no image, or
      images of unequal size where `size` is 0.
  """
  root = _split_folder(path, split)
  classes, names, labels = _list_images(root)
  given = path if root == pathlib.Path(path).expanduser() else os.path.join(path, split)

  def file(row):
    return str(root / names[row])

  def read(rows):
    return [pathlib.Path(file(row)).read_bytes() for row in rows]

  _check_headers(file, len(names), size)
  images = Images(read, file, len(names), mode="L" if grayscale else "RGB", size=size)
  paths = np.array([os.path.join(given, name) for name in names], np.dtypes.StringDType())
  return {"x": images, "label": np.asarray(labels, np.int32), "file": paths, "class_names": classes}


def load_arrays(path: str, split: str) -> dict:
  """Opens a set of NumPy files: `path/train/x.npy` and `label.npy`, or `path/x.npy` and `label.npy`.

  Args:
    path: the folder.
    split: as for `load_folder`.

  Returns:
    A dict of `x` `[N, H, W, C]` or `[N, D]`, a memory map of uint8 or of float32 (other numbers are converted when they
    are read), `label` int32 `[N]`, where there is a file of that name `true_label` int32 `[N]`, and `class_names`, the
    numbers from 0 to the largest label.

  Raises:
    ValueError: for a folder or file that is not there or cannot be read, and for labels that do not fit.
  """
  root = _split_folder(path, split)
  x = _load(root / "x.npy", mmap_mode="r")
  if x.dtype.kind in "uif" and x.dtype not in (np.uint8, np.float32):
    x = lazy.Rows(x, dtype=np.float32)
  columns = {"label": _load(root / "label.npy")}
  if (root / "true_label.npy").exists():
    columns["true_label"] = _load(root / "true_label.npy")
  largest = [int(column.max(initial=0)) for column in columns.values() if column.dtype.kind in "iu"]
  num_classes = 1 + max(largest, default=0)
  for name, column in columns.items():
    checks.labels(str(root / f"{name}.npy"), column, num_classes)
    if len(column) != len(x):
      raise ValueError(f"{root / 'x.npy'} has {len(x)} examples, {name}.npy {len(column)}; give one label for each")
  columns = {name: column.astype(np.int32) for name, column in columns.items()}
  return {"x": x, "class_names": tuple(str(c) for c in range(num_classes)), **columns}


def _split_folder(path, split):
  root = pathlib.Path(path).expanduser()
  if not root.is_dir():
    raise ValueError(f"path={path!r} is no folder; give the one that holds your data")
  folder = root / split
  if folder.is_dir():
    return folder
  if split == "train":
    return root
  raise ValueError(f"there is no folder {folder}; make it, or name another split")


def _list_images(root):
  """Returns the classes of a folder, its images' files by class and name, and the label of each."""
  classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
  if not classes:
    example = root / "cat" / "1.png"
    raise ValueError(f"{root} holds no folders; give each class a folder of its images, such as {example}")
  names, labels = [], []
  for number, name in enumerate(classes):
    images = sorted(file for file in os.listdir(root / name) if _is_image(file))
    if not images:
      raise ValueError(
        f"{root / name} holds no images ({', '.join(SUFFIXES)}), but every folder in {root} is a class; "
        "put images there, or take the folder away"
      )
    names += [os.path.join(name, file) for file in images]
    labels += [number] * len(images)
  return tuple(classes), names, labels


def _is_image(name):
  return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def _check_headers(file, count, size):
  from PIL import Image

  def header(row):
    try:
      with Image.open(file(row), formats=FORMATS) as image:
        return image.size, image.mode
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
      raise ValueError(f"{file(row)} cannot be read as an image: {error}; replace or remove it") from error

  def headers(start):
    return [header(row) for row in range(start, min(start + _CHUNK, count))]

  (width, height), _ = header(0)
  with concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
    for row, (shape, mode) in enumerate(itertools.chain.from_iterable(pool.map(headers, range(0, count, _CHUNK)))):
      if mode not in _MODES:
        raise ValueError(f"{file(row)} has pixels of mode {mode!r}; save it with 8 bits for each channel")
      if not size and shape != (width, height):
        raise ValueError(
          f"images have unequal sizes: {file(0)} is {width}x{height}, {file(row)} is {shape[0]}x{shape[1]}; "
          "set `size` (config.data.source.size, config.data.target.size) to resize them"
        )


def _load(file, **options):
  try:
    return np.load(file, **options)
  except FileNotFoundError as error:
    raise ValueError(f"there is no file {file}; save x.npy and label.npy there with np.save") from error
  except (OSError, ValueError, EOFError) as error:
    raise ValueError(f"{file} cannot be read: {error}; save it again with np.save, as plain numbers") from error
