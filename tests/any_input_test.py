"""Whatever comes in: it works, or one line says what is wrong with it. No other error, and no hang."""

import contextlib
import json
import tempfile
import time
import warnings

import hypothesis
import hypothesis.extra.numpy as extra
import numpy as np
import pytest
from hypothesis import strategies as st

from soseleto_jax.config import changed_fields, default_config, validate
from soseleto_jax.data.task import Task, from_arrays
from soseleto_jax.report import writers

settings = hypothesis.settings(
  deadline=None,
  max_examples=30,
  phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
  derandomize=True,
  database=None,
  suppress_health_check=list(hypothesis.HealthCheck),
)


@contextlib.contextmanager
def soon():
  """Of processor time, whatever else the machine does."""
  start = time.process_time()
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    yield
  assert time.process_time() - start < 5


# Arrays and labels.

DTYPES = extra.scalar_dtypes() | st.sampled_from([np.dtype(object), np.dtype([("a", int), ("b", float)])])
SHAPES = extra.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)


class Lying:
  """A set on disk that does not give what it says."""

  def __init__(self, says, gives, dtype):
    self.shape, self._gives, self.dtype = says, gives, dtype

  def __len__(self):
    return self.shape[0]

  def __getitem__(self, index):
    return np.zeros(self._gives, np.float32)


LAZY = st.builds(
  Lying,
  st.sampled_from([(6, 3), (6,), ()]),
  st.sampled_from([(6, 3), (2, 3), (6, 4), (3,), ()]),
  st.sampled_from([np.float32, np.dtype(np.float32), "float32", "nonsense", None, object]),
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3)
NESTED = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner))


@st.composite
def arrays(draw):
  return draw(extra.arrays(draw(DTYPES.filter(lambda d: d.names is None)), draw(SHAPES)))


@st.composite
def special(draw):
  import pandas as pd
  import scipy.sparse

  array = np.arange(18.0).reshape(6, 3)
  return draw(
    st.sampled_from(
      [
        scipy.sparse.csr_matrix(array), np.ma.masked_less(array, 3), np.ma.masked_less(array, -1), iter([1, 2]),
        np.zeros(6, [("a", int), ("b", float)]), pd.DataFrame(array), pd.Series(array[:, 0]), object(), {1, 2},
        np.float32(3), array.astype(complex), np.array(["2020-01-01"] * 6, "datetime64[D]"), [[1], [1, 2]], len,
        pd.Categorical(["a", None, "b", "a", "b", "a"]), np.array([2**63 + 1] * 6, np.uint64), np.full((6, 3), np.nan),
        np.array([0, 4 * 10**8] * 3), np.array([2**32 + 1, 0] * 3, np.uint64), np.array([0, -1] * 3),
      ]
    )
  )  # fmt: skip


ANYTHING = arrays() | NESTED | special()
X = np.arange(18, dtype=np.float32).reshape(6, 3)
LABEL = np.arange(6) % 2


@pytest.mark.slow
@hypothesis.given(
  place=st.sampled_from(["source_x", "source_label", "target_x", "target_label", "test_x", "test_label"]),
  what=ANYTHING | LAZY,
)
@settings
def test_arrays(place, what):
  given = dict(source_x=X, source_label=LABEL, target_x=X, target_label=LABEL, test_x=X, test_label=LABEL)
  with soon():
    try:
      assert isinstance(from_arrays(**given | {place: what}), Task)
    except ValueError as error:
      assert str(error).strip()


@pytest.mark.slow
@hypothesis.given(
  option=st.sampled_from(["true_label", "normalization", "mean", "source_class_names", "target_class_names", "name"]),
  what=ANYTHING,
)
@settings
def test_options(option, what):
  with soon():
    try:
      assert isinstance(from_arrays(X, LABEL, X, LABEL, X, LABEL, **{option: what}), Task)
    except (ValueError, TypeError) as error:
      assert str(error).strip() and (isinstance(error, ValueError) or option != "true_label")


@pytest.mark.parametrize(
  "label, names",
  [
    (np.array([2**32 + 1, 2**32] * 3, np.uint64), ("4294967296", "4294967297")),
    (np.array([1, 2**62] * 3), ("1", str(2**62))),
    (np.array([0, 4 * 10**8] * 3), ("0", "400000000")),
    (np.array([-1, 2**63 - 1] * 3), ("-1", str(2**63 - 1))),
  ],
)
def test_large_labels_are_names(label, names):
  """They neither wrap nor cost a loop over what lies between."""
  task = from_arrays(X, label, X, label)
  assert task.source_class_names == names and sorted(set(task.source["label"])) == [0, 1]


# Configs.


def leaves(tree, prefix=()):
  for key, value in tree.items():
    yield from leaves(value, (*prefix, key)) if isinstance(value, dict) else [(*prefix, key)]


VALUES = st.integers() | st.floats() | st.text(max_size=5) | st.booleans() | st.none() | st.lists(SCALARS, max_size=3)


@pytest.mark.slow
@hypothesis.given(field=st.sampled_from(sorted(leaves(default_config().to_dict()))), value=VALUES)
@settings
def test_configs(field, value):
  """Of every type that a field of a config takes."""
  config = default_config()
  block = config
  for name in field[:-1]:
    block = block[name]
  try:
    block[field[-1]] = tuple(value) if isinstance(value, list) else value
  except (TypeError, ValueError):
    return  # the config itself refuses it
  try:
    with soon():
      validate(config)
  except ValueError as error:
    assert str(error).startswith("config.")


JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
  lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)


@hypothesis.given(block=st.sampled_from(["alpha", "optimizer", "model", "data", "augment", "seed"]), value=JSON)
@settings
def test_configs_of_other_versions(block, value):
  """What stands in a config.json is compared, whatever it is."""
  fields = default_config().to_dict()
  assert isinstance(changed_fields(fields | {block: value}, fields), list)


# Files of metrics.

LINES = st.one_of(
  st.builds(lambda step, loss: json.dumps({"step": step, "loss": loss}).encode(), st.integers(0, 9), JSON),
  st.binary(max_size=12),
  JSON.map(lambda value: json.dumps(value).encode()),
  st.sampled_from(
    [b'{"step": 1e999}', b'{"step": NaN}', b"[" * 10**5, b'{"step": "x"}', b"\xff\xfe", b'{"step": [1]}']
  ),
)


@hypothesis.given(lines=st.lists(LINES, max_size=4), end=st.sampled_from([b"", b"\n", b"\r\n"]))
@settings
def test_files_of_metrics(lines, end):
  with tempfile.TemporaryDirectory() as folder:
    with open(f"{folder}/{writers.METRICS_FILE}", "wb") as file:
      file.write(b"\n".join(lines) + end)
    try:
      records = writers.read_metrics(folder)
    except ValueError as error:
      assert "is no metric record" in str(error)
    else:
      assert all(isinstance(record["step"], int) for record in records)
    assert writers.holds_records(folder, [], -1) in (True, False) and writers.last_step(folder) >= 0
