"""The command line."""

import json
import os
import pathlib
import runpy
import subprocess
import sys
import types

import pytest
from absl import app

from soseleto_jax import main as main_lib
from soseleto_jax.config import validate

ROOT = pathlib.Path(main_lib.__file__).resolve().parent.parent

CONFIG = """
from soseleto_jax.config import default_config, parse_argument


def get_config(arg=None):
  arg = parse_argument(arg, epochs=9, quick=False)
  config = default_config()
  config.data.source.update(dict(dataset="synthetic", num_examples=60, normalization="none"))
  config.data.target.dataset = "synthetic"
  config.model.hidden = (2,)
  config.batch_size = 30 if arg.quick else 1
  config.num_epochs = arg.epochs
  return config
"""


def command(*arguments, cwd):
  """Runs the module as a user would, on one device."""
  return subprocess.run(
    [sys.executable, "-m", "soseleto_jax.main", *map(str, arguments)],
    env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    cwd=cwd,
    capture_output=True,
    text=True,
    timeout=300,
  )


def test_a_run_by_arguments_of_the_file_and_fields(tmp_path):
  (tmp_path / "points.py").write_text(CONFIG)
  fields = ("--config.alpha.step_size=0.25", "--config.alpha.transforms=('center_by_class', 'standardize')")
  done = command("--config=points.py:epochs=2,quick", *fields, "--config.alpha.lookahead=0.5", cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  workdir = tmp_path / "runs" / "points"
  config = json.loads((workdir / "config.json").read_text())
  assert (config["num_epochs"], config["batch_size"]) == (2, 30)
  alpha = config["alpha"]
  assert (alpha["step_size"], alpha["lookahead"]) == (0.25, 0.5)
  assert alpha["transforms"] == ["center_by_class", "standardize"]
  *table, last = done.stdout.splitlines()
  assert any(line.startswith("test accuracy ") and line.endswith("%") for line in table)
  assert last.startswith("report: ") and (tmp_path / last.removeprefix("report: ")).is_file()
  assert "step 4 of 4: " in done.stderr and "steps/s" in done.stderr
  assert "\r" not in done.stderr and "checkpoint_manager" not in done.stderr


@pytest.mark.parametrize(
  "argument, named",
  [
    (
      "--config.optimizer.learning_rat=0.1",
      '\'learning_rat\': Did you mean "learning_rate" instead of "learning_rat"?',
    ),
    ("--config.nosuch.thing=1", "'nosuch'"),
  ],
)
def test_an_unknown_field_is_an_error_of_one_line(tmp_path, argument, named):
  done = command(argument, cwd=tmp_path)
  assert done.returncode == 1
  assert done.stderr == f"error: unknown field of --config: {named}\n"
  assert list(tmp_path.iterdir()) == []


def test_a_mistake_in_the_file_is_shown_with_its_line(tmp_path):
  (tmp_path / "points.py").write_text(CONFIG.replace("return config", "return config.batch_sise"))
  done = command("--config=points.py", cwd=tmp_path)
  assert done.returncode == 1
  assert "Traceback" in done.stderr and "points.py" in done.stderr and "batch_size" in done.stderr


def test_processes_have_to_be_named_whole(tmp_path):
  done = command("--num_processes=2", cwd=tmp_path)
  assert done.returncode == 1
  assert done.stderr.startswith("error: --num_processes=2 without --coordinator, --process_id: give all three")
  assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["--config.seed=3", "--workdir=x"]])
def test_the_default_config(monkeypatch, arguments):
  parsed = []
  monkeypatch.setattr(app, "parse_flags_with_usage", parsed.append)
  main_lib.parse_flags(["main", *arguments])
  assert parsed == [["main", f"--config={ROOT / 'configs' / 'digits_noise.py'}", *arguments]]
  validate(runpy.run_path(ROOT / "configs" / "digits_noise.py")["get_config"]())


@pytest.mark.parametrize("argument", ["--config=a.py", "-config=a.py", "--config"])
def test_a_config_that_is_named(monkeypatch, argument):
  parsed = []
  monkeypatch.setattr(app, "parse_flags_with_usage", parsed.append)
  main_lib.parse_flags(["main", argument, "a.py"])
  assert parsed == [["main", argument, "a.py"]]


@pytest.fixture
def asked(monkeypatch):
  """Stands in for the flags and for training: the fields of the answer, and what was asked for."""
  asked = types.SimpleNamespace(
    filename="configs/some_noise.py:noise=0.4,small", error=None, calls=[], joined=[], summary={}
  )

  class Flags:
    verbosity = 0

    def __getitem__(self, name):
      assert name == "config"
      return types.SimpleNamespace(config_filename=asked.filename)

  def train_and_evaluate(config, workdir):
    asked.calls.append((config, workdir))
    if asked.error:
      raise asked.error
    return types.SimpleNamespace(summary=asked.summary, report=workdir / "report.html")

  monkeypatch.setattr(main_lib, "flags", types.SimpleNamespace(FLAGS=Flags()))
  monkeypatch.setattr(main_lib, "_CONFIG", types.SimpleNamespace(value="the config"))
  monkeypatch.setattr(main_lib, "_WORKDIR", types.SimpleNamespace(value=None))
  for name in ("_COORDINATOR", "_NUM_PROCESSES", "_PROCESS_ID", "_PEER_TIMEOUT"):
    monkeypatch.setattr(main_lib, name, types.SimpleNamespace(value=name))
  monkeypatch.setattr(main_lib.processes, "initialize", lambda *given: asked.joined.append(given))
  monkeypatch.setattr(main_lib, "train_and_evaluate", train_and_evaluate)
  return asked


def test_the_table(asked, capsys):
  asked.summary = {
      "method": "soseleto", "test_accuracy": 0.98765, "auc": 0.91234, "alpha_right": 0.5, "steps": 1200, "seconds": 3.14
  }  # fmt: skip
  main_lib.main(["main"])
  assert asked.calls == [("the config", pathlib.Path("runs/some_noise"))]
  lines = capsys.readouterr().out.splitlines()
  assert [line.split("  ")[0].strip() for line in lines[:-1]] == [
      "test accuracy", "AUC of 1 - alpha for wrong labels", "mean alpha of right labels", "steps", "seconds"
  ]  # fmt: skip
  assert [line.split()[-1] for line in lines[:-1]] == ["98.77%", "0.912", "0.500", "1200", "3.1"]
  assert len({len(line) for line in lines[:-1]}) == 1
  assert lines[-1] == f"report: {pathlib.Path('runs/some_noise/report.html')}"


def test_the_processes_are_joined(asked):
  asked.summary = {"steps": 1}
  main_lib.main(["main"])
  assert asked.joined == [("_COORDINATOR", "_NUM_PROCESSES", "_PROCESS_ID", "_PEER_TIMEOUT")]


def test_the_folder_can_be_chosen(asked, monkeypatch):
  asked.summary = {"steps": 1}
  monkeypatch.setattr(main_lib, "_WORKDIR", types.SimpleNamespace(value="else/where"))
  main_lib.main(["main"])
  assert asked.calls[0][1] == pathlib.Path("else/where")


@pytest.mark.parametrize("error", [ValueError, FloatingPointError, RuntimeError, OSError])
def test_errors_of_the_user_come_without_a_traceback(asked, error):
  asked.error = error("what to do about it")
  with pytest.raises(SystemExit) as raised:
    main_lib.main(["main"])
  assert raised.value.code == "error: what to do about it"


@pytest.mark.parametrize("error", [KeyError("a bug"), KeyboardInterrupt(), SystemExit(143)])
def test_other_errors_pass(asked, error):
  asked.error = error
  with pytest.raises(type(error)) as raised:
    main_lib.main(["main"])
  assert raised.value is error


def test_what_is_no_option_is_refused(asked):
  with pytest.raises(app.UsageError, match="extra.*options start with --"):
    main_lib.main(["main", "extra"])
  assert asked.calls == []
