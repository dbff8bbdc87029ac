"""The command line."""

import json
import logging
import os
import pathlib
import re
import runpy
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
from absl import app, flags
from absl import logging as absl_logging
from absl.testing import flagsaver

from soseleto_jax import config_file, train
from soseleto_jax import main as main_lib
from soseleto_jax.config import validate
from soseleto_jax.report.source_list import SourceList, Suggestions
from soseleto_jax.run import processes
from soseleto_jax.run.signals import Preempted

ROOT = pathlib.Path(main_lib.__file__).resolve().parent.parent
DIGITS = ROOT / "configs" / "digits_noise.py"

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


ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


def start(*arguments, cwd):
  """Runs Python in a process of its own, on one device."""
  command = [sys.executable, *map(str, arguments)]
  return subprocess.run(command, env=ENVIRONMENT, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_a_run_by_arguments_of_the_file_and_fields(tmp_path):
  (tmp_path / "points.py").write_text(CONFIG)
  fields = ("--config.alpha.step_size=0.25", "--config.alpha.transforms=('center_by_class', 'scale_by_std')")
  fields += ("--config.alpha.lookahead=0.5", "--config.user.note=mine")
  done = start("-m", "soseleto_jax.main", "--config=points.py:epochs=2,quick", *fields, cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  workdir = tmp_path / "runs" / "points"
  config = json.loads((workdir / "config.json").read_text())
  assert (config["num_epochs"], config["batch_size"], config["user"]) == (2, 30, {"note": "mine"})
  alpha = config["alpha"]
  assert (alpha["step_size"], alpha["lookahead"]) == (0.25, 0.5)
  assert alpha["transforms"] == ["center_by_class", "scale_by_std"]
  *table, last = done.stdout.splitlines()
  assert any(line.startswith("test accuracy ") and line.endswith("%") for line in table)
  assert last.startswith("report: ") and (tmp_path / last.removeprefix("report: ")).is_file()
  assert "step 4 of 4: " in done.stderr and "steps/s" in done.stderr
  assert "\r" not in done.stderr and "checkpoint_manager" not in done.stderr


IMPORTS = """
import sys

import jax.numpy as jnp
import optax

import soseleto_jax

loss = lambda params, batch, rng: (batch["x"] @ params) ** 2
step = soseleto_jax.skip_nonfinite(soseleto_jax.make_train_step(loss, loss, optax.sgd(0.1), alpha_step_size=0.1))
state = soseleto_jax.init_train_state(jnp.ones(2), optax.sgd(0.1), num_source=3)
step(state, {"x": jnp.ones((3, 2)), "index": jnp.arange(3)}, {"x": jnp.ones((1, 2))})
print(*sys.modules)

import soseleto_jax.main

print(*sys.modules)
"""
SLOW = {
  "sklearn", "matplotlib", "orbax", "grain", "tensorflow_datasets", "tensorflow", "tensorboardX", "torch", "pandas",
  "dm_pix", "jinja2", "PIL", "flax",
}  # fmt: skip


def test_slow_libraries_are_not_imported_before_they_are_needed(tmp_path):
  """Nor does the step need more than JAX and optax, or the command line anything of what training needs."""
  done = start("-c", IMPORTS, cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  step, command = (set(line.split()) for line in done.stdout.splitlines())
  assert not step & (SLOW | {"ml_collections"})
  assert "soseleto_jax.main" in command - step and not command & (SLOW | {"soseleto_jax.train"})


@pytest.fixture
def parse(tmp_path, monkeypatch):
  """Reads options as the command does, in an empty folder: `parse("--config.seed=3")`."""
  monkeypatch.chdir(tmp_path)

  def parse(*arguments):
    argv = ["main", *map(str, arguments)]
    monkeypatch.setattr(sys, "argv", argv)  # where the config's fields are looked for
    return main_lib.parse_flags(argv)

  with flagsaver.flagsaver():
    yield parse


@pytest.fixture
def call(parse):
  """Calls the command in this process: `call("--config.seed=3")`."""
  logger = logging.getLogger("soseleto_jax")
  level, verbosity = logger.level, absl_logging.get_verbosity()
  yield lambda *arguments: main_lib.main(parse(*arguments))
  logger.setLevel(level)
  absl_logging.set_verbosity(verbosity)


@pytest.fixture
def trained(monkeypatch):
  """Stands in for training: the fields of the answer, and what was asked for."""
  trained = types.SimpleNamespace(error=None, calls=[], joined=[], summary={"steps": 1}, listed=None, list_file=None)

  def train_and_evaluate(config, workdir):
    trained.calls.append((config, workdir))
    if trained.error:
      raise trained.error
    answer = {"summary": trained.summary, "listed": trained.listed, "list_file": trained.list_file}
    return types.SimpleNamespace(report=pathlib.Path(workdir) / "report.html", **answer)

  monkeypatch.setattr(processes, "initialize", lambda *given: trained.joined.append(given))
  monkeypatch.setattr(train, "train_and_evaluate", train_and_evaluate)
  return trained


def config_of(parse, *arguments):
  assert parse(*arguments) == ["main"]
  return flags.FLAGS.config


# Mistakes.


@pytest.mark.parametrize(
  "argument, message",
  [
    ("--config.nosuch.thing=1", "unknown field of --config: 'nosuch'"),
    ("--config.optimizer.learning_rat=1", r"config.optimizer.learning_rat is unknown; .*optimizer.learning_rate'\?$"),
    ("--config.batch_size=0", "config.batch_size=0: give at least 1"),
    ("--config=nosuch.py", "--config=nosuch.py: there is no such file, nor has the package one of this name; it has "),
    ("--num_processes=2", "--num_processes=2 without --coordinator, --process_id: give all three"),
  ],
)
def test_a_mistake_is_an_error_of_one_line(call, tmp_path, argument, message):
  with pytest.raises(SystemExit) as raised:
    call(argument)
  assert re.match(f"error: {message}", raised.value.code)
  assert "\n" not in raised.value.code
  assert list(tmp_path.iterdir()) == []


def test_a_misspelt_config_is_told_the_right_one(call):
  with pytest.raises(SystemExit, match=r"it has configs/cifar10n.py, .*; did you mean 'configs/cifar_noise.py'\?$"):
    call("--config=configs/cifar_nois.py:small")


@pytest.mark.parametrize(
  "argument, message",
  [
    ("--config.batch_size=many", "flag --config.batch_size=many: invalid literal for int"),
    ("--wrokdir=x", "Unknown command line flag 'wrokdir'. Did you mean: workdir"),
  ],
)
def test_what_absl_refuses(call, argument, message):
  with pytest.raises(SystemExit, match=f"^error: {message}[^\n]*$"):
    call(argument)


FILES = {
  "no_function.py": ("x = 1", "", "no_function.py has no function get_config"),
  "none.py": ("def get_config(): return None", "", "none.py: get_config returns a NoneType, no ConfigDict; start from"),
  "none_too.py": ("def get_config(): return None", "--config.seed=1", "none_too.py: get_config returns a NoneType"),
  "dict.py": ("def get_config(): return {'seed': 1}", "", "dict.py: get_config returns a dict, no ConfigDict"),
  "syntax.py": ("def get_config(:", "", "syntax.py, line 1: invalid syntax"),
  "name.py": ("def get_config():\n  return unknown", "", "name.py, line 2: NameError: name 'unknown' is not defined"),
  "value.py": ("def get_config():\n  raise ValueError('a reason')", "", "value.py, line 2: ValueError: a reason"),
  "misspelt.py": (CONFIG.replace("return config", "return config.batch_sise"), "", "misspelt.py, line .*batch_size"),
  "folder.py": (None, "", "folder.py is a folder; give a file"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_mistake_in_the_file_is_shown_with_its_line(call, trained, tmp_path, monkeypatch, name):
  monkeypatch.delitem(sys.modules, "config_config", raising=False)  # what files before have left
  text, option, message = FILES[name]
  (tmp_path / name).mkdir() if text is None else (tmp_path / name).write_text(text)
  with pytest.raises(SystemExit, match=f"^error: --config={message}[^\n]*$"):
    call(f"--config={name}", *filter(None, [option]))


def test_what_the_file_chooses_is_said_in_plain_lines(parse, tmp_path, capfd):
  text = CONFIG.replace(
    "return config", "logging.getLogger('soseleto_jax.choices').info('network: mlp'); return config"
  )
  (tmp_path / "own.py").write_text(f"import logging\n{text}")
  logger = logging.getLogger("soseleto_jax")
  before = logger.level, logger.propagate, list(logger.handlers)
  parse("--config=own.py")
  assert capfd.readouterr().err == "network: mlp\n"
  assert (logger.level, logger.propagate, logger.handlers) == before


@pytest.mark.parametrize("arguments", [("--config=",), ("--config",)])
def test_no_file_is_named(call, arguments):
  with pytest.raises(SystemExit, match="^error: --config=? names no file$"):
    call(*arguments)


def test_an_argument_that_the_file_refuses(call):
  with pytest.raises(SystemExit, match="^error: --config=.*digits_noise.py:size=3: config argument 'size' is unknown"):
    call("--config=configs/digits_noise.py:size=3")


def test_a_file_of_flags_that_is_not_there(tmp_path):
  command = [sys.executable, "-m", "soseleto_jax.main", "--flagfile=nowhere"]
  done = subprocess.run(
    command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}
  )
  assert done.returncode == 1 and re.fullmatch("error: .*Unable to open flagfile.*nowhere.*\n", done.stderr)


def test_results_that_cannot_be_printed(call, trained, monkeypatch):
  """They are in the folder."""
  with open("/dev/full", "w") as full:
    monkeypatch.setattr(sys, "stdout", full)
    with pytest.raises(SystemExit, match="digits_noise is whole, but the results could not be printed: No space left"):
      call()


def test_what_is_no_option_is_refused(call, trained):
  with pytest.raises(SystemExit, match="extra.*options start with --"):
    call("extra")
  assert trained.calls == []


# Which config.


def test_the_default_config(parse):
  config = config_of(parse, "--config.seed=3", "--workdir=x")
  assert flags.FLAGS["config"].config_filename == str(DIGITS)
  expected = runpy.run_path(str(DIGITS))["get_config"]()
  validate(expected)
  expected.seed = 3
  assert config == expected and flags.FLAGS.workdir == "x"


@pytest.mark.parametrize("arguments", [["--config=a.py"], ["-config=a.py"], ["--config", "a.py"]])
def test_a_config_that_is_named(parse, tmp_path, arguments):
  (tmp_path / "a.py").write_text(CONFIG)
  assert config_of(parse, *arguments).num_epochs == 9
  assert flags.FLAGS["config"].config_filename == "a.py"


@pytest.mark.parametrize("name", ["configs/synthetic.py", "synthetic.py"])
@pytest.mark.parametrize("option", ["--config={}", "--config {}"])
def test_the_packages_configs_are_found_from_anywhere(parse, name, option):
  assert config_of(parse, *option.format(f"{name}:runlocal").split()).num_epochs == 20


@pytest.mark.parametrize("name", ["configs/synthetic.py", "synthetic.py"])
def test_a_file_here_goes_before_the_packages(parse, tmp_path, name):
  path = tmp_path / name
  path.parent.mkdir(exist_ok=True)
  path.write_text(CONFIG)
  assert config_of(parse, f"--config={name}:epochs=3").num_epochs == 3


def test_a_file_of_another_folder_is_not_taken_for_the_packages(parse):
  with pytest.raises(SystemExit, match="--config=mine/synthetic.py: there is no such file"):
    parse("--config=mine/synthetic.py")


def test_help_reads_no_config(parse, monkeypatch):
  monkeypatch.setattr(config_file, "find", lambda value: pytest.fail("it looks for a config"))
  app.define_help_flags()
  with pytest.raises(SystemExit) as raised:
    parse("--help")
  assert raised.value.code == 1  # as absl has it


def test_the_command_shows_its_options(monkeypatch):
  """absl looks for them under the name of the program."""
  monkeypatch.setattr(app, "run", lambda main, flags_parser: None)
  monkeypatch.setattr(sys, "argv", ["/somewhere/bin/soseleto"])
  main_lib.run()
  shown = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])}
  assert shown == {"config", "workdir", "coordinator", "num_processes", "process_id", "peer_timeout"}


# Fields.


def test_fields_of_ones_own(parse):
  config = config_of(
    parse,
    "--config.method=noise_layer",
    "--config.method_options.rate_factor=0.1",
    "--config.model.width=5",
    "--config.user.note=hello, you",
    "--config.user.sizes=(1, 2)",
    "--config.user.switch",
    "--config.user.nothing=None",
  )
  assert config.method_options.to_dict() == {"rate_factor": 0.1}
  assert (config.model.width, config.model.name) == (5, "mlp")
  assert config.user.to_dict() == {"note": "hello, you", "sizes": (1, 2), "switch": True, "nothing": None}


def test_fields_that_are_there_keep_their_type(parse):
  config = config_of(parse, "--config.model.hidden=(8, 8)", "--config.seed=7", "--config.optimizer.momentum=1")
  assert config.model.hidden == (8, 8) and config.seed == 7
  assert isinstance(config.optimizer.momentum, float)


def test_a_block_is_replaced_as_a_whole(parse):
  config = config_of(parse, "--config.model={'name': 'my_package.nets:Wide', 'width': 64}")
  assert config.model.to_dict() == {"name": "my_package.nets:Wide", "width": 64}


def test_the_config_of_a_run_takes_no_fields_by_accident(call, trained):
  call()
  config, _ = trained.calls[0]
  with pytest.raises(AttributeError):
    config.batch_sise = 3


@pytest.mark.parametrize(
  "options, expected",
  [
    ([], {"name": "cifar_quick", "init": "fan_in"}),
    (["--config.model.name=lenet"], {"name": "lenet"}),
    (["--config.model.name=a.b:C", "--config.model.width=3"], {"name": "a.b:C", "width": 3}),
    (["--config.model.init=caffe"], {"name": "cifar_quick", "init": "caffe"}),
  ],
)
def test_another_network_has_only_the_options_that_it_is_given(call, trained, options, expected):
  """Those of the file are of the file's network."""
  call("--config=configs/cifar_noise.py:small", *options)
  assert trained.calls[0][0].model.to_dict() == expected | {"dtype": "float32"}


@pytest.mark.parametrize(
  "options, name",
  [
    ([], "Digits with 30% wrong labels"),
    (["--config.data.source.dataset=folder", "--config.data.source.path=web"], ""),
    (["--config.data.source.dataset=folder", "--config.name=Pets"], "Pets"),
    (["--config.data.target.num_validation=9"], "Digits with 30% wrong labels"),
  ],
)
def test_other_data_do_not_have_the_name_of_the_files(call, trained, options, name):
  call(*options)
  assert trained.calls[0][0].name == name


# The run.


def test_the_most_suspect_are_shown(call, trained, capsys):
  """Ten of them, and where the others are."""
  count = 12
  said = Suggestions(np.linspace(0, 0.5, count), np.zeros(count, int), np.full(count, 0.974))
  files = np.array([f"web/{n}.jpg" for n in range(count)], np.dtypes.StringDType())
  trained.listed = SourceList(np.full(count, 0.25), np.ones(count, int), None, files, said, None, ("cat", "owl"))
  trained.list_file = "runs/x/source_weights.csv"
  call("--workdir=runs/x")
  _, blank, title, head, *lines, empty, last, report = capsys.readouterr().out.splitlines()
  assert (blank, title, head.split(), empty) == (
    "",
    "most suspect of the source:",
    "alpha label network says file".split(),
    "",
  )
  assert [line.split() for line in lines] == [["0.250", "owl", "cat", "97%", f"web/{n}.jpg"] for n in range(10)]
  assert last == "all: runs/x/source_weights.csv" and report.startswith("report: ")


def test_the_table(call, trained, capsys):
  trained.summary = {
      "method": "soseleto", "test_accuracy": 0.98765, "auc": 0.91234, "alpha_right": 0.5, "steps": 1200, "seconds": 3.14
  }  # fmt: skip
  call("--config=configs/synthetic.py:runlocal")
  ((_, workdir),) = trained.calls
  assert workdir == pathlib.Path("runs/synthetic")
  lines = capsys.readouterr().out.splitlines()
  assert [line.split("  ")[0].strip() for line in lines[:-1]] == [
      "test accuracy", "AUC of 1 - alpha for wrong labels", "mean alpha of right labels", "steps", "seconds"
  ]  # fmt: skip
  assert [line.split()[-1] for line in lines[:-1]] == ["98.77%", "0.912", "0.500", "1200", "3.1"]
  assert len({len(line) for line in lines[:-1]}) == 1
  assert lines[-1] == f"report: {pathlib.Path('runs/synthetic/report.html')}"


def test_the_processes_are_joined(call, trained):
  call("--coordinator=here:1", "--num_processes=2", "--process_id=1", "--peer_timeout=9")
  assert trained.joined == [("here:1", 2, 1, 9)]


def test_the_folder_can_be_chosen(call, trained):
  call("--workdir=else/where")
  assert trained.calls[0][1] == "else/where"


@pytest.mark.parametrize("error", [ValueError, FloatingPointError, RuntimeError, OSError])
def test_errors_of_the_user_come_without_a_traceback(call, trained, error):
  trained.error = error("what to do about it")
  with pytest.raises(SystemExit) as raised:
    call()
  assert raised.value.code == "error: what to do about it"


def test_a_run_that_was_preempted_has_its_exit_code(call, trained):
  trained.error = Preempted()
  with pytest.raises(SystemExit) as raised:
    call()
  assert raised.value.code == 75


def test_a_second_interrupt_ends_the_process_at_once(tmp_path):
  """In the middle of a call into XLA, here one without end, where Python calls no handler."""
  program = """if True:
    import jax
    from soseleto_jax import main
    from soseleto_jax.run import signals
    with main._end_at_second_interrupt(), signals.stop_requests():
      loop = jax.jit(lambda x: jax.lax.while_loop(lambda x: x < 2, jax.numpy.sin, x)).lower(1.0).compile()
      print("ready", flush=True)
      loop(1.0).block_until_ready()
  """
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
  with subprocess.Popen([sys.executable, "-c", program], env=ENVIRONMENT, cwd=tmp_path, text=True, **pipes) as process:
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
      process.wait(1)
    process.send_signal(signal.SIGINT)
    assert "ended without saving" in process.communicate(timeout=60)[1]
    assert process.returncode == 130


@pytest.mark.parametrize("error", [KeyError("a bug"), KeyboardInterrupt()])
def test_other_errors_pass(call, trained, error):
  trained.error = error
  with pytest.raises(type(error)) as raised:
    call()
  assert raised.value is error
