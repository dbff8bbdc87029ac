"""The README's Python runs as it stands there, and what it names exists."""

import pathlib
import re

from tests import pages

README = pages.ROOT / "README.md"


def test_python_blocks_run_in_order(tmp_path, monkeypatch, capsys, no_report, two_epochs):
  """But for epochs, of which two are enough, and the figures."""
  monkeypatch.chdir(tmp_path)
  names = pages.run(README)
  assert names["result"].alpha.shape == (300,)
  assert (tmp_path / "runs" / "mine" / "source_weights.csv").exists()
  assert "0.5" in capsys.readouterr().out  # the weights that the first example prints


def test_at_most_1500_words():
  assert len(README.read_text(encoding="utf-8").split()) <= 1500


def test_what_continuous_integration_reads_is_there():
  text = README.read_text(encoding="utf-8")
  commands = dict(re.findall(r"<!-- ([\w-]+) -->\n```bash\n(.*?)\n```", text, re.DOTALL))
  install = "python3 -m pip install -r requirements.txt"
  assert commands == {
    "default-run": f"{install}\npython3 -m soseleto_jax.main",
    "tests": f"{install}\npython3 -m pytest",
  }


def test_the_names_of_methods_and_configs():
  from soseleto_jax.methods.base import METHODS

  text = README.read_text(encoding="utf-8")
  for name in METHODS:
    assert f"`{name}`" in text, name
  named = set(re.findall(r"`(configs/\w+\.py)`", text))
  assert named == {f"configs/{path.name}" for path in pathlib.Path(README.parent, "configs").glob("[!_]*.py")}
