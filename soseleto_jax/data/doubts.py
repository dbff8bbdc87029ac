"""What may be right about a task and is more often a mistake: said, and gone on with."""

import logging
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from soseleto_jax.data import checks, lazy

if TYPE_CHECKING:
  from soseleto_jax.data.task import Task

_LOGGER = logging.getLogger(__name__)

# A number this many times larger than 99 of 100 others squeezes these together when it is normalised with them.
_OUTLIER = 1e4
_SAMPLE, _MOST_NUMBERS = 2**16, 2**28


def warn(task: "Task") -> None:
  """Logs a warning for each doubt about a task."""
  for doubt in found(task):
    _LOGGER.warning("%s", doubt)


def found(task: "Task") -> list[str]:
  """Returns a sentence for each doubt, with its cure."""
  sides = {side: task.class_names(side) for side in ("source", "target")}
  doubts = [*_shape(task.source["x"])]
  for name, class_names in sides.items():
    counts = np.bincount(getattr(task, name)["label"], minlength=len(class_names))
    if (once := np.flatnonzero(counts == 1)).size:
      doubts.append(f"{name}: {checks.called(class_names, once)} with one example; two or more are wanted")
    doubts += _outlier(name, getattr(task, name)["x"])
  for name in ("test", "validation"):
    examples = getattr(task, name)
    if examples is not None:
      counts = np.bincount(examples["label"], minlength=task.num_target_classes)
      if (missing := np.flatnonzero(counts == 0)).size:
        called = checks.called(sides["target"], missing)
        doubts.append(f"the {name} set has no example of {called}: its accuracy says nothing of that")
      doubts += _outlier(name, examples["x"])
  return doubts


def _shape(x):
  shape = x.shape
  if len(shape) == 4 and shape[1] in (1, 3, 4) and shape[3] > 4 and shape[2] > 4:
    yield (
      f"source x has shape {tuple(shape)}, which looks like [N, C, H, W]; here the channels are last: "
      "x.transpose(0, 2, 3, 1)"
    )


def _outlier(name: str, x: Any):
  if x.dtype.kind != "f" or math.prod(x.shape) > _MOST_NUMBERS:
    return
  largest, place, start = 0.0, 0, 0
  sample = []
  for part in lazy.chunks(x):
    size = np.abs(part).reshape(len(part), -1)
    most = size.max(axis=1)
    if most.max() > largest:
      largest, place = float(most.max()), start + int(most.argmax())
    start += len(part)
    sample.append(size.ravel()[:: max(1, size.size // _SAMPLE)])
  usual = float(np.quantile(np.concatenate(sample), 0.99, method="lower"))
  if largest > _OUTLIER * usual > 0:
    yield (
      f"{name} x[{place}] holds {largest:.3g}, where 99 of 100 numbers are below {usual:.3g}: normalised with it all "
      "others become alike. Repair it or leave the example out"
    )
