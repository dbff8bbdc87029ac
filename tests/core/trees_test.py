import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soseleto_jax.core import trees
from tests import problems

TREE = {"body": (np.float32([1, 2]), np.float32(3)), "head": {"w": np.float32([[4]]), "b": None}}
MARKS = {"body": (False, True), "head": True}
SELECTED = {"body": (None, TREE["body"][1]), "head": TREE["head"]}


def test_select():
  problems.assert_same_bits(trees.select(MARKS, TREE), SELECTED)
  assert trees.select(None, TREE) is TREE
  assert jax.tree.leaves(trees.select(False, TREE)) == []
  problems.assert_same_bits(trees.select(True, TREE), TREE)


def test_fill_undoes_select():
  problems.assert_same_bits(trees.fill(SELECTED, TREE), TREE)
  other = jax.tree.map(lambda leaf: -leaf, TREE)
  filled = trees.fill(SELECTED, other)
  problems.assert_same_bits(filled, {"body": (other["body"][0], TREE["body"][1]), "head": TREE["head"]})


def test_alike():
  other = jax.tree.map(lambda leaf: -leaf, TREE)
  problems.assert_same_bits(trees.alike(SELECTED, other), trees.select(MARKS, other))


@pytest.mark.parametrize(
  "marks, others, expected",
  [
    (MARKS, {"body": (False, False), "head": False}, {"body": (False, True), "head": {"w": True, "b": None}}),
    (False, {"body": True, "head": False}, {"body": (True, True), "head": {"w": False, "b": None}}),
    (None, MARKS, None),
    (MARKS, None, None),
  ],
)
def test_either(marks, others, expected):
  assert trees.either(marks, others, TREE) == expected


@pytest.mark.parametrize(
  "marks, message",
  [
    ({**MARKS, "tail": True}, r"params has no \['tail'\]"),
    ({"body": True, "head": {"v": True}}, r"params has no \['head'\]\['v'\]"),
    ({"body": (True,), "head": True}, r"it says nothing of params\['body'\]\[1\]"),
    ({"head": True}, r"it says nothing of params\['body'\]\[0\]"),
    ({"body": [True, True], "head": True}, "its containers are of other types"),
  ],
)
def test_marks_that_do_not_fit(marks, message):
  with pytest.raises(ValueError, match=f"my_marks does not fit params, {message}: give bools"):
    trees.check_fits(marks, TREE, "my_marks")


@pytest.mark.parametrize("marks", [None, True, False, MARKS, {"body": (True, False), "head": {"w": True, "b": None}}])
def test_marks_that_fit(marks):
  trees.check_fits(marks, TREE, "my_marks")


def test_add():
  """In the dtypes of what is added to; None adds nothing, to the bit."""
  tree = {"a": jnp.bfloat16([1, 2]), "b": np.float32(-0.0), "c": np.float32([5])}
  result = trees.add(tree, {"a": np.float32([2, 4]), "b": None, "c": np.float32([3])}, -0.5)
  problems.assert_same_bits(result, {"a": jnp.bfloat16([0, 0]), "b": np.float32(-0.0), "c": jnp.float32([3.5])})
  problems.assert_close(trees.add(tree, {"a": None, "b": None, "c": tree["c"]})["c"], np.float32([10]))


def test_dot_accumulates_in_float32():
  """In bfloat16 256 + 1 is 256, and 297 is no number."""
  row = jnp.asarray([256] + 41 * [1], jnp.bfloat16)
  product = trees.dot({"a": row, "b": None}, {"a": jnp.ones(42, jnp.bfloat16), "b": None})
  assert product.dtype == jnp.float32 and product == 297
  mixed = trees.dot((np.float32([1, 2]), jnp.bfloat16(3)), (jnp.bfloat16([4, 5]), np.float32(6)))
  assert mixed.dtype == jnp.float32 and mixed == 32
  assert trees.dot({"a": None}, {"a": None}) == 0


def test_dot_in_double_precision(x64):
  product = trees.dot(np.array([1.0, 1e-12]), np.float32([1, 1]))
  assert product.dtype == jnp.float64 and product - 1 > 0
