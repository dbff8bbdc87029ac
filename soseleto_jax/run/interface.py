"""What goes into a run's network and what comes out, as the run's folder keeps it: task.json."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from soseleto_jax import storage
from soseleto_jax.data import lazy
from soseleto_jax.data.normalization import Normalization
from soseleto_jax.data.task import Task
from soseleto_jax.methods.base import Method, PredictOfNetwork
from soseleto_jax.report import writers

FILE = "task.json"

# How a method predicts: by the network, by the network among parameters of its own, or by something that no file holds.
NETWORK, NETWORK_BESIDE, OWN = "network", "network_beside", "own"


@dataclasses.dataclass(frozen=True, eq=False)
class Interface:
  """Inputs and classes of a trained network.

  Attributes:
    name: of the task.
    shape: of one input as it is stored, `[H, W, C]` or `[D]`.
    dtype: of inputs as they are stored, "uint8" or "float32", or "int32" of tokens.
    reach: the least and the largest number of the target's inputs.
    normalization: of the target's inputs.
    class_names: of "source" and "target"; None where labels are no classes.
    labels: what the user calls each of the target's classes, strings or numbers; None: 0 to K - 1.
    shared_classes: whether both sides have the same classes.
    predicts: `NETWORK`, `NETWORK_BESIDE` or `OWN`.
    label_shapes: of one label of "source" and "target".
  """

  name: str
  shape: tuple[int, ...]
  dtype: str
  reach: tuple[float, float]
  normalization: Normalization
  class_names: Mapping[str, tuple[str, ...]] | None
  labels: tuple[Any, ...] | None
  shared_classes: bool
  predicts: str
  label_shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=lambda: {"source": (), "target": ()})

  @property
  def num_classes(self) -> Any:
    """How many classes, or numbers in a label that is none, a network is made for: a number, or one for each side."""
    if self.class_names is None:
      counts = {side: math.prod(shape) for side, shape in self.label_shapes.items()}
    else:
      counts = {side: len(names) for side, names in self.class_names.items()}
    return counts["target"] if self.shared_classes else counts

  @property
  def head(self) -> str | None:
    """Of the network, for the target's classes."""
    return None if self.shared_classes else "target"

  def write(self, workdir: str | os.PathLike) -> None:
    """Writes `task.json`."""
    fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    fields["normalization"] = dataclasses.asdict(self.normalization)
    writers.write_json(storage.as_path(workdir) / FILE, fields)


def interface_of(task: Task, method: Method) -> Interface:
  """Returns the interface of a network that a method trains on a task."""
  if method.predict is None:
    predicts = NETWORK
  else:
    predicts = NETWORK_BESIDE if isinstance(method.predict, PredictOfNetwork) else OWN
  return Interface(
    name=task.name,
    shape=tuple(task.target["x"].shape[1:]),
    dtype=str(task.target["x"].dtype),
    reach=_reach(task.target["x"]),
    normalization=task.target_normalization,
    class_names={side: task.class_names(side) for side in ("source", "target")} if task.has_classes else None,
    label_shapes={"source": task.source["label"].shape[1:], "target": task.target["label"].shape[1:]},
    labels=task.target_labels,
    shared_classes=task.shared_classes,
    predicts=predicts,
  )


def _reach(x):
  ends = np.array([[part.min(), part.max()] for part in lazy.chunks(x)], np.float64)
  return float(ends[:, 0].min()), float(ends[:, 1].max())


def read(workdir: str | os.PathLike) -> Interface:
  """Reads `task.json`.

  Raises:
    ValueError: the folder has none, as those of version 0.1.0.
  """
  path = storage.as_path(workdir) / FILE
  try:
    fields = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError as error:
    raise ValueError(
      f"{path} is not there: give the folder of a run, and where it is an older version's run its command again, "
      "which repeats nothing and writes the file"
    ) from error
  normalization = dict(fields["normalization"])
  for name in ("mean", "std"):
    if normalization[name] is not None:
      normalization[name] = np.asarray(normalization[name], np.float32)
  names, shapes = fields["class_names"], fields.get("label_shapes", {"source": (), "target": ()})
  return Interface(**fields | {
    "shape": tuple(fields["shape"]),
    "reach": tuple(fields["reach"]),
    "normalization": Normalization(**normalization),
    "class_names": None if names is None else {side: tuple(of_side) for side, of_side in names.items()},
    "label_shapes": {side: tuple(shape) for side, shape in shapes.items()},
    "labels": None if fields["labels"] is None else tuple(fields["labels"]),
  })  # fmt: skip
