"""The user's own sets as NumPy files."""

import numpy as np

from soseleto_jax.data import pairs
from soseleto_jax.data.folders import split_folder


def load_arrays(path: str, split: str) -> dict:
  """Opens a set of NumPy files: `path/train/x.npy` and `label.npy`, or `path/x.npy` and `label.npy`.

  Args:
    path: the folder.
    split: names a folder in it; where `"train"` is not there, the files are looked for in `path` itself.

  Returns:
    A dict of `x` `[N, ...]`, a memory map of uint8 or of float32 (other numbers are converted when they are read),
    `label` int32 `[N]`, where there is a file of that name `true_label` int32 `[N]`, `row` int32 `[N]`, and
    `class_names`, the labels that stand in the files, which may be strings, whole numbers or bools, and `meanings`,
    what each name is there.

  Raises:
    ValueError: for a folder or file that is not there or cannot be read, and for labels that do not fit.
  """
  root = split_folder(path, split)
  x = _load(root / "x.npy", mmap_mode="r")
  columns = [_load(root / "label.npy")]
  if (root / "true_label.npy").exists():
    columns.append(_load(root / "true_label.npy"))
  subset = pairs.read(str(root), x, *columns)
  return {**subset.examples, "class_names": subset.class_names, "meanings": subset.meanings}


def _load(file, **options):
  try:
    array = np.load(file, **options)
  except FileNotFoundError as error:
    raise ValueError(f"there is no file {file}; save x.npy and label.npy there with np.save") from error
  except (OSError, ValueError, EOFError) as error:
    raise ValueError(f"{file} cannot be read: {error}; save it again with np.save, as plain numbers") from error
  if not isinstance(array, np.ndarray):
    array.close()
    raise ValueError(f"{file} is an archive of several arrays (npz); save the one array there with np.save")
  return array
