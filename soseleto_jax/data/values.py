"""Tasks whose labels are no classes: numbers to be predicted, or sequences."""

from typing import Any

import numpy as np

from soseleto_jax.data import checks, lazy
from soseleto_jax.data.normalization import fit_normalization
from soseleto_jax.data.selection import Examples
from soseleto_jax.data.task import Task


def from_values(
  source_x: Any,
  source_label: Any,
  target_x: Any,
  target_label: Any,
  test_x: Any = None,
  test_label: Any = None,
  *,
  validation: tuple[Any, Any] | None = None,
  true_label: Any = None,
  wrong: Any = None,
  shared: bool = True,
  normalization: str = "channel",
  name: str = "arrays",
) -> Task:
  """Returns a task of your own arrays, with the checks of `Task`. A run on it needs a loss: `config.loss`, or its door.

  Args:
    source_x: numbers `[N, ...]`; uint8 is kept, others become float32, or with `normalization="as_stored"` integers
      int32. A memory map, or another set of `soseleto_jax.data.lazy`, stays on disk.
    source_label: numbers `[N, ...]`, possibly wrong: integers become int32, others float32.
    target_x: as `source_x`.
    target_label: as `source_label`, but right.
    test_x: as `source_x`; None: no test set.
    test_label: as `target_label`.
    validation: (x, label) of more right examples, or None.
    true_label: the right source labels `[N, ...]`, for analysis, if known.
    wrong: bool `[N]`, which source examples are wrong, for analysis, if that alone is known.
    shared: whether source and target have labels of one meaning, so that one network predicts both.
    normalization: of `x`, a kind of `soseleto_jax.data.normalization.fit_normalization` other than "fixed"; "as_stored"
      is for tokens.
    name: a short name.
  """
  keep_integers = normalization == "as_stored"
  source = _examples("source", source_x, source_label, keep_integers)
  if true_label is not None:
    source["true_label"] = _labels("source true_label", true_label)
  if wrong is not None:
    source["wrong"] = np.asarray(wrong)
  target = _examples("target", target_x, target_label, keep_integers)
  source_normalization = fit_normalization(normalization, source["x"])
  return Task(
    name=name,
    source=source,
    target=target,
    validation=None if validation is None else _examples("validation", *validation, keep_integers),
    test=None if test_x is None else _examples("test", test_x, test_label, keep_integers),
    source_class_names=None,
    target_class_names=None,
    shared_classes=shared,
    source_normalization=source_normalization,
    target_normalization=source_normalization if shared else fit_normalization(normalization, target["x"]),
  )


def _examples(side, x, label, keep_integers) -> Examples:
  if hasattr(x, "__array__") or not hasattr(x, "shape"):
    x = np.asanyarray(x)  # which leaves a memory map one
  dtype = np.int32 if keep_integers and x.dtype.kind in "ui" else np.float32
  if x.dtype.kind in "uif" and x.dtype not in (np.uint8, dtype):
    x = lazy.Rows(x, dtype=dtype) if lazy.is_lazy(x) else x.astype(dtype)
  checks.pixels(f"{side} x", x, any_shape=True)
  return {"x": x, "label": _labels(f"{side} label", label)}


def _labels(field, values):
  values = np.asarray(values)
  if values.dtype.kind not in "biuf":
    raise ValueError(f"{field} has dtype {values.dtype}; give numbers")
  return values.astype(np.float32 if values.dtype.kind == "f" else np.int32)
