"""Classifies new examples by the network of a run, without the data that it was trained on.

    python -m soseleto_jax.predict --workdir=runs/mine --images=new/ --output=predictions.csv

`--images` is a folder of images, which are made as large as those of training, or a file of NumPy, such as new.npy,
with inputs as they were stored for training.
"""

import argparse
import csv
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from soseleto_jax import storage
from soseleto_jax.data import bucket_copies, folders, lazy, writing
from soseleto_jax.data.get_task import data_config
from soseleto_jax.data.images import MODES, Look
from soseleto_jax.loading import load
from soseleto_jax.run.interface import Interface
from soseleto_jax.run.result import Result
from soseleto_jax.run.saved_state import CHOICES, read_json

COLUMNS = ("row", "file", "label", "label_name", "probability")


def main(arguments: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser("python -m soseleto_jax.predict", description=__doc__.partition("\n")[0])
  parser.add_argument("--workdir", required=True, help="the run's folder")
  parser.add_argument("--images", required=True, help="a folder of images, or a .npy file")
  parser.add_argument("--output", default="predictions.csv", help="the file to write (default: predictions.csv)")
  parser.add_argument("--checkpoint", default="last", choices=CHOICES, help="the newest (default), or by validation")
  parser.add_argument(
    "--on_unreadable", default="stop", choices=folders.ON_UNREADABLE, help="what to do about files that are no images"
  )
  options = parser.parse_args(arguments)
  try:
    result = load(options.workdir, options.checkpoint)
    data = read_json(storage.as_path(options.workdir) / "config.json").get("data", {})
    inputs = read_inputs(options.images, result.predictor.interface, data.get("target", {}), options.on_unreadable)
    write_predictions(options.output, result, **inputs)
  except (ValueError, RuntimeError, OSError) as error:
    raise SystemExit(f"error: {error}") from error
  print(f"{len(inputs['x']):,} predictions: {options.output}")


def read_inputs(
  path: str, interface: Interface, side: dict[str, Any] | None = None, on_unreadable: str = "stop"
) -> dict[str, Any]:
  """Reads new inputs as the network takes them.

  Args:
    path: a folder of images, or a .npy file.
    interface: of the network.
    side: `config.data.target`, whose "aspect" and "background" say how images become squares, and "isolate" and
      "deskew" what is then done to them.
    on_unreadable: "stop" or "skip".

  Returns:
    "x" `[N, ...]`, in memory or on disk, and "file", strings `[N]`, or None for a .npy file.

  Raises:
    ValueError: what is there cannot be read, or is not of the network's shape.
  """
  if path.endswith(".npy"):
    try:
      return {"x": np.load(bucket_copies.local(path), mmap_mode="r"), "file": None}
    except (OSError, ValueError, EOFError) as error:
      raise ValueError(f"--images={path} cannot be read: {error}") from error
  shape = interface.shape
  if len(shape) != 3 or shape[2] not in MODES:
    raise ValueError(f"--images={path}: the network takes no images but inputs {shape}; give a .npy file of these")
  fields = data_config().target.to_dict() | (side or {})
  size = shape[0] if shape[0] == shape[1] else 0
  read_size = writing.size_to_read(size, fields["isolate"])
  look = Look(MODES[shape[2]], read_size, fields["aspect"], fields["background"], photo=True)
  inputs = folders.load_unsorted(path, look, on_unreadable=on_unreadable, most_bytes=lazy.MOST_RESIDENT_BYTES)
  return inputs | {"x": writing.made_alike(inputs["x"], size, isolate=fields["isolate"], deskew=fields["deskew"])}


def write_predictions(output: str | os.PathLike, result: Result, x: Any, file: np.ndarray | None = None) -> None:
  """Writes a class and its probability for each input, as CSV with the columns of `COLUMNS`.

  Args:
    output: the file, which appears whole or not at all.
    result: of the run.
    x: inputs as they are stored, `[N, ...]`, in memory or on disk.
    file: strings `[N]`, where each was read from, or None.
  """
  start = 0
  with storage.replacing(storage.as_path(output)) as temporary:
    with temporary.open("w", encoding="utf-8", newline="") as lines:
      writer = csv.writer(lines, lineterminator="\n")
      writer.writerow(COLUMNS)
      for part in lazy.chunks(x):
        probability = result.predict_proba(np.asarray(part))
        label = np.argmax(probability, axis=1)
        rows = range(start, start + len(part))
        names = [result.class_names[number] for number in label]
        files = [""] * len(part) if file is None else file[start : start + len(part)].tolist()
        writer.writerows(zip(rows, files, label.tolist(), names, probability.max(axis=1).astype(str), strict=True))
        start += len(part)


if __name__ == "__main__":
  main(sys.argv[1:])
