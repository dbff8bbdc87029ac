"""The list of the source's examples, most suspect first: what stands in it."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from soseleto_jax.report import list_files, source_weights

if TYPE_CHECKING:
  import pandas as pd


@dataclasses.dataclass(frozen=True, eq=False)
class Suggestions:
  """What the trained network says of each source example, of the classes that the source has.

  Attributes:
    given_probability: float32 `[N]`, of the given label.
    suggested: int32 `[N]`, the most probable class.
    suggested_probability: float32 `[N]`, of that class.
  """

  given_probability: np.ndarray
  suggested: np.ndarray
  suggested_probability: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class SourceList:
  """The source's examples, most suspect first: by `trust`.

  Attributes:
    alpha: float32 `[N]`, the weights.
    label: int `[N]`, the given labels.
    row: int `[N]`, the examples' places in the user's own data; None: their order here.
    file: strings `[N]`, the paths that they were read from; None where they were not.
    suggestions: of the network; None where there are none.
    true_label: int `[N]`, where known.
    class_names: one for each class; None shows numbers.
    value: numbers `[N]`, the labels where they are no classes; None where they are more than a number.
    true_value: numbers `[N]`, where known.
    known_wrong: bool `[N]`, which examples are wrong, where that is known; None: those of another `true_label`.

  Raises:
    ValueError: the arrays are empty, differ in length, or hold a weight that is not finite.
  """

  alpha: np.ndarray
  label: np.ndarray | None = None
  row: np.ndarray | None = None
  file: np.ndarray | None = None
  suggestions: Suggestions | None = None
  true_label: np.ndarray | None = None
  class_names: Sequence[str] | None = None
  value: np.ndarray | None = None
  true_value: np.ndarray | None = None
  known_wrong: np.ndarray | None = None

  def __post_init__(self):
    source_weights.check_alpha(self.alpha)
    said = {} if self.suggestions is None else vars(self.suggestions)
    columns = {"label": self.label, "row": self.row, "file": self.file, "true_label": self.true_label, **said}
    columns |= {"value": self.value, "true_value": self.true_value, "known_wrong": self.known_wrong}
    for name, column in columns.items():
      if column is not None:
        source_weights.check_column(name, column, self.alpha)

  def __len__(self) -> int:
    return len(self.alpha)

  @property
  def wrong(self) -> np.ndarray | None:
    """Which examples are wrong, bool `[N]`; None where that is not known."""
    if self.known_wrong is not None or self.true_label is None:
      return self.known_wrong
    return np.asarray(self.label != self.true_label)

  @functools.cached_property
  def trust(self) -> np.ndarray:
    """How far each label can be trusted, float64 `[N]`; only the order means something.

    It is the place by alpha plus the place by the probability of the given label, in ascending order. Alpha sums up the
    whole training, the probability is the final network's, which knows most and has learned little of what alpha left
    out. Of nearly every kind of wrong label the two find more than alpha alone: docs/lab_notes.md. Without suggestions:
    alpha.
    """
    if self.suggestions is None:
      return self.alpha.astype(np.float64)
    return _ranks(self.alpha) + _ranks(self.suggestions.given_probability)

  @functools.cached_property
  def order(self) -> np.ndarray:
    """The examples' indices, int64 `[N]`, most suspect first; where that ties, ascending."""
    return np.argsort(self.trust, kind="stable")

  @property
  def auc(self) -> float | None:
    """Area under the ROC curve of the order as detector of wrong examples; None where it is unknown or undefined."""
    return None if self.wrong is None else source_weights.roc_auc(self.trust, self.wrong)

  def columns(self, start: int = 0, stop: int | None = None) -> dict[str, Any]:
    """Returns the rows from `start` to `stop`: arrays by the names of `list_files.COLUMNS`, None for a
    column that is unknown."""
    index = self.order[start:stop]
    if self.label is None:
      return self._without_classes(start, index)
    said = self.suggestions
    label, suggested = self.label[index], None if said is None else said.suggested[index]
    columns = {
      "rank": np.arange(start, start + len(index)),
      "index": index,
      "row": index if self.row is None else self.row[index],
      "file": None if self.file is None else self.file[index],
      "label": label,
      "label_name": self.names(label),
      "alpha": self.alpha[index],
      "given_probability": None if said is None else said.given_probability[index],
      "suggested": suggested,
      "suggested_name": None if suggested is None else self.names(suggested),
      "suggested_probability": None if said is None else said.suggested_probability[index],
    }
    return columns if self.true_label is None else columns | {"true_label": self.true_label[index]}

  def _without_classes(self, start, index):
    own = {"value": self.value, "true_value": self.true_value}
    return {
      "rank": np.arange(start, start + len(index)),
      "index": index,
      "row": index if self.row is None else self.row[index],
      "file": None if self.file is None else self.file[index],
      "alpha": self.alpha[index],
      **{name: np.asarray(column[index], np.float32) for name, column in own.items() if column is not None},
    }

  def names(self, label: np.ndarray) -> np.ndarray:
    """Returns the names of some labels, an array of str; of one that has no name its number."""
    table = np.array([str(name) for name in self.class_names or ()], object)
    inside = (label >= 0) & (label < len(table))
    if inside.all():
      return table[label]
    names = np.array([str(number) for number in label.tolist()], object)
    names[inside] = table[label[inside]]
    return names

  def head(self, n: int | None = None) -> pd.DataFrame:
    """Returns the first n rows, or all, as a DataFrame with the columns of `list_files.COLUMNS`."""
    return list_files.frame(self.columns(0, list_files.checked_count(n)))

  def write(self, workdir: str | os.PathLike) -> pathlib.Path:
    """Writes `source_weights.csv`, or above 10 million rows `source_weights.parquet`, and beside it `alpha.npy`.

    Each appears whole or not at all, and is written in pieces, so that little more than this object is in memory.
    Numbers of the CSV have the fewest digits that name their float32. Where pyarrow is missing, all lists are CSV.

    Args:
      workdir: the folder of the run; made when missing.

    Returns:
      The path of the list.
    """
    return list_files.write(workdir, self)


def _ranks(values):
  """Returns the place of each value in ascending order; of those that tie, the middle one."""
  _, of, counts = np.unique(values, return_inverse=True, return_counts=True)
  return (np.cumsum(counts) - counts / 2)[of]


def left_out_line(left_out: Mapping[str, int]) -> str:
  """Returns what to say of the examples that are not in the source, such as "3 of other classes; 1 unreadable"."""
  return "; ".join(f"{count:,} {reason}" for reason, count in left_out.items())
