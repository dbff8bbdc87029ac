"""The README's Python runs as it stands there."""

import pathlib
import re

README = pathlib.Path(__file__).resolve().parent.parent / "README.md"


def test_python_blocks_run_in_order(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
  names = {}
  for block in blocks:
    exec(compile(block, str(README), "exec"), names)
  assert names["result"].alpha.shape == (300,)
  assert (tmp_path / "runs" / "mine" / "report.html").exists()
  assert "0.5" in capsys.readouterr().out  # the weights that the first example prints


def test_figures_and_files_named_exist():
  text = README.read_text(encoding="utf-8")
  for name in re.findall(r"\]\((docs/[^)]+)\)|`(configs/\w+\.py)`", text):
    assert (README.parent / (name[0] or name[1])).exists(), name
