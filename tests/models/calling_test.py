import functools

import pytest
from flax import linen as nn
from flax import nnx

from soseleto_jax.models.calling import mode_options, parameter_names


class Linen(nn.Module):
  @nn.compact
  def __call__(self, x, train, *, mask=None):
    return x


class Nnx(nnx.Module):
  @nnx.jit
  def __call__(self, x, *, deterministic=False):
    return x


@pytest.mark.parametrize(
  ("function", "train", "options"),
  [
    (lambda x: x, True, {}),
    (lambda x, **options: x, True, {}),
    (lambda x, train: x, True, {"train": True}),
    (lambda x, *, training=None: x, False, {"training": False}),
    (lambda x, is_training=True, deterministic=False: x, False, {"is_training": False, "deterministic": True}),
    (Linen.__call__, True, {"train": True}),
    (Nnx.__call__, True, {"deterministic": False}),
    (functools.partial(lambda x, y, train: x, 1), False, {"train": False}),
    (nn.Sequential.__call__, True, {}),
  ],
)
def test_mode_is_told_by_the_names_that_a_function_has(function, train, options):
  assert mode_options(function, train) == options


def test_names_are_in_order():
  assert parameter_names(Linen().__call__) == ["x", "train", "mask"]
