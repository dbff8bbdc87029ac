"""Trains by a config file: `python -m soseleto_jax.main --config=configs/cifar_noise.py --workdir=runs/cifar`.

Without `--config` it runs configs/digits_noise.py. `--config.FIELD=VALUE` changes a field of the config.
"""

import contextlib
import logging
import os
import pathlib
import signal
import sys
import threading

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from soseleto_jax import config_file

EXIT_PREEMPTED = 75  # EX_TEMPFAIL
_SECONDS_TO_END = 5  # of a process whose run has failed, where there are several

# New fields are taken in, since some blocks of the config are open; the check before a run refuses them in the others.
try:
  _CONFIG = config_flags.DEFINE_config_file(
    "config",
    help_string="FILE or FILE:argument=value,... of your own, or of the package (default: configs/digits_noise.py).",
    lock_config=False,
    accept_new_attributes=True,
  )
except flags.Error as error:  # a file of flags that cannot be read is met here
  raise SystemExit(f"error: {error}") from None
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder (default: runs/ and the name of the config's file).")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where several train together.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes train together.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
_PEER_TIMEOUT = flags.DEFINE_integer("peer_timeout", 60, "Seconds after which a silent process counts as dead.", 1)


def run() -> None:
  """The command `soseleto`."""
  for flag in (_CONFIG, _WORKDIR, _COORDINATOR, _NUM_PROCESSES, _PROCESS_ID, _PEER_TIMEOUT):
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[flag.name])  # --help looks for them there
  if "" not in sys.path:
    sys.path.insert(0, "")  # as `python -m` has it: networks and methods of one's own are named by import path
  app.run(main, flags_parser=parse_flags)


def parse_flags(argv: list[str]) -> list[str]:
  """Parses the command line, and returns what is no option; a mistake in it is an error of one line."""
  name, *arguments = argv
  words = {argument.split("=")[0].lstrip("-") for argument in arguments if argument.startswith("-")}
  if not words & {"config", "help", "helpshort", "helpfull", "helpxml", "?"}:  # a default would be read on import
    arguments = [f"--config={config_file.CONFIGS / 'digits_noise.py'}", *arguments]
  value = ""
  try:
    if "config" in words:
      arguments, value = _with_found_config(arguments)
    with _log_before_absl():
      return flags.FLAGS([name, *arguments])
  except Exception as error:  # of the file, too, which is the user's
    what = config_file.mistake(value, error, flags.FLAGS["config"].value if value else None)
    raise SystemExit(f"error: {what}") from None


@contextlib.contextmanager
def _log_before_absl():
  """Logs what a config's file chooses, in plain lines: absl warns of all that comes before it knows its options."""
  logger, handler = logging.getLogger("soseleto_jax"), logging.StreamHandler()
  level, propagate = logger.level, logger.propagate
  logger.addHandler(handler)
  logger.setLevel(logging.INFO)
  logger.propagate = False
  try:
    yield
  finally:
    logger.removeHandler(handler)
    logger.setLevel(level)
    logger.propagate = propagate


def _with_found_config(arguments):
  """Returns the arguments with the path of the config's file in place of one that is the package's, and the file."""
  arguments = list(arguments)
  place = next(i for i, argument in enumerate(arguments) if argument.split("=")[0] in ("--config", "-config"))
  option, equals, value = arguments[place].partition("=")
  if equals:
    arguments[place] = f"{option}={(found := config_file.find(value))}"
  elif place + 1 < len(arguments):
    arguments[place + 1] = found = config_file.find(arguments[place + 1])
  else:
    raise ValueError("--config names no file")
  return arguments, found


def main(argv: list[str]) -> None:
  """Runs the experiment and prints what came of it."""
  if len(argv) > 1:
    raise SystemExit(f"error: unknown arguments {argv[1:]}: options start with --")
  from soseleto_jax import train  # which takes seconds, that --help and a misspelt option need not
  from soseleto_jax.run import processes, signals

  if flags.FLAGS.verbosity <= absl_logging.INFO:  # the libraries' own account of every save
    absl_logging.set_verbosity(absl_logging.WARNING)
  file = config_flags.get_config_filename(flags.FLAGS["config"])
  workdir = _WORKDIR.value or pathlib.Path("runs") / pathlib.Path(file.split(":")[0]).stem
  if not isinstance(_CONFIG.value, ConfigDict):
    raise SystemExit(f"error: {config_file.not_a_config(file, _CONFIG.value)}")
  try:
    processes.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _PEER_TIMEOUT.value)
    logging.getLogger("soseleto_jax").setLevel(logging.INFO if processes.is_main() else logging.WARNING)
    with _end_soon_on_error(), _end_at_second_interrupt():
      result = train.train_and_evaluate(_config(), workdir)
  except signals.Preempted:
    raise SystemExit(EXIT_PREEMPTED) from None
  except (ValueError, FloatingPointError, RuntimeError, OSError) as error:
    raise SystemExit(f"error: {processes.describe(error)}") from error
  if processes.is_main():
    _print_results(result)


def _print_results(result):
  from soseleto_jax.run import progress

  text = progress.summary_table(result.summary)
  if result.listed is not None:
    text += f"\n\nmost suspect of the source:\n{progress.suspects_table(result.listed)}\n\nall: {result.list_file}"
  try:
    print(f"{text}\nreport: {result.report}", flush=True)
  except OSError as error:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would fail again, at its end
    raise SystemExit(
      f"error: the run ended, and its folder {result.report.parent} is whole, but the results could not be printed: "
      f"{error.strerror}"
    ) from None


def _config():
  """Returns the config; another network than its file's has only those options that the command line gives it.

  Nor have other data the name of the file's.
  """
  config, given = _CONFIG.value, config_flags.get_override_values(flags.FLAGS["config"])
  if "name" not in given and given.keys() & {"data.source.dataset", "data.source.path"}:
    config.name = ""
  if "model.name" in given:
    kept = {"name", "dtype", *(field.removeprefix("model.") for field in given)}
    config.model = {name: value for name, value in config.model.items() if name in kept}
  return config.lock()


@contextlib.contextmanager
def _end_soon_on_error():
  """Around a run: one that fails waits only seconds for the other processes, which may be waiting for this one.

  JAX would wait minutes for them at exit.
  """
  from soseleto_jax.run import processes, signals

  try:
    yield
  except BaseException as error:
    if processes.are_several():
      code = EXIT_PREEMPTED if isinstance(error, signals.Preempted) else 1
      timer = threading.Timer(_SECONDS_TO_END, os._exit, [code])
      timer.daemon = True
      timer.start()
    raise


@contextlib.contextmanager
def _end_at_second_interrupt():
  """Ends the process at a second SIGINT, in the middle of a compilation too.

  Python calls its handlers only between two calls into XLA, so that a thread reads the numbers of signals as they come.
  """
  reading, writing = os.pipe()
  os.set_blocking(writing, False)
  wakeup = signal.set_wakeup_fd(writing)
  threading.Thread(target=_count_interrupts, args=[reading], daemon=True).start()
  try:
    yield
  finally:
    signal.set_wakeup_fd(wakeup)
    os.close(writing)


def _count_interrupts(reading):
  interrupts = 0
  while number := os.read(reading, 1):
    interrupts += number[0] == signal.SIGINT
    if interrupts == 2:
      print("interrupted twice: ended without saving", file=sys.stderr, flush=True)
      os._exit(128 + signal.SIGINT)
  os.close(reading)


if __name__ == "__main__":
  run()
