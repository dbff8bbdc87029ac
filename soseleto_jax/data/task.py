"""The data of an experiment: a large source set, a small clean target set, and what to test on."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from soseleto_jax.data import checks, classes, doubts, pairs
from soseleto_jax.data.normalization import Normalization, fit_normalization
from soseleto_jax.data.selection import Examples, Subset


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """Source, target, validation and test sets, checked when made.

  Each set is a dict of `x`, uint8 `[N, H, W, C]` or float32 `[N, D]` or `[N, T, D]` as stored (not normalised),
  and `label`, int32 `[N]`. An `x` may stay on disk: see `soseleto_jax.data.lazy`. `row`, int32 `[N]`, is the examples'
  places in the data set's split or the user's own data, by default their order here; `file`, strings `[N]`, the paths
  that they were read from, where they were. `source` has `true_label`, int32 `[N]`, where the labels may be wrong and
  the right ones are known, or, where it is known which examples are wrong, `wrong`, bool `[N]`; both are for analysis,
  and no training code may read them.

  Where labels are no classes (regression, sequences), the class names are None, `label` and `true_label` are numbers
  `[N, ...]`, and `x` are any numbers `[N, ...]`: see `soseleto_jax.data.values`.

  Attributes:
    name: a short name of the data.
    source: the large set, whose examples are weighted.
    target: the small clean set, which steers the weights.
    validation: more clean examples, for choosing settings, or None.
    test: for reporting only, or None.
    source_class_names: one name for each source class, or None where labels are no classes.
    target_class_names: one name for each class of target, validation and test; None likewise.
    shared_classes: whether source and target have the same classes (noisy labels; else transfer), or labels of one
      meaning.
    source_normalization: for `source["x"]`.
    target_normalization: for the `x` of target, validation and test.
    left_out: how many examples of the user's source are not in `source`, by the reason.
    target_labels: what the user calls each of the target's classes, strings or numbers, which is what predictions are
      given in; None: 0 to K - 1.

  Raises:
    ValueError: for labels outside the classes, a class without source or target example, one class alone,
      pixels that are not finite, or images of unequal shape.
  """

  name: str
  source: Examples
  target: Examples
  validation: Examples | None
  test: Examples | None
  source_class_names: tuple[str, ...] | None
  target_class_names: tuple[str, ...] | None
  shared_classes: bool
  source_normalization: Normalization
  target_normalization: Normalization
  left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)
  target_labels: tuple[Any, ...] | None = None

  def __post_init__(self):
    if (self.source_class_names is None) != (self.target_class_names is None):
      raise ValueError("one side has classes and the other none; give class names to both, or None to both")
    sets = {"source": self.source, "target": self.target, "test": self.test, "validation": self.validation}
    for name, examples in sets.items():
      if examples is None:
        continue
      checks.pixels(f"{name} x", examples["x"], any_shape=not self.has_classes)
      for column in ("label", "true_label", "wrong"):
        if column in examples:
          self._check_column(name, column, examples[column])
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
    if self.has_classes:
      self._check_classes()

  def _check_column(self, name, column, values):
    if column == "wrong":
      checks.flags(f"{name} {column}", values)
    elif self.has_classes:
      num_classes = self.num_source_classes if name == "source" else self.num_target_classes
      checks.labels(f"{name} {column}", values, num_classes)
    else:
      like = self.source if name == "source" or self.shared_classes else self.target
      checks.numbers(f"{name} {column}", values, like["label"].shape[1:])

  def _check_classes(self):
    checks.texts("class names", (self.name, *self.source_class_names, *self.target_class_names))
    cure = "give more examples, or leave the class out"
    right = self.source.get("true_label", self.source["label"])
    checks.no_empty_class("source", right, self.source_class_names, cure)
    checks.no_empty_class("target", self.target["label"], self.target_class_names, cure)
    if self.shared_classes:
      checks.same_classes(self.source_class_names, self.target_class_names)

  @property
  def num_source(self) -> int:
    """N, the number of source examples."""
    return len(self.source["label"])

  @property
  def has_classes(self) -> bool:
    """Whether labels are classes."""
    return self.source_class_names is not None

  @property
  def num_source_classes(self) -> int:
    """How many classes the source has; ValueError where labels are no classes."""
    return len(self.class_names("source"))

  @property
  def num_target_classes(self) -> int:
    """How many classes target, validation and test have; ValueError where labels are no classes."""
    return len(self.class_names("target"))

  @property
  def wrong(self) -> np.ndarray | None:
    """`known_wrong` of the source."""
    return known_wrong(self.source)

  def class_names(self, side: str) -> tuple[str, ...]:
    """The names of the classes of "source" or "target"; ValueError where labels are no classes."""
    names = self.source_class_names if side == "source" else self.target_class_names
    if names is None:
      raise ValueError(f"the labels of {self.name!r} are no classes, which this goes by")
    return names


def known_wrong(source: Examples) -> np.ndarray | None:
  """Returns which source examples are wrong, bool `[N]`, for analysis; None where that is not known."""
  if "wrong" in source:
    return source["wrong"]
  if "true_label" not in source:
    return None
  differs = source["label"] != source["true_label"]
  return differs.reshape(len(differs), -1).any(axis=1)


def assemble(
  source: Subset,
  target: Subset,
  test: Subset | None,
  validation: Subset | None,
  *,
  shared_classes: bool,
  fit: Callable[[str, Any], Normalization],
  fit_source_on: Examples | None = None,
  fit_target_on: Examples | None = None,
  name: str,
) -> Task:
  """Returns the task of sets whose classes are matched: see `soseleto_jax.data.classes`.

  Args:
    source: as it is to be weighted.
    target: the clean set.
    test: to test on, or None.
    validation: for choosing settings, or None.
    shared_classes: whether source and target have the same classes; the target is then normalised as the source is.
    fit: `(side, x) -> Normalization`.
    fit_source_on: what the source's normalisation is fitted on; None: the source.
    fit_target_on: likewise the target's, without `shared_classes`.
    name: a short name of the data.
  """
  checks.pixels("source x", source.examples["x"])
  checks.pixels("target x", target.examples["x"])
  source_normalization = fit("source", (fit_source_on or source.examples)["x"])
  target_normalization = source_normalization
  if not shared_classes:
    target_normalization = fit("target", (fit_target_on or target.examples)["x"])
  task = Task(
    name=name,
    source=source.examples,
    target=target.examples,
    validation=None if validation is None else validation.examples,
    test=None if test is None else test.examples,
    source_class_names=source.class_names,
    target_class_names=target.class_names,
    shared_classes=shared_classes,
    source_normalization=source_normalization,
    target_normalization=target_normalization,
    left_out=source.left_out,
    target_labels=target.called(),
  )
  doubts.warn(task)
  return task


def from_arrays(
  source_x: Any,
  source_label: Any,
  target_x: Any,
  target_label: Any,
  test_x: Any = None,
  test_label: Any = None,
  *,
  validation: tuple[Any, Any] | None = None,
  true_label: Any = None,
  shared_classes: bool = True,
  normalization: str = "channel",
  mean: Sequence[float] = (),
  std: Sequence[float] = (),
  source_class_names: Sequence[str] = (),
  target_class_names: Sequence[str] = (),
  drop_unshared: bool = False,
  name: str = "arrays",
) -> Task:
  """Returns a task made of your own arrays, with the checks of `Task`.

  Args:
    source_x: `[N, H, W, C]`, `[N, D]` or `[N, T, D]`, or a DataFrame; uint8 is kept, other numbers become float32. A
      memory map, or another set of `soseleto_jax.data.lazy`, stays on disk.
    source_label: `[N]`, possibly wrong: strings, whole numbers, bools or categories, which become 0..K-1.
    target_x: as `source_x`.
    target_label: as `source_label`, but right.
    test_x: as `source_x`; None: no test set.
    test_label: as `target_label`.
    validation: (x, label) of more clean examples, or None.
    true_label: the right source labels `[N]`, for analysis, if known.
    shared_classes: whether source and target have the same classes.
    normalization: a kind of `soseleto_jax.data.normalization.fit_normalization`, fitted on the source (and, without
      `shared_classes`, on the target for the target's side).
    mean: for `normalization="fixed"`.
    std: for `normalization="fixed"`.
    source_class_names: one name for each source class, where labels are the places in this list; by default the labels.
    target_class_names: likewise; by default, with `shared_classes`, the source's.
    drop_unshared: leaves out examples of classes that only one side has, which are an error otherwise.
    name: a short name.
  """
  given = {"source": tuple(source_class_names), "target": tuple(target_class_names)}
  for side, names in given.items():
    if not all(isinstance(name, str) for name in names):
      raise ValueError(f"{side}_class_names={names!r}: give a string for each class")
  if shared_classes:
    either = given["source"] or given["target"]
    given = {side: names or either for side, names in given.items()}

  def read(field, side, x, label, true_label=None):
    subset = pairs.read(field, x, label, true_label, positions=len(given[side]))
    return dataclasses.replace(subset, class_names=given[side]) if given[side] else subset

  source = read("source", "source", source_x, source_label, true_label)
  parts = {"test": (test_x, test_label), "validation": validation or (None, None)}
  held_out = [None if pair[0] is None else read(field, "target", *pair) for field, pair in parts.items()]
  target, held_out = classes.of_one_side(read("target", "target", target_x, target_label), held_out)
  if shared_classes and source.class_names != given["source"]:
    source, target, held_out = classes.share(source, target, held_out, drop_unshared)
  return assemble(
    source,
    target,
    *held_out,
    shared_classes=shared_classes,
    fit=lambda side, x: fit_normalization(normalization, x, mean=mean, std=std),
    name=name,
  )
