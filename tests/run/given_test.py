"""What was given is remembered by name."""

import functools
import pathlib

import optax
import pytest

from soseleto_jax.run.given import Given


def make_method(setup, rate):
  del setup, rate


class Net:
  pass


@pytest.mark.parametrize(
  "door, value, name",
  [
    ("network", Net(), "tests.run.given_test.Net"),
    ("method", make_method, "tests.run.given_test.make_method"),
    ("method", functools.partial(make_method, rate=0.5), "partial(tests.run.given_test.make_method, rate=0.5)"),
    ("params", pathlib.Path("old/params"), "old/params"),
    ("params", {"w": 1.0}, "a pytree"),
    ("augment", {"source": make_method}, "source: tests.run.given_test.make_method"),
  ],
)
def test_names(door, value, name):
  assert Given(**{door: value}).names() == {door: name}


def test_only_what_is_given_has_a_name():
  assert Given().names() == {}
  assert Given(evaluators=(make_method,)).names() == {}  # they change nothing that is computed
  assert Given(optimizer=optax.sgd(0.1)).names().keys() == {"optimizer"}
