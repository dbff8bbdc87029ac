"""Trains by a config file: `python -m soseleto_jax.main --config=configs/cifar_noise.py --workdir=runs/cifar`.

Without `--config` it runs configs/digits_noise.py. The logic is in modules that tests and notebooks can import.
"""

import logging
import pathlib
import traceback

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from soseleto_jax import processes
from soseleto_jax.progress import summary_table
from soseleto_jax.train import train_and_evaluate

_PACKAGE = pathlib.Path(__file__).resolve().parent
_CONFIGS = next((d for d in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if d.is_dir()), _PACKAGE)

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="FILE or FILE:argument=value,... (default: digits_noise.py)", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder (default: runs/ and the name of the config's file).")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where several train together.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes train together.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
_PEER_TIMEOUT = flags.DEFINE_integer("peer_timeout", 60, "Seconds after which a silent process counts as dead.", 1)


def parse_flags(argv):
  """Parses the command line; a field that the config does not have is an error of one line."""
  if not {argument.split("=")[0] for argument in argv} & {"--config", "-config"}:  # a default would be read on import
    argv = [argv[0], f"--config={_CONFIGS / 'digits_noise.py'}", *argv[1:]]
  try:
    return app.parse_flags_with_usage(argv)
  except (AttributeError, KeyError) as error:
    if any(frame.name == "get_config" for frame in traceback.extract_tb(error.__traceback__)):
      raise  # a mistake in the config's file
    while isinstance(error.args[0], Exception):
      error = error.args[0]
    raise SystemExit(f"error: unknown field of --config: {': '.join(error.args[0].splitlines())}") from None


def main(argv):
  """Runs the experiment and prints what came of it."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}: options start with --")
  if flags.FLAGS.verbosity <= absl_logging.INFO:  # the libraries' own account of every save
    absl_logging.set_verbosity(absl_logging.WARNING)
  config_file = pathlib.Path(flags.FLAGS["config"].config_filename.split(":")[0])
  workdir = pathlib.Path(_WORKDIR.value or pathlib.Path("runs") / config_file.stem)
  try:
    processes.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _PEER_TIMEOUT.value)
    logging.getLogger("soseleto_jax").setLevel(logging.INFO if processes.is_main() else logging.WARNING)
    with processes.end_soon_on_error():
      result = train_and_evaluate(_CONFIG.value, workdir)
  except (ValueError, FloatingPointError, RuntimeError, OSError) as error:
    raise SystemExit(f"error: {processes.describe(error)}") from error
  if processes.is_main():
    print(f"{summary_table(result.summary)}\nreport: {result.report}")


if __name__ == "__main__":
  app.run(main, flags_parser=parse_flags)
