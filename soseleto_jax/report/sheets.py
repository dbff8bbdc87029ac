"""What the report shows of single examples: the most and the least suspect, as pictures or as a table."""

from __future__ import annotations

import base64
import os
import pathlib
import urllib.parse
from typing import Any

import numpy as np

from soseleto_jax import storage
from soseleto_jax.report.source_list import SourceList

_MOST_SHOWN = 32  # of each sheet, and of a class that is chosen
_MOST_OF_CLASSES = 192  # that a sheet holds beside these, to be shown when their class is chosen
_MOST_SEARCHED = 100_000  # for these, from either end of the list
_MOST_PIXELS = 160  # of a picture's longer side


def sheets(workdir: pathlib.Path, listed: SourceList, x: Any) -> list[dict[str, Any]]:
  """Describes the sheets of the most and the least suspect, and draws their heads into the folder's figures.

  Args:
    workdir: the run's folder, which links to files start from.
    listed: the source's examples.
    x: the examples `[N, ...]`, in memory or on disk; drawn if they are pictures (`[N, H, W, 1]` or `[N, H, W, 3]`).

  Returns:
    Of each sheet its "end", its "examples", the first 32 of which are not "more", and whether it has "pictures".
  """
  count, last = min(_MOST_SHOWN, (len(listed) + 1) // 2), len(listed) - 1
  near = np.arange(min(len(listed), _MOST_SEARCHED))
  ends = {"most": _places(listed, near, count), "least": _places(listed, last - near, count)}
  shape: tuple[int, ...] = np.shape(x) if x is not None else ()
  has_pictures = len(shape) == 4 and shape[3] in (1, 3)
  drawn = _pictures(x, listed.order[np.concatenate(list(ends.values()))]) if has_pictures else None
  found, start = [], 0
  for end, places in ends.items():
    examples = [_example(workdir, listed, int(place)) | {"more": n >= count} for n, place in enumerate(places)]
    if drawn is not None:
      pictures = drawn[start : start + len(places)]
      start += len(places)
      for example, picture in zip(examples, pictures, strict=True):
        example["uri"] = _png_uri(picture)
      _draw(workdir / "figures" / f"{end}_suspect.png", pictures[:count], examples)
    found.append({"end": end, "examples": examples, "pictures": has_pictures, "count": count})
  return found


def chosen_by(found: list[dict[str, Any]]) -> dict[str, list[tuple[int, str]]]:
  """Returns the classes, number and name, that examples of the sheets can be chosen by, as "given" and "suggested"."""
  examples = [example for sheet in found for example in sheet["examples"]]
  by = {kind: {ex[kind]: ex[f"{kind}_name"] for ex in examples} for kind in ("given", "suggested")}
  return {kind: sorted(classes.items()) for kind, classes in by.items() if None not in classes and len(classes) > 1}


def _places(listed, near, count):
  """Returns the first of some places of the list, and behind them more of each class."""
  if listed.label is None:
    return near[:count]
  label = listed.label[listed.order[near]]
  classes = np.unique(label)
  of_class = min(_MOST_SHOWN, _MOST_OF_CLASSES // len(classes))
  if not of_class or len(classes) == 1:
    return near[:count]
  first = [np.flatnonzero(label == c)[:of_class] for c in classes]
  return near[np.concatenate([np.arange(count), *(of[of >= count] for of in first)])]


def _pictures(x, index):
  from soseleto_jax.report import figures

  return figures.displayable(x[index])


def _example(workdir, listed, place):
  row = {name: None if column is None else column[0] for name, column in listed.columns(place, place + 1).items()}
  own = {
    "index": int(row["index"]),
    "row": int(row["row"]),
    "file": row["file"],
    "href": None if row["file"] is None else link(row["file"], workdir),
    "alpha": row["alpha"],
  }
  return own | (_of_values(row, listed) if listed.label is None else _of_classes(row, listed))


def _of_values(row, listed):
  """What is shown of labels that are no classes."""
  value, true = (f"{row[name]:.4g}" if name in row else None for name in ("value", "true_value"))
  wrong = listed.wrong is not None and bool(listed.wrong[row["index"]])
  none = dict.fromkeys(("given", "given_probability", "suggested", "suggested_name", "suggested_probability"))
  return none | {"given_name": value or "", "differs": False, "true": (true or "wrong") if wrong else None}


def _of_classes(row, listed):
  true, suggested = row.get("true_label"), row["suggested"]
  return {
    "given": int(row["label"]),
    "given_name": row["label_name"],
    "given_probability": row["given_probability"],
    "suggested": None if suggested is None else int(suggested),
    "suggested_name": row["suggested_name"],
    "suggested_probability": row["suggested_probability"],
    "differs": suggested is not None and suggested != row["label"],
    "true": None if true is None or true == row["label"] else str(listed.names(np.array([true]))[0]),
  }


def link(file: str, workdir: str | os.PathLike) -> str:
  """Returns where a page in a folder finds a file: as relative, or as absolute, as the file was given.

  What is in a bucket is found by those who may see it, by way of its console.
  """
  if storage.is_bucket(file):
    return f"https://storage.cloud.google.com/{urllib.parse.quote(file.removeprefix('gs://'))}"
  path = os.path.expanduser(file)
  if os.path.isabs(path) or storage.is_bucket(workdir):
    return pathlib.Path(path).absolute().as_uri()
  relative = os.path.relpath(os.path.abspath(path), os.path.abspath(workdir))
  return urllib.parse.quote(pathlib.PurePath(relative).as_posix())


def _png_uri(picture):
  from soseleto_jax.report import figures

  if max(picture.shape[:2]) > _MOST_PIXELS:
    from PIL import Image

    small = Image.fromarray(picture)
    small.thumbnail((_MOST_PIXELS, _MOST_PIXELS))
    picture = np.asarray(small)
  return data_uri(figures.png(picture))


def data_uri(png: bytes) -> str:
  """Returns a picture as the source of an `img`."""
  return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _draw(path, pictures, examples):
  from soseleto_jax.report import figure_style, figures

  captions = []
  for example in examples[: len(pictures)]:
    arrow = f"\n→ {example['suggested_name']}" if example["differs"] else ""
    captions.append(f"{example['given_name']}{arrow}\nα = {example['alpha']:.3f}")
  figure_style.save(figures.example_sheet(pictures, captions), path)
