"""Appendix C, step by step: what a run measures, and what is made of it."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import appendix_c
from soseleto_jax.report import figure_style


def test_a_step_is_so_many_times_the_bound(x64):
  """√2 / ‖(3, 4)‖, times 3, along q; a masked row is none."""
  moves = appendix_c._times_the_bound(3.0)(
    jnp.asarray([3.0, 0.0, 4.0]), None, {"mask": jnp.asarray([True, False, True])}, None
  )
  np.testing.assert_allclose(moves, 3 * np.sqrt(2) / 5 * np.array([3, 0, 4]), rtol=1e-14)


@pytest.mark.slow
def test_from_the_bound_on_the_target_loss_falls_at_every_step():
  """Where most labels are wrong and the rate of descent is small; and not at every step where alpha rests."""
  (run,) = (run for run in appendix_c.make_runs("small", [0]) if run.conditions == {"noise": 0.8, "rate": 0.005})
  run.config.num_epochs = 5
  metrics = run.train(run.config, None, [0.0, 1.0, 10.0])
  assert metrics["falls"][1:] == [1.0, 1.0] and metrics["rises"][1:] == [0.0, 0.0]
  assert metrics["falls"][0] < 1 and metrics["rises"][0] > 0
  first, *losses = zip(*metrics["target_loss"], strict=True)
  assert len(losses) == 5 and len(set(first)) == 1 and losses[-1][0] > losses[-1][1]


def test_render(tmp_path, monkeypatch):
  drawn = []
  monkeypatch.setattr(figure_style, "save", lambda figure, path: drawn.append(path.name))
  count = len(appendix_c.FACTORS)
  metrics = {
    "falls": np.linspace(0.5, 1, count).tolist(),
    "rises": [1e-6] * count,
    "target_loss": np.ones((count, 21)).tolist(),
    "test_accuracy": [0.5] * count,
    "usual_falls": 0.75,
    "usual_share": 0.02,
  }
  records = [{"conditions": {"noise": 0.8, "rate": 0.05}, "metrics": metrics}]
  appendix_c.render("small", records, tmp_path)
  text = (tmp_path / "appendix_c_small.md").read_text(encoding="utf-8")
  assert "| 100 | not run | not run | 100.0 (1) | not run |" in text
  assert "| steps at which the target loss fell, % | not run | not run | 75.0 (1) | not run |" in text
  assert drawn == ["appendix_c_small.png"]
