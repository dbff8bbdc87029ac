"""The data that a config describes."""

import functools
from typing import Any

import ml_collections
from ml_collections import config_dict

from soseleto_jax.core import import_path
from soseleto_jax.data import bucket_copies, checks, classes, reading, sides, synthetic
from soseleto_jax.data.normalization import Normalization, fit_normalization
from soseleto_jax.data.task import Task, assemble


def data_config() -> ml_collections.ConfigDict:
  """Returns the config of `get_task` with every field at its default.

  `dataset` is `digits`, `synthetic`, the name of a TFDS image set, or `folder` or `arrays` for files of your own under
  `path` (docs/your_data.md). `feed` says where batches come from: `resident` keeps all pixels in memory and on the
  devices, `streaming` reads each batch when its step comes near, and `auto` streams sets of more than 2 GiB, those that
  you gave as memory maps, and everything where there are several processes. `classes=()` means all,
  `size=0` leaves images as they are, and `num_examples=0` takes all that are left; of the target either it or
  `examples_per_class` may be given. Test and validation are a split, or drawn from the target's, or neither. `mean` and
  `std` are for `normalization="fixed"`. With `shared_classes` the target uses the source's normalisation, and classes
  meet by name.
  """
  images = dict(path="", classes=(), grayscale=False, size=0, normalization="channel", mean=(), std=())
  images |= dict(isolate=False)  # of gray pictures: what stands in the middle, white on black (isolation.isolate)
  images |= dict(deskew=False)  # of gray images, white on black: upright and in the middle (deskewing.deskew)
  images |= dict(aspect="crop", background="white")  # of a folder's images: images.ASPECTS, and what is behind alpha
  return ml_collections.ConfigDict(
    dict(
      data_dir=config_dict.placeholder(str),
      feed="auto",  # lazy.FEEDS
      shared_classes=True,
      drop_unshared=False,  # leaves out the examples of classes that only one side has, which are an error otherwise
      on_unreadable="stop",  # folders.ON_UNREADABLE: what to do about files of a folder that are no images
      source=dict(
        dataset="cifar10",
        split="train",
        label_key="label",
        num_examples=0,
        noise="none",
        noise_rate=0.0,
        noise_matrix=(),
        noise_pairs=(),  # of "asymmetric": (class, the class that it is taken for)
        noise_images=0,  # of "instance": how many the weak annotator learns from
        **images,
      ),
      target=dict(
        dataset="cifar10",
        split="train",
        test_split="test",  # "": none
        validation_split="",
        label_key="label",
        num_examples=0,
        examples_per_class=0,
        num_validation=0,
        num_test=0,
        **images,
      ),
    )
  )


def task_of(config: ml_collections.ConfigDict, num_processes: int = 1, read: reading.Read = reading.read) -> Task:
  """Returns the data of an experiment: what `config.task` makes, or else what `config.data` describes.

  Args:
    config: the experiment. Its `task` is the import path of a function `(seed, **config.task_options) -> Task`.
    num_processes: as for `get_task`.
    read: as for `get_task`.

  Raises:
    ValueError, RuntimeError: as for `get_task`; a task that cannot be found, or is none.
  """
  bucket_copies.look_again()
  if not config.task:
    return get_task(config.data, config.seed, num_processes, read)
  make_task = import_path.find("config.task", config.task)
  task = make_task(config.seed, **config.task_options.to_dict())
  if not isinstance(task, Task):
    raise ValueError(f"config.task={config.task!r} made {task!r}; return a soseleto_jax.data.task.Task")
  return task


def get_task(
  config: ml_collections.ConfigDict,
  seed: int,
  num_processes: int = 1,
  read: reading.Read = reading.read,
) -> Task:
  """Returns the data that a config describes.

  Target, validation, source subset and label noise are drawn from streams of their own, so that
  every method sees the same data for a seed. No source example is also a target, validation or
  test example: by its row where the sets come from one split, by its pixels where two data sets or
  slices of splits may hold the same images.

  Args:
    config: the block that `data_config` returns.
    seed: the experiment's seed.
    num_processes: how many processes train together; where there are several, each reads only its share.
    read: reads a split. For many tasks on the same sets give them one `functools.cache(reading.read)`, which keeps the
      pixels.

  Returns:
    A `Task`. With `shared_classes` the normalisation is fitted on the source images; without, each
    side's on what is left of its split after choosing classes and keeping the sets disjoint.

  Raises:
    ValueError: for anything wrong in the config or the data, naming the field.
    RuntimeError: where a data set is not there and cannot be prepared.
  """
  sides.check_config(config)
  if "synthetic" in (config.source.dataset, config.target.dataset):
    return _synthetic_task(config, seed)
  shared, source_side, target_side = (config[k] for k in ("shared_classes", "source", "target"))
  read = functools.cache(read)
  target_pool, held_out = sides.read_target(read, config, num_processes)
  source_pool = sides.read_source(read, config, num_processes)
  if shared:
    with checks.prefix("config.data.shared_classes=True: "):
      source_pool, target_pool, held_out = classes.share(source_pool, target_pool, held_out, config.drop_unshared)
  target, test, validation = sides.draw_target(target_pool, held_out, target_side, seed)
  source_pool = source_pool.without(*(part for part in (target, validation, test) if part is not None))
  source = sides.draw_source(source_pool, source_side, seed)
  return assemble(
    source,
    target,
    test,
    validation,
    shared_classes=shared,
    fit=lambda side, x: _fit(side, config[side], x),
    fit_source_on=None if shared else source_pool.examples,
    fit_target_on=target_pool.examples,
    name=" -> ".join(dict.fromkeys(side.path or side.dataset for side in (source_side, target_side))),
  )


def _fit(field: str, side: ml_collections.ConfigDict, x: Any) -> Normalization:
  with checks.prefix(f"config.data.{field}."):
    return fit_normalization(side.normalization, x, side.mean, side.std)


def _synthetic_task(config: ml_collections.ConfigDict, seed: int) -> Task:
  """The Figure 1 set, which brings its own target, test set and label noise."""
  settable = {
    "source": ("dataset", "num_examples", "normalization", "mean", "std"),
    "target": ("dataset", "num_examples", "num_validation", "normalization", "mean", "std"),
  }
  defaults = data_config()
  for side, fields in settable.items():
    if config[side].dataset != "synthetic":
      raise ValueError(
        f"config.data.{side}.dataset={config[side].dataset!r} beside 'synthetic', which brings its "
        "own source and target; set both sides to 'synthetic'"
      )
    for field, value in config[side].items():
      if field not in fields and value != defaults[side][field]:
        raise ValueError(
          f"config.data.{side}.{field}={value!r} has no meaning for 'synthetic', which brings its "
          f"own noise and sets; leave it at {defaults[side][field]!r}"
        )
  if not config.shared_classes:
    raise ValueError("config.data.shared_classes=False, but 'synthetic' has one set of classes")
  sizes = {
    "num_source": config.source.num_examples,
    "num_target": config.target.num_examples,
    "num_validation": config.target.num_validation,
  }
  sets = synthetic.make(seed, **{name: size for name, size in sizes.items() if size})
  normalization = _fit("source", config.source, sets["source"]["x"])
  return Task(
    name="synthetic",
    source=sets["source"],
    target=sets["target"],
    validation=sets["validation"] if config.target.num_validation else None,
    test=sets["test"],
    source_class_names=synthetic.CLASS_NAMES,
    target_class_names=synthetic.CLASS_NAMES,
    shared_classes=True,
    source_normalization=normalization,
    target_normalization=normalization,
  )
