"""What is said of tasks that may be right, and of no others."""

import numpy as np
import pytest

from soseleto_jax.data import task

RNG = np.random.default_rng(0)
LABEL = np.arange(12) % 3


def numbers(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=(12, *shape))


def warnings_of(caplog, x, target_x=None, label=LABEL, target_label=LABEL, test_label=LABEL):
  task.from_arrays(x, label, x if target_x is None else target_x, target_label, x, test_label)
  return [record.message for record in caplog.records]


@pytest.mark.parametrize("shape", [(5,), (7, 5), (6, 6, 3), (3, 6, 3), (3, 4, 4)])
def test_nothing_to_say(caplog, shape):
  assert not warnings_of(caplog, numbers(*shape))


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_first(caplog, channels):
  said, *more = warnings_of(caplog, numbers(channels, 8, 8))
  assert f"({12}, {channels}, 8, 8), which looks like [N, C, H, W]" in said and "transpose(0, 2, 3, 1)" in said
  assert not more


@pytest.mark.parametrize("side", ["source", "target"])
def test_one_number_that_drowns_the_others(caplog, side):
  x, spoilt = numbers(5), numbers(5)
  spoilt[7, 2] = 1e30
  pair = (spoilt, x) if side == "source" else (x, spoilt)
  assert f"{side} x[7] holds 1e+30" in "\n".join(warnings_of(caplog, *pair))


def test_classes_that_are_missing_or_rare(caplog):
  target = np.array([0, 1, 2, *[0] * 9])
  said = "\n".join(warnings_of(caplog, numbers(5), target_label=target, test_label=LABEL % 2))
  assert "the test set has no example of class 2" in said
  assert "target: classes '1', '2' with one example" in said
  assert "source:" not in said
