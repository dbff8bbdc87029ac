import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soseleto_jax.core import calls


def two(first, second):
  return first, second


@pytest.mark.parametrize("function", [two, lambda *args: args, functools.partial(two, 1), jax.jit(two), max])
def test_what_can_be_called(function):
  arguments = ("first",) if isinstance(function, functools.partial) else ("first", "second")
  calls.check_takes(function, arguments, "my_function", "")


@pytest.mark.parametrize(
  "function, message",
  [
    (None, r"my_function=None: give a function of \(a, b, c\), such as sorted"),
    (two, r"my_function=two does not take \(a, b, c\): do otherwise"),
    (jax.jit(two), r"my_function=two does not take \(a, b, c\): do otherwise"),
    (lambda *, a, b, c: a, "my_function=<lambda> does not take"),
  ],
)
def test_what_cannot(function, message):
  with pytest.raises(ValueError, match=message):
    calls.check_takes(function, ("a", "b", "c"), "my_function", "do otherwise", "sorted")


def test_numbers():
  assert all(map(calls.is_count, [1, np.uint8(7)])) and not any(map(calls.is_count, [0, -1, True, 2.0, "1", None]))
  assert calls.is_whole(0) and not calls.is_whole(np.float32(1))
  assert all(map(calls.is_number, [0, 0.5, np.float32(2), np.array(2.0), jnp.bfloat16(0.5)]))
  assert not any(map(calls.is_number, [-1, np.inf, np.nan, True, "1", None, np.ones(1), jnp.array(-1)]))
