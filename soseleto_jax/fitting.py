"""From one's own data to a result in one call: what `soseleto_jax.fit` is."""

import functools
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optax
from ml_collections import ConfigDict

from soseleto_jax import choices
from soseleto_jax.config import default_config
from soseleto_jax.data import bucket_copies, own
from soseleto_jax.data.normalization import fit_normalization
from soseleto_jax.models.network import is_whole
from soseleto_jax.run.given import Evaluate
from soseleto_jax.run.result import Result
from soseleto_jax.train import train_and_evaluate


def fit(
  source: Any,
  target: Any,
  test: Any = None,
  *,
  validation: Any = None,
  network: Any = None,
  workdir: str | os.PathLike | None = None,
  params: Any = None,
  augment: Mapping[str, Any] | None = None,
  optimizer: optax.GradientTransformation | Mapping[str, Any] | None = None,
  method: str | Callable[..., Any] = "soseleto",
  evaluators: Sequence[Evaluate] = (),
  true_label: Any = None,
  shared_classes: bool = True,
  drop_unshared: bool = False,
  num_test: int = 0,
  num_validation: int | None = None,
  size: int | None = None,
  grayscale: bool = False,
  aspect: str = "crop",
  background: str = "white",
  on_unreadable: str = "stop",
  normalization: str = "channel",
  mean: Sequence[float] = (),
  std: Sequence[float] = (),
  verbose: bool = True,
  **fields: Any,
) -> Result:
  """Trains on your own data: which source examples to trust, and a classifier.

  Network, batch sizes, epochs, learning rate and the settings of alpha follow from the data, by the table in
  docs/settings.md; what is chosen is printed, and everything can be given.

  Args:
    source: many examples whose labels you do not quite trust: a pair (x, labels) of arrays, lists, memory maps, or a
      DataFrame and a Series; or a folder, or `gs://bucket/folder`, of images with one folder for each class, or of
      x.npy and label.npy. Labels are strings, whole numbers, bools or categories.
    target: a few that you do trust, likewise. Of a folder its `train`, where there is one.
    test: what to test on, likewise; None takes the target folder's `test`, or `num_test` examples of the target.
    validation: more that you trust, by which the best step is told; None takes the target folder's `validation`, or
      `num_validation` examples of the target.
    network: yours; see `train_and_evaluate`. None: one of ours.
    workdir: the run's folder, in which the same call resumes; None makes one among the temporary files.
    params: what the network starts from; see `train_and_evaluate`.
    augment: {"source": ..., "target": ...}, functions as in `train_and_evaluate`, or names, such as ("flip", "crop=4").
    optimizer: any optax transformation, or fields of `config.optimizer`, such as {"learning_rate": 0.01}.
    method: `config.method`, or a maker of your own.
    evaluators: see `train_and_evaluate`.
    true_label: the right labels of the source, if known: for the report, training does not look at them.
    shared_classes: whether source and target have the same classes; else the source helps by its representation alone.
    drop_unshared: leaves out examples of classes that only one side has, which are an error otherwise.
    num_test: how many examples of the target to hold back as a test set.
    num_validation: how many to hold back for validation; None: a fifth where there are 50 or more of each class.
    size: height and width to make the images of folders into; None chooses, 0 leaves them as they are.
    grayscale: whether images of folders become gray.
    aspect: of images of folders that are no squares: "crop", "pad" or "stretch".
    background: the colour behind images of folders that are transparent, or padded.
    on_unreadable: "stop" at files of a folder that are no images, or "skip" them.
    normalization: of inputs, a kind of `soseleto_jax.data.normalization.fit_normalization`: "fixed", with `mean` and
      `std` for pixels in [0, 1], for a network that was trained with these.
    mean: for "fixed", a number for each channel.
    std: likewise.
    verbose: whether to print what is chosen, and where the run's folder is.
    **fields: of `soseleto_jax.config.default_config`, such as `num_epochs=30`, `seed=1` or `alpha={"step_size": 0.01}`;
      of its `data` only `feed`, since the sets are here.

  Returns:
    A `Result`: `suspects()`, the source examples whose labels are most likely wrong; `predict(x)`; `alpha`, a weight
    for each source example; `report`, a page to open in a browser.

  Raises:
    ValueError: data or settings that cannot be used; the message says what to change.
  """
  bucket_copies.look_again()
  config = default_config()
  data = config.data
  data.update(_data_fields(fields))
  data.update(shared_classes=shared_classes, drop_unshared=drop_unshared, on_unreadable=on_unreadable)
  look = dict(grayscale=grayscale, aspect=aspect, background=background, size=_size(size, source, target))
  data.source.update(look)
  if num_validation is None:
    has_own = validation is not None or (own.is_folder(target) and own.has_split(target, "validation"))
    num_validation = 0 if has_own else choices.num_validation(own.target_counts(target))
  data.target.update(look, num_test=num_test, num_validation=num_validation)
  normalize = functools.partial(fit_normalization, normalization, mean=mean, std=std)
  seed = fields.get("seed", config.seed)
  task = own.make_task(source, target, test, validation, data, seed, true_label=true_label, fit=normalize)
  own_network = "" if network is None else "whole" if is_whole(network) else "features"
  facts = choices.facts_of(task, own_network=own_network, pretrained=params is not None)
  lines = choices.choose(config, facts, fields.get("num_epochs", 0))
  given = _override(config, fields, method=method, optimizer=optimizer, augment=augment)
  workdir = tempfile.mkdtemp(prefix="soseleto-") if workdir is None else os.fspath(workdir)
  if verbose:
    print("\n".join([*lines, *_given_lines(fields), f"folder: {workdir}"]))
  return train_and_evaluate(config, workdir, task, network=network, params=params, evaluators=evaluators, **given)


def _data_fields(fields):
  """Returns what the caller gave of `config.data`, to read by; all else of it are arguments, or the sets."""
  given = dict(fields.get("data", {}))
  unread = [f"data={{{name!r}: {value!r}}}" for name, value in given.items() if name != "feed"]
  unread += [f"{name}={fields[name]!r}" for name in ("task", "task_options") if name in fields]
  if unread:
    raise ValueError(
      f"{', '.join(unread)}: fit takes its sets as source, target, test and validation, and how to read them by "
      "arguments of its own, such as size or num_test; of config.data give feed alone"
    )
  return given


def _size(size, source, target):
  """Returns the size of images, for both sides, where one is a folder of them."""
  if size is not None:
    return size
  given = {"source": source, "target": target}
  found = {side: own.listing(part) for side, part in given.items() if own.is_folder(part)}
  sides = [part.shorter_side for part in found.values() if part.kind == "folder"]
  if len(sides) < 2:  # no images, or such as have to meet arrays of a size of their own
    return 0
  return choices.image_size(min(sides), sum(found["source"].counts))


def _override(config, fields, *, method, optimizer, augment) -> dict[str, Any]:
  """Puts what the caller gave into the config; returns what has no place there."""
  fields, given = dict(fields), {}
  if "model" in fields:
    config.model = ConfigDict({"dtype": "float32"} | dict(fields.pop("model")))
  if isinstance(method, str):
    config.method = method
  else:
    given["method"] = method
  if isinstance(optimizer, Mapping):
    config.optimizer.update(optimizer)
  elif optimizer is not None:
    given["optimizer"] = optimizer
  if augment is not None and any(map(callable, augment.values())):
    given["augment"] = augment
  elif augment is not None:
    config.augment.update({side: tuple(names) for side, names in augment.items()})
  config.update(fields)
  return given


def _given_lines(fields):
  return [f"given: {', '.join(f'{name}={value!r}' for name, value in fields.items())}"] if fields else []
