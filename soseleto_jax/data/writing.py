"""What `isolate` and `deskew` of `config.data.source` and `config.data.target` make of gray images."""

from typing import Any

from soseleto_jax.data import deskewing, isolation, lazy


def size_to_read(size: int, isolate: bool) -> int:
  """Returns the size to read images at that `made_alike` then makes of a size; 0 leaves them as they come."""
  return 0 if isolate else size


def made_alike(x: Any, size: int, *, isolate: bool, deskew: bool) -> Any:
  """Returns images `[N, H, W, 1]`, in memory or on disk, made alike; in memory where anything is done to them.

  Args:
    x: read at `size_to_read`.
    size: height and width that `isolate` gives them.
    isolate: `isolation.isolate`.
    deskew: `deskewing.deskew`, after it.

  Raises:
    ValueError: images that this cannot be done to.
  """
  if isolate:
    x = isolation.isolate(lazy.load(x), size)
  return deskewing.deskew(lazy.load(x)) if deskew else x
