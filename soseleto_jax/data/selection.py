"""Which examples of a data set are used: classes, balanced draws, and keeping sets disjoint."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from soseleto_jax.data import checks, draws, lazy

Examples = dict[str, Any]  # arrays; `x` may be a set on disk, see `soseleto_jax.data.lazy`


@dataclasses.dataclass(frozen=True, eq=False)
class Subset:
  """Examples of a split of a data set.

  Attributes:
    examples: arrays of equal length: `x`, `label`, `row` (int32, the example's place in the split); `true_label`, if
      known; `file` (strings), the path that each was read from, if it was.
    class_names: one name for each class.
    dataset: name of the data set.
    split: name of the split.
    left_out: how many of the split's examples are not among these, by the reason.
    meanings: of each name the label as the user has it, such as 3 for "3"; None where labels are 0 to K - 1.
  """

  examples: Examples
  class_names: tuple[str, ...]
  dataset: str
  split: str
  left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)
  meanings: Mapping[str, Any] | None = None

  def __len__(self) -> int:
    return len(self.examples["label"])

  def take(self, index: np.ndarray) -> "Subset":
    """Returns the examples at an index (integers or a mask)."""
    return dataclasses.replace(self, examples=take(self.examples, index))

  def called(self) -> tuple[Any, ...] | None:
    """Returns the label of each class as the user has it; None: 0 to K - 1."""
    return None if self.meanings is None else tuple(self.meanings.get(name, name) for name in self.class_names)

  def leave_out(self, dropped: np.ndarray, reason: str) -> "Subset":
    """Returns the examples that a mask, bool `[N]`, does not mark, and counts those that it does."""
    if not (count := np.count_nonzero(dropped)):
      return self
    left_out = {**self.left_out, reason: self.left_out.get(reason, 0) + int(count)}
    return dataclasses.replace(self.take(~dropped), left_out=left_out)

  def take_classes(self, classes: Sequence[int], field: str) -> "Subset":
    """Keeps the examples of some classes, relabelled 0..len(classes)-1 in the order given.

    Where `true_label` is known, an example stays if both of its labels are among the classes.

    Args:
      classes: classes to keep; empty: all.
      field: the config's side, for messages.

    Raises:
      ValueError: for a class given twice or that is not there, and for labels outside the classes.
    """
    classes, num_classes = tuple(classes), len(self.class_names)
    columns = [key for key in ("label", "true_label") if key in self.examples]
    for column in columns:
      checks.labels(f"{field}: {column}", self.examples[column], num_classes)
    if not classes:
      return self
    wrong = [c for c in classes if isinstance(c, bool) or c not in range(num_classes)]
    if wrong:
      raise ValueError(
        f"{field}.classes={classes} but the classes of {self.dataset!r} are 0..{num_classes - 1}; take {wrong[0]!r} out"
      )
    if len(set(classes)) < len(classes):
      raise ValueError(f"{field}.classes={classes} names a class twice; name each once")
    new_label = np.full(num_classes, -1, np.int32)
    new_label[list(classes)] = np.arange(len(classes))
    relabelled = {column: new_label[self.examples[column]] for column in columns}
    dropped = np.any([labels < 0 for labels in relabelled.values()], axis=0)
    return dataclasses.replace(
      self,
      examples=self.examples | relabelled,
      class_names=tuple(self.class_names[c] for c in classes),
    ).leave_out(dropped, "of other classes")

  def in_classes(self, class_names: Sequence[str]) -> "Subset":
    """Returns the examples of the classes of a list, relabelled by their names' places in it."""
    if tuple(class_names) == self.class_names:
      return self
    place = {name: number for number, name in enumerate(class_names)}
    new_label = np.array([place.get(name, -1) for name in self.class_names], np.int32)
    columns = {key: new_label[self.examples[key]] for key in ("label", "true_label") if key in self.examples}
    subset = dataclasses.replace(self, examples=self.examples | columns, class_names=tuple(class_names))
    return subset.leave_out(
      np.any([column < 0 for column in columns.values()], axis=0), "of classes that one side lacks"
    )

  def without(self, *others: "Subset") -> "Subset":
    """Leaves out the examples that are also in others.

    They are told by `row` where both come from one split, and by their pixels, bit for bit, where
    two data sets, or slices of one, may hold the same images.
    """
    drawn, same = np.zeros((2, len(self)), bool)
    for other in others:
      if (self.dataset, self.split) == (other.dataset, other.split):
        drawn |= np.isin(self.examples["row"], other.examples["row"])
      elif self.dataset != other.dataset or _is_slice(self.split) or _is_slice(other.split):
        same |= same_images(self.examples["x"], other.examples["x"])
    subset = self.leave_out(drawn, "drawn from the same set for target, validation or test")
    return subset.leave_out(same[~drawn], "also in the target, validation or test set")


def take(examples: Examples, index: np.ndarray) -> Examples:
  """Returns the examples at an index (integers or a mask); a set on disk stays there."""
  return {name: lazy.take(column, index) for name, column in examples.items()}


def balanced(labels: np.ndarray, per_class: np.ndarray, seed: int, stream: str, field: str) -> np.ndarray:
  """Draws `per_class[c]` examples of each class c.

  Args:
    labels: int32 `[N]`.
    per_class: integers `[K]`, how many of each class.
    seed: the experiment's seed.
    stream: name of the draw.
    field: config field and value that asked for them, for messages.

  Returns:
    int64 `[sum(per_class)]`, ascending. With the same seed, a smaller draw from the same labels is
    part of a larger one.

  Raises:
    ValueError: where a class has fewer examples than are asked for.
  """
  chosen = []
  for c, wanted in enumerate(per_class):
    rows = np.flatnonzero(labels == c)
    if wanted > len(rows):
      raise ValueError(f"{field} but class {c} has only {len(rows)} images left, not {wanted}; ask for fewer")
    chosen.append(rows[draws.permutation(len(rows), seed, "select", stream, c)[:wanted]])
  return np.sort(np.concatenate(chosen))


def per_class_counts(total: int, num_classes: int, seed: int, stream: str) -> np.ndarray:
  """Splits `total` evenly over the classes; classes drawn at random get one of the remainder."""
  base, remainder = divmod(total, num_classes)
  counts = np.full(num_classes, base)
  order = draws.permutation(num_classes, seed, "select", stream, "remainder")
  counts[order[:remainder]] += 1
  return counts


def even_counts(total: int, available: np.ndarray) -> np.ndarray:
  """Splits `total` over classes as evenly as what each has allows; the first classes get the remainder.

  Args:
    total: at most the sum of `available`.
    available: integers `[K]`.

  >>> even_counts(10, np.array([2, 9, 9])).tolist()
  [2, 4, 4]
  """
  counts = np.zeros_like(available)
  while total > 0:
    open_classes = np.flatnonzero(counts < available)
    share = max(1, total // len(open_classes))
    chosen = open_classes[:total]
    added = np.minimum(share, available[chosen] - counts[chosen])
    counts[chosen] += added
    total -= int(added.sum())
  return counts


def _is_slice(split: str) -> bool:
  return not split.isidentifier()


def same_images(x: Any, others: Any) -> np.ndarray:
  """Which images of x also occur, bit for bit, in others: bool `[N]`."""
  if x.shape[1:] != others.shape[1:]:
    return np.zeros(len(x), bool)
  known = {image.tobytes() for part in lazy.chunks(others) for image in part}
  return np.fromiter((image.tobytes() in known for part in lazy.chunks(x) for image in part), bool, len(x))
