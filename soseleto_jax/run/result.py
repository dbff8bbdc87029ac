"""What a run leaves, for Python."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from soseleto_jax.core.train_state import TrainState
from soseleto_jax.report import list_files
from soseleto_jax.report.source_list import SourceList
from soseleto_jax.run.prediction import Predictor

if TYPE_CHECKING:
  import pandas as pd


@dataclasses.dataclass(frozen=True)
class Result:
  """What a run leaves.

  Attributes:
    state: the train state, as host arrays: the final one, or of the checkpoint that was loaded, then without
      `opt_state`.
    alpha: float32 `[N]`, its weights.
    records: the lines of metrics.jsonl, one dict for each evaluation.
    summary: the contents of summary.json.
    report: the path of report.html.
    predictor: the network of `state`; None where the run's folder alone does not give it.
    listed: the source's examples, most suspect first; None: they are read from the run's folder.
  """

  state: TrainState
  alpha: np.ndarray
  records: list[dict[str, Any]]
  summary: dict[str, Any]
  report: pathlib.Path
  predictor: Predictor = dataclasses.field(repr=False)
  listed: SourceList | None = dataclasses.field(default=None, repr=False)

  @property
  def class_names(self) -> tuple[str, ...]:
    """A name for each column of `predict_proba`: the target's classes; () where labels are no classes."""
    names = self.predictor.interface.class_names
    return () if names is None else tuple(names["target"])

  @property
  def list_file(self) -> pathlib.Path | None:
    """The path of source_weights.csv, or of such a file; None where the run left none."""
    return list_files.find(self.report.parent)

  def predict(self, x: Any) -> np.ndarray:
    """Classifies inputs as they are stored: they are normalised as in training.

    Args:
      x: `[N, H, W, C]` or `[N, D]`, in memory or on disk, in the units of the training's.

    Returns:
      The classes `[N]`, by the labels that the target came with: strings where they were strings, such as the names of
      folders, else numbers. Where labels are no classes, what the network returns, float32 `[N, ...]`.

    Raises:
      ValueError: inputs of another shape, units that cannot be the training's, or numbers that are not finite.
    """
    return self.predictor.labels(x)

  def predict_proba(self, x: Any) -> np.ndarray:
    """Returns the probability of each class, float32 `[N, K]`, in the order of `class_names`; `x` as for `predict`."""
    return self.predictor.probabilities(x)

  def suspects(self, n: int | None = None) -> pd.DataFrame:
    """Lists the source's examples, most suspect first: see `SourceList.trust`.

    Args:
      n: how many; None: all.

    Returns:
      A pandas DataFrame with the columns of source_weights.csv: "rank", from 0; "index", into `alpha`; "row", the
      place in your own data, and "file"; the given "label" and "label_name"; "alpha"; and what the trained network
      makes of the example: "given_probability", of the given label, and the class that it holds most probable,
      "suggested", "suggested_name", "suggested_probability". "true_label" where it is known.

    Raises:
      ValueError: the method learns no weights, or the run has not ended.
      ImportError: pandas is not installed.
    """
    if self.listed is not None:
      return self.listed.head(n)
    path = self.list_file
    if path is None:
      raise ValueError(
        f"{self.report.parent} holds no list of suspects: its run has not ended, or its method learns no weights"
      )
    return list_files.read(path, n)
