"""Northcutt et al. 2021, "Confident learning: estimating uncertainty in dataset labels", arXiv:1911.00068.

Networks trained on all folds of the source but one give the probabilities of that fold's examples. From these cleanlab,
the authors' own library, tells which labels are wrong (section 3 of the paper); those examples are removed, and the
network is trained again on the others. The paper knows no clean examples: here the last training has them too, as those
of the other methods do, unless told otherwise.
"""

import dataclasses
import pathlib

import jax
import numpy as np
from ml_collections import ConfigDict

from soseleto_jax.data import draws, selection
from soseleto_jax.data.get_task import get_task
from soseleto_jax.data.task import Task
from soseleto_jax.models import make_network
from soseleto_jax.models.losses import predict_fn
from soseleto_jax.report import source_weights
from soseleto_jax.train import Result, train_and_evaluate

FINAL_METHODS = ("joint", "source_only")


@dataclasses.dataclass(frozen=True)
class Pruned:
  """What confident learning leaves.

  Attributes:
    result: of the last training. Its source example i is `numpy.flatnonzero(kept)[i]` of the task's.
    kept: bool `[N]`, the source examples that were not removed.
    quality: float64 `[N]`, cleanlab's label quality score: the probability of the given label.
    pred_probs: float32 `[N, K]`, of networks that did not see the example.
    summary: "removed_fraction" and, where the right labels are known, "wrong_fraction", "auc" and "average_precision"
      of `source_weights.detection`: how well a low quality tells a wrong label.
  """

  result: Result
  kept: np.ndarray
  quality: np.ndarray
  pred_probs: np.ndarray
  summary: dict[str, float]


def confident_learning(
  config: ConfigDict,
  workdir: str | pathlib.Path,
  task: Task | None = None,
  *,
  num_folds: int = 3,
  fold_epochs: int | None = None,
) -> Pruned:
  """Runs the whole method; goes on where it was stopped, as `train_and_evaluate` does.

  Args:
    config: the experiment, for classes that are shared; `method` is that of the last training: "joint", on the kept
      examples and the target, or "source_only".
    workdir: the folder of the last training. Beside it come those of the folds, under folds/, and label_quality.npz
      with `kept`, `quality` and `pred_probs`.
    task: the data; None takes what `config.data` describes.
    num_folds: how many networks are trained for the probabilities.
    fold_epochs: for how long; None: as long as the last one.

  Raises:
    ValueError: settings or data that cannot be used, or a folder whose runs had others.
  """
  if num_folds < 2:
    raise ValueError(f"num_folds={num_folds}: give at least 2, so that there are others to train on")
  if config.method not in FINAL_METHODS:
    raise ValueError(f"config.method={config.method!r}: choose one of {', '.join(FINAL_METHODS)} for the last training")
  if not config.data.shared_classes:
    raise ValueError(
      "config.data.shared_classes=False: confident learning is for noisy labels, with the same classes in source and "
      "target"
    )
  from cleanlab.filter import find_label_issues  # which nothing else needs
  from cleanlab.rank import get_label_quality_scores

  workdir = pathlib.Path(workdir)
  task = get_task(config.data, config.seed) if task is None else task
  label = task.source["label"]
  pred_probs = out_of_fold_probabilities(config, workdir / "folds", task, num_folds, fold_epochs)
  kept = ~find_label_issues(label, pred_probs, n_jobs=1)  # its processes would be forks of one that has threads
  quality = get_label_quality_scores(label, pred_probs)

  result = train_and_evaluate(config, workdir, _take(task, kept))
  np.savez(workdir / "label_quality.npz", kept=kept, quality=quality, pred_probs=pred_probs)
  summary = {"removed_fraction": float(np.mean(~kept))}
  if "true_label" in task.source:
    found = source_weights.detection(quality, label != task.source["true_label"])
    summary |= {name: found[name] for name in ("wrong_fraction", "auc", "average_precision") if name in found}
  return Pruned(result, kept, quality, pred_probs, summary)


def out_of_fold_probabilities(
  config: ConfigDict, folder: pathlib.Path, task: Task, num_folds: int, num_epochs: int | None
) -> np.ndarray:
  """Returns each source example's probabilities from a network that was trained without it, float32 `[N, K]`.

  The folds hold the labels in equal parts. Each network is a run of "source_only" in a folder of its own.
  """
  config = config.copy_and_resolve_references()
  config.method = "source_only"
  config.num_epochs = num_epochs or config.num_epochs
  config.eval_every_epochs = float(config.num_epochs)  # on the test set, which nothing here depends on
  config.alpha.burn_in_epochs = 0.0  # or it might be too long

  logits = predict_fn(make_network(config.model.to_dict(), task.num_source_classes, seed=config.seed))

  @jax.jit
  def predict(params, model_state, x):
    return jax.nn.softmax(logits(params, model_state, task.source_normalization.apply(x)))

  pred_probs = np.empty((task.num_source, task.num_source_classes), np.float32)
  fold_of = _draw_folds(task.source["label"], num_folds, config.seed)
  for fold in range(num_folds):
    state = train_and_evaluate(config, folder / str(fold), _take(task, fold_of != fold)).state
    rows = np.flatnonzero(fold_of == fold)
    for start in range(0, len(rows), config.eval_batch_size):
      part = rows[start : start + config.eval_batch_size]
      pred_probs[part] = predict(state.params, state.model_state, task.source["x"][part])
  return pred_probs


def _draw_folds(label, num_folds, seed):
  """Deals the examples out, label by label, each in random order: int `[N]`."""
  shuffled = draws.permutation(len(label), seed, "confident_learning", "folds")
  order = shuffled[np.argsort(label[shuffled], kind="stable")]
  fold_of = np.empty(len(label), np.int64)
  fold_of[order] = np.arange(len(label)) % num_folds
  return fold_of


def _take(task, mask):
  """The task with some of its source examples only."""
  return dataclasses.replace(task, source=selection.take(task.source, mask))
