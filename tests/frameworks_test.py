"""docs/frameworks.md: the step in each framework."""

import jax
import numpy as np
import pytest

from tests import pages

PAGE = pages.ROOT / "docs" / "frameworks.md"
NEEDS = {"Equinox": "equinox", "Haiku, with state": "haiku"}


@pytest.mark.parametrize("heading", pages.sections(PAGE))
def test_section(heading):
  """Its network learns: the loss is finite, alpha and parameters have moved, and it predicts."""
  if heading in NEEDS:
    pytest.importorskip(NEEDS[heading])
  names = pages.run_section(PAGE, heading)
  state, metrics = names["state"], names["metrics"]
  assert all(np.isfinite(value) for value in metrics.values())
  alpha = np.asarray(state.alpha)
  assert np.any(alpha[:16] != 0.5) and np.all(alpha[16:56] == 0.5)
  if "logits" in names:
    assert names["logits"].shape == (64, 3) and np.isfinite(names["logits"]).all()
  if "marks" in names:
    marked = jax.tree.leaves(names["marks"])
    assert any(marked) and not all(marked)


def test_nnx_dropout_may_draw_by_the_key_of_the_step():
  """As the page says, by the name of its stream."""
  names = pages.run_section(PAGE, "Flax NNX")
  net = names["nnx"].merge(names["graph"], names["params"], names["rest"], copy=True)
  net.train()

  def logits(seed):
    names["nnx"].reseed(net, dropout=jax.random.key(seed))
    return np.asarray(net(names["x"]))

  first, second, again = map(logits, (0, 1, 0))
  assert np.any(first != second) and np.array_equal(first, again)


def test_the_frameworks():
  assert len(pages.sections(PAGE)) == 8
