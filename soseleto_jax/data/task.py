"""The data of an experiment: a large source set, a small clean target set, and what to test on."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import ml_collections
import numpy as np
from ml_collections import config_dict

from soseleto_jax.data import checks, lazy, sides, synthetic, transforms
from soseleto_jax.data.selection import Examples, Subset


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """Source, target, validation and test sets, checked when made.

  Each set is a dict of `x`, uint8 `[N, H, W, C]` or float32 `[N, D]` as stored (not normalised),
  and `label`, int32 `[N]`. An `x` may stay on disk: see `soseleto_jax.data.lazy`. Sets read from a
  data set also have `row`, int32 `[N]`, the examples' places in its split. `source` has
  `true_label`, int32 `[N]`, where the labels may be wrong and the right ones are known; it is for
  analysis, and no training code may read it.

  Attributes:
    name: a short name of the data.
    source: the large set, whose examples are weighted.
    target: the small clean set, which steers the weights.
    validation: more clean examples, for choosing settings, or None.
    test: for reporting only.
    source_class_names: one name for each source class.
    target_class_names: one name for each class of target, validation and test.
    shared_classes: whether source and target have the same classes (noisy labels; else transfer).
    source_normalization: for `source["x"]`.
    target_normalization: for the `x` of target, validation and test.

  Raises:
    ValueError: for labels outside the classes, a class without source or target example, pixels
      that are not finite, or images of unequal shape.
  """

  name: str
  source: Examples
  target: Examples
  validation: Examples | None
  test: Examples
  source_class_names: tuple[str, ...]
  target_class_names: tuple[str, ...]
  shared_classes: bool
  source_normalization: transforms.Normalization
  target_normalization: transforms.Normalization

  def __post_init__(self):
    sets = {"source": self.source, "target": self.target, "test": self.test}
    if self.validation is not None:
      sets["validation"] = self.validation
    for name, examples in sets.items():
      num_classes = self.num_source_classes if name == "source" else self.num_target_classes
      checks.pixels(f"{name} x", examples["x"])
      for column in ("label", "true_label"):
        if column in examples:
          checks.labels(f"{name} {column}", examples[column], num_classes)
          if len(examples[column]) != len(examples["x"]):
            raise ValueError(
              f"{name} has {len(examples['x'])} examples but {len(examples[column])} of {column}; "
              "give one label for each example"
            )
      if examples["x"].shape[1:] != self.source["x"].shape[1:]:
        raise ValueError(
          f"{name} images are {examples['x'].shape[1:]} but source images are "
          f"{self.source['x'].shape[1:]}; make them equal with `size` and `grayscale`"
        )
    cure = "give more examples, or leave the class out"
    right = self.source.get("true_label", self.source["label"])
    checks.no_empty_class("source", right, self.num_source_classes, cure)
    checks.no_empty_class("target", self.target["label"], self.num_target_classes, cure)
    if self.shared_classes:
      checks.same_classes(self.source_class_names, self.target_class_names)

  @property
  def num_source(self) -> int:
    """N, the number of source examples."""
    return len(self.source["label"])

  @property
  def num_source_classes(self) -> int:
    return len(self.source_class_names)

  @property
  def num_target_classes(self) -> int:
    return len(self.target_class_names)


def data_config() -> ml_collections.ConfigDict:
  """Returns the config of `get_task` with every field at its default.

  `dataset` is `digits`, `synthetic`, the name of a TFDS image set, or `folder` or `arrays` for files of your own under
  `path` (docs/your_data.md). `feed` says where batches come from: `resident` keeps all pixels in memory and on the
  devices, `streaming` reads each batch when its step comes near, and `auto` streams sets of more than 2 GiB, those that
  you gave as memory maps, and everything where there are several processes. `classes=()` means all,
  `size=0` leaves images as they are, `num_examples=0` of the source takes all that are left, and
  the target needs either `num_examples` or `examples_per_class`. `mean` and `std` are for
  `normalization="fixed"`. With `shared_classes` the target uses the source's normalisation.
  """
  images = dict(path="", classes=(), grayscale=False, size=0, normalization="channel", mean=(), std=())
  return ml_collections.ConfigDict(
    dict(
      data_dir=config_dict.placeholder(str),
      feed="auto",  # lazy.FEEDS
      shared_classes=True,
      source=dict(
        dataset="cifar10",
        split="train",
        label_key="label",
        num_examples=0,
        noise="none",
        noise_rate=0.0,
        noise_matrix=(),
        **images,
      ),
      target=dict(
        dataset="cifar10",
        split="train",
        test_split="test",
        label_key="label",
        num_examples=0,
        examples_per_class=0,
        num_validation=0,
        **images,
      ),
    )
  )


def get_task(
  config: ml_collections.ConfigDict,
  seed: int,
  num_processes: int = 1,
  read: Callable[..., Subset] = sides.read,
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
    read: reads a split. For many tasks on the same sets give them one `functools.cache(sides.read)`, which keeps the
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
  most_bytes = lazy.memory_limit(config.feed, num_processes)
  read = functools.cache(functools.partial(read, data_dir=config.data_dir, most_bytes=most_bytes))

  target_pool, target, validation, test = sides.read_target(read, target_side, seed)
  held_out = [part for part in (target, validation, test) if part is not None]
  source_pool = sides.choose(read, source_side, source_side.split, "source").without(*held_out)
  source = sides.draw_source(source_pool, source_side, seed)

  source_normalization = _fit("source", source_side, (source if shared else source_pool).examples)
  if shared:
    target_normalization = source_normalization
  else:
    target_normalization = _fit("target", target_side, target_pool.examples)
  return Task(
    name=" -> ".join(dict.fromkeys(side.path or side.dataset for side in (source_side, target_side))),
    source=source.examples,
    target=target.examples,
    validation=validation.examples if validation else None,
    test=test.examples,
    source_class_names=source.class_names,
    target_class_names=target.class_names,
    shared_classes=shared,
    source_normalization=source_normalization,
    target_normalization=target_normalization,
  )


def from_arrays(
  source_x: np.ndarray,
  source_label: np.ndarray,
  target_x: np.ndarray,
  target_label: np.ndarray,
  test_x: np.ndarray,
  test_label: np.ndarray,
  *,
  validation: tuple[np.ndarray, np.ndarray] | None = None,
  true_label: np.ndarray | None = None,
  shared_classes: bool = True,
  normalization: str = "channel",
  mean: Sequence[float] = (),
  std: Sequence[float] = (),
  source_class_names: Sequence[str] = (),
  target_class_names: Sequence[str] = (),
  name: str = "arrays",
) -> Task:
  """Returns a task made of your own arrays, with the checks of `Task`.

  Args:
    source_x: `[N, H, W, C]` or `[N, D]`; uint8 is kept, other numbers become float32. A memory map, or another set of
      `soseleto_jax.data.lazy`, stays on disk.
    source_label: integers `[N]`, possibly wrong.
    target_x: as `source_x`.
    target_label: integers, right.
    test_x: as `source_x`.
    test_label: integers.
    validation: (x, label) of more clean examples, or None.
    true_label: the right source labels `[N]`, for analysis, if known.
    shared_classes: whether source and target have the same classes.
    normalization: a kind of `transforms.fit_normalization`, fitted on the source (and, without
      `shared_classes`, on the target for the target's side).
    mean: for `normalization="fixed"`.
    std: for `normalization="fixed"`.
    source_class_names: one name for each source class; by default its number.
    target_class_names: likewise; by default, with `shared_classes`, the source's.
    name: a short name.
  """
  source = _examples(source_x, source_label)
  if true_label is not None:
    source["true_label"] = _integers(true_label)
  target, test = _examples(target_x, target_label), _examples(test_x, test_label)
  held_out = _examples(*validation) if validation is not None else None
  clean_labels = [part["label"] for part in (target, test, held_out) if part is not None]
  source_labels = [source["label"], source.get("true_label", source["label"])]
  if shared_classes:
    all_labels = source_labels + clean_labels
    names = tuple(source_class_names) or tuple(target_class_names) or _numbered(all_labels)
    source_names, target_names = names, tuple(target_class_names) or names
  else:
    source_names = tuple(source_class_names) or _numbered(source_labels)
    target_names = tuple(target_class_names) or _numbered(clean_labels)
  checks.pixels("source x", source["x"])
  checks.pixels("target x", target["x"])
  fit = functools.partial(transforms.fit_normalization, normalization, mean=mean, std=std)
  source_normalization = fit(source["x"])
  return Task(
    name=name,
    source=source,
    target=target,
    validation=held_out,
    test=test,
    source_class_names=source_names,
    target_class_names=target_names,
    shared_classes=shared_classes,
    source_normalization=source_normalization,
    target_normalization=source_normalization if shared_classes else fit(target["x"]),
  )


def _examples(x, label) -> Examples:
  if hasattr(x, "__array__") or not hasattr(x, "shape"):
    x = np.asanyarray(x)  # which leaves a memory map one
  if x.dtype.kind in "uif" and x.dtype not in (np.uint8, np.float32):
    x = lazy.Rows(x, dtype=np.float32) if lazy.is_lazy(x) else x.astype(np.float32)
  return {"x": x, "label": _integers(label)}


def _integers(label) -> np.ndarray:
  label = np.asarray(label)
  if label.dtype.kind not in "iu":
    raise ValueError(f"labels have dtype {label.dtype}; give integers")
  return label.astype(np.int32)


def _numbered(labels: Sequence[np.ndarray]) -> tuple[str, ...]:
  count = 1 + max(int(part.max(initial=0)) for part in labels)
  return tuple(str(c) for c in range(count))


def _fit(
  field: str, side: ml_collections.ConfigDict, examples: Examples
) -> transforms.Normalization:
  with checks.prefix(f"config.data.{field}."):
    return transforms.fit_normalization(side.normalization, examples["x"], side.mean, side.std)


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
  normalization = _fit("source", config.source, sets["source"])
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
