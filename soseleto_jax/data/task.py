"""The data of an experiment: a large source set, a small clean target set, and what to test on."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from soseleto_jax.data import checks, lazy
from soseleto_jax.data.normalization import Normalization, fit_normalization
from soseleto_jax.data.selection import Examples


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """Source, target, validation and test sets, checked when made.

  Each set is a dict of `x`, uint8 `[N, H, W, C]` or float32 `[N, D]` as stored (not normalised),
  and `label`, int32 `[N]`. An `x` may stay on disk: see `soseleto_jax.data.lazy`. `row`, int32 `[N]`, is the examples'
  places in the data set's split or the user's own data, by default their order here; `file`, strings `[N]`, the paths
  that they were read from, where they were. `source` has
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
    left_out: how many examples of the user's source are not in `source`, by the reason.
    target_labels: what the user calls each of the target's classes, strings or numbers, which is what predictions are
      given in; None: 0 to K - 1.

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
  source_normalization: Normalization
  target_normalization: Normalization
  left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)
  target_labels: tuple[Any, ...] | None = None

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
    normalization: a kind of `soseleto_jax.data.normalization.fit_normalization`, fitted on the source (and, without
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
  labels = {
    "source": [source["label"], source.get("true_label", source["label"])],
    "target": [part["label"] for part in (target, test, held_out) if part is not None],
  }
  given = {"source": tuple(source_class_names), "target": tuple(target_class_names)}
  names = _class_names(given, labels, shared_classes)
  checks.pixels("source x", source["x"])
  checks.pixels("target x", target["x"])
  fit = functools.partial(fit_normalization, normalization, mean=mean, std=std)
  source_normalization = fit(source["x"])
  return Task(
    name=name,
    source=source,
    target=target,
    validation=held_out,
    test=test,
    source_class_names=names["source"],
    target_class_names=names["target"],
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


def _class_names(given, labels, shared):
  """Returns the names of each side's classes: those given, the other side's where they share classes, or numbers."""
  if not shared:
    return {side: names or _numbered(labels[side]) for side, names in given.items()}
  either = given["source"] or given["target"] or _numbered(labels["source"] + labels["target"])
  return {side: names or either for side, names in given.items()}


def _numbered(labels: Sequence[np.ndarray]) -> tuple[str, ...]:
  count = 1 + max(int(part.max(initial=0)) for part in labels)
  return tuple(str(c) for c in range(count))
