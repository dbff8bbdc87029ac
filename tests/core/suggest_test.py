"""Hints at the end of a message."""

import pytest

from soseleto_jax.core.suggest import did_you_mean


@pytest.mark.parametrize(
  ("word", "hint"),
  [("flop", "; did you mean 'flip'?"), ("rotation=", "; did you mean 'rotation'?"), ("xyz", ""), ("", ""), (3, "")],
)
def test_nearest_known_word(word, hint):
  assert did_you_mean(word, ("flip", "crop", "rotation")) == hint


def test_known_words_may_come_as_any_iterable():
  assert did_you_mean("flop", iter({"flip": 0})) == "; did you mean 'flip'?"
