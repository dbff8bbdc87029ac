"""Settings that follow from the data: what `configs/own_*.py` and `soseleto_jax.fit` start from.

The table in docs/settings.md says the same in words; the numbers behind it are in docs/lab_notes.md.
"""

import dataclasses
import logging
import math
from collections.abc import Iterable

import numpy as np
from ml_collections import ConfigDict

from soseleto_jax.config import default_config
from soseleto_jax.data import own, selection
from soseleto_jax.data.task import Task

_LOGGER = logging.getLogger(__name__)
_KINDS = {"folder": "folders of images", "arrays": "x.npy and label.npy"}
_FILES = {"folder": "own_images.py", "arrays": "own_arrays.py"}

_STEPS = 400  # what a small network needs at least

# Side of an image in pixels up to which a network takes it, and from which source size on larger ones are worth it.
_TINY, _SMALL, _LARGE_SOURCE = 12, 48, 20_000
_SIDES = (32, 64)

# A network that learns from the target alone has to have seen it so often before the source shows its worth, in a trial
# of at least so many epochs and at most a third of the run's.
_TRIAL_PASSES, _TRIAL_EPOCHS = 23, 3
_LEAST_PER_CLASS_FOR_VALIDATION = 50

_SHARED = dict(target_loss="margin", direction="orthogonal", gain=20.0, target_params="all")
_SHARED_TRANSFORMS = ("residual_normalize", "scale_by_std", "add_agreement")
_LEAST_PER_CLASS_TO_CENTER = 8  # of a batch; the mean of fewer is for a good part the example's own


@dataclasses.dataclass(frozen=True)
class Facts:
  """What settings follow from.

  Attributes:
    num_source: N.
    target_counts: clean examples of each class that the target, and what is drawn from it, may have.
    shape: of one example, `[H, W, C]`, `[T, D]` or `[D]`.
    shared_classes: whether source and target have the same classes.
    held_out: whether there are validation examples beside the target.
    own_network: "" for one of ours; of the user's, "features" for one that gets our classifiers, or "whole".
    pretrained: whether it starts from given parameters.
  """

  num_source: int
  target_counts: tuple[int, ...]
  shape: tuple[int, ...]
  shared_classes: bool = True
  held_out: bool = False
  own_network: str = ""
  pretrained: bool = False

  @property
  def num_target(self) -> int:
    """Clean examples of all classes."""
    return sum(self.target_counts)

  @property
  def is_images(self) -> bool:
    """Whether examples are images."""
    return len(self.shape) == 3


def facts_of(task: Task, *, own_network: str = "", pretrained: bool = False) -> Facts:
  """Returns what settings for a task follow from."""
  counts = np.bincount(task.target["label"], minlength=task.num_target_classes)
  return Facts(
    task.num_source,
    tuple(counts.tolist()),
    tuple(task.source["x"].shape[1:]),
    task.shared_classes,
    task.validation is not None,
    own_network,
    pretrained,
  )


def image_size(shorter_side: int, num_source: int) -> int:
  """Returns the height and width to make photographs into, in pixels, for a network that learns from scratch."""
  side = _SIDES[num_source >= _LARGE_SOURCE]
  return min(side, max(8, shorter_side))


def num_validation(target_counts: Iterable[int]) -> int:
  """Returns how many clean examples to hold back for validation: a fifth where there are 50 of each class, else 0."""
  counts = list(target_counts)
  return min(1000, sum(counts) // 5) if min(counts) >= _LEAST_PER_CLASS_FOR_VALIDATION else 0


def for_folders(source: str, target: str, kind: str, num_epochs: int = 0) -> ConfigDict:
  """Returns the config of a run on two folders, with settings that follow from what is in them, and logs these.

  Args:
    source: the folder of many examples.
    target: the folder of the few that can be trusted; `train`, `validation` and `test` in it, or classes alone.
    kind: "folder" for folders of images, "arrays" for NumPy files.
    num_epochs: passes over the source; 0 chooses.

  Raises:
    ValueError: a folder that is not there or cannot be used.
  """
  config = default_config()
  if not (source and target):
    raise ValueError("name your folders: --config=configs/own_images.py:source=web,target=clean")
  many, few = own.listing(source), own.listing(target)
  for path, found in ((source, many), (target, few)):
    if found.kind != kind:
      raise ValueError(f"{path} holds {_KINDS[found.kind]}, not {_KINDS[kind]}: take configs/{_FILES[found.kind]}")
  num_source = sum(many.counts)
  size = image_size(min(many.shorter_side, few.shorter_side), num_source) if kind == "folder" else 0
  for side, path in ((config.data.source, source), (config.data.target, target)):
    side.update(dataset=kind, path=path, size=size)
  splits = {name: name if own.has_split(target, name) else "" for name in ("test", "validation")}
  held_back = 0 if splits["validation"] else num_validation(few.counts)
  config.data.target.update(test_split=splits["test"], validation_split=splits["validation"], num_validation=held_back)
  counts = np.array(few.counts)
  counts -= selection.even_counts(held_back, counts - 1)
  shape = (size, size, 3) if kind == "folder" else many.shape
  held_out = bool(splits["validation"] or held_back)
  for line in choose(config, Facts(num_source, tuple(counts.tolist()), shape, held_out=held_out), num_epochs):
    _LOGGER.info("%s", line)
  return config


def choose(config: ConfigDict, facts: Facts, num_epochs: int = 0) -> list[str]:
  """Sets everything but the data in a config.

  Args:
    config: of `soseleto_jax.config.default_config`; changed.
    facts: of the data.
    num_epochs: passes over the source; 0 chooses.

  Returns:
    A line for each choice: what was chosen, and by what.
  """
  config.batch_size = _batch_size(facts.num_source)
  steps = math.ceil(facts.num_source / config.batch_size)
  config.target_batch_size = min(facts.num_target, max(100, 2 * len(facts.target_counts)))
  config.target_balanced = config.target_batch_size < facts.num_target or len(set(facts.target_counts)) > 1
  config.target_weight = 0.25
  config.num_epochs = num_epochs or (int(np.clip(_STEPS // steps, 20, 60)) if facts.num_source < 10**6 else 10)
  config.eval_every_epochs = config.checkpoint_every_epochs = float(max(1, config.num_epochs // 10))
  network = _choose_network(config, facts)
  _choose_alpha(config, facts, steps)
  return _lines(config, facts, network)


def _batch_size(num_source):
  most = 128 if num_source < _LARGE_SOURCE else 256
  return int(np.clip(2 ** round(math.log2(max(num_source / 16, 1))), min(8, num_source), min(most, num_source)))


def _choose_network(config, facts):
  """Sets network and optimizer; returns why."""
  optimizer = dict(learning_rate=0.05, weight_decay=0.0, schedule="constant", drop_epochs=())
  drop = dict(schedule="steps", drop_epochs=(round(config.num_epochs * 5 / 6),))
  drop = drop if facts.num_source >= _LARGE_SOURCE else {}
  side = min(facts.shape[:2]) if facts.is_images else 0
  if facts.own_network:
    config.optimizer.update(optimizer | dict(learning_rate=0.005 if facts.pretrained else 0.02) | drop)
    return "yours" + (", from given parameters" if facts.pretrained else "")
  if not facts.is_images or side <= _TINY:
    config.model = ConfigDict(dict(name="mlp", hidden=(128,), dtype="float32"))
    config.optimizer.update(optimizer)
    return "tiny images" if facts.is_images else "vectors" if len(facts.shape) == 1 else "sequences, taken as vectors"
  if side <= _SMALL:
    config.model = ConfigDict(dict(name="cifar_quick", init="fan_in", dtype="float32"))
    config.optimizer.update(optimizer | dict(learning_rate=0.02, weight_decay=4e-4) | drop)
    return f"images of up to {_SMALL} pixels"
  config.model = ConfigDict(dict(name="resnet", norm="group", width=32, stage_sizes=(1, 1, 1, 1), dtype="float32"))
  config.optimizer.update(optimizer | dict(learning_rate=0.02, weight_decay=4e-4) | drop)
  return f"images of more than {_SMALL} pixels"


def _choose_alpha(config, facts, steps_per_epoch):
  if not facts.shared_classes:
    step_size = max(0.0125, 0.25 / config.num_epochs)
    config.alpha.update(step_size=step_size, transforms=("scale_by_std",), target_params="all")
    return
  is_mlp = not facts.own_network and config.model.name == "mlp"
  centered = not is_mlp and config.batch_size >= _LEAST_PER_CLASS_TO_CENTER * len(facts.target_counts)
  transforms = _SHARED_TRANSFORMS + ("center_by_class",) * centered
  config.alpha.update(_SHARED | dict(step_size=max(0.005, 0.1 / config.num_epochs), transforms=transforms))
  config.alpha.params = () if is_mlp or facts.own_network == "whole" else ("classifier",)
  if facts.own_network == "whole":
    config.alpha.direction = "gradient"  # the other takes a decomposition of every kernel
  config.alpha.burn_in_epochs = 0.0 if is_mlp else float(config.num_epochs // 2)
  config.alpha.trial_epochs = _trial_epochs(config, facts, steps_per_epoch)


def _trial_epochs(config, facts, steps_per_epoch):
  if not facts.held_out and min(facts.target_counts) < 3:
    return 0
  passes = config.target_batch_size * steps_per_epoch / facts.num_target  # over the target, in each
  return max(_TRIAL_EPOCHS, min(math.ceil(_TRIAL_PASSES / passes), config.num_epochs // 3))


def _lines(config, facts, network):
  alpha, optimizer = config.alpha, config.optimizer
  kind = {1: "vectors of ", 2: "sequences of ", 3: "images "}.get(len(facts.shape), "")
  shape = kind + ("x".join(map(str, facts.shape)) or "numbers")
  name = "" if facts.own_network else f"{config.model.name}, for "
  start = f"where a trial of {alpha.trial_epochs} epochs says" if alpha.trial_epochs else f"at {alpha.init:g}"
  schedule = f", a tenth after {optimizer.drop_epochs[0]} epochs" if optimizer.drop_epochs else ""
  return [
    f"data: {facts.num_source} source and {facts.num_target} clean examples of {len(facts.target_counts)} classes, "
    + shape,
    f"network: {name}{network}",
    f"training: {config.num_epochs} epochs; batches of {config.batch_size} and {config.target_batch_size} clean "
    f"examples; learning rate {optimizer.learning_rate:g}{schedule}",
    f"alpha: starts {start}; steps of {alpha.step_size:.4g}"
    + (f"; weights count after {alpha.burn_in_epochs:g} epochs" if alpha.burn_in_epochs else ""),
    f"validation: {'by clean examples beside the target' if facts.held_out else 'none; the last epoch is taken'}",
  ]
