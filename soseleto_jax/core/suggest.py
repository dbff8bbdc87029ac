"""A hint for a misspelt name."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: object, known: Iterable[str]) -> str:
  """Returns "; did you mean 'x'?" for the known name that is closest to a word, or "" where none is close."""
  close = difflib.get_close_matches(str(word), list(known), n=1)
  return f"; did you mean {close[0]!r}?" if close else ""
