"""Trains by a config file: `python -m soseleto_jax.main --config=configs/cifar_noise.py --workdir=runs/cifar`.

Without `--config` it runs configs/digits_noise.py. The logic is in modules that tests and notebooks can import.
"""

import logging
import pathlib

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from soseleto_jax.train import train_and_evaluate

_PACKAGE = pathlib.Path(__file__).resolve().parent
_CONFIGS = next((d for d in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if d.is_dir()), _PACKAGE)

_CONFIG = config_flags.DEFINE_config_file(
    "config", str(_CONFIGS / "digits_noise.py"), "FILE or FILE:argument=value,...", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder (default: runs/ and the name of the config's file).")

_ROWS = {
    "test_accuracy": ("test accuracy", "{:.2%}"),
    "test_accuracy_at_best": ("test accuracy at best validation", "{:.2%}"),
    "auc": ("AUC of 1 - alpha for wrong labels", "{:.3f}"),
    "alpha_right": ("mean alpha of right labels", "{:.3f}"),
    "alpha_wrong": ("mean alpha of wrong labels", "{:.3f}"),
    "steps": ("steps", "{:d}"),
    "seconds": ("seconds", "{:.1f}"),
}  # fmt: skip


def main(argv):
  """Runs the experiment and prints what came of it."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}: options start with --")
  logging.getLogger("soseleto_jax").setLevel(logging.INFO)
  if flags.FLAGS.verbosity <= absl_logging.INFO:  # the libraries' own account of every save
    absl_logging.set_verbosity(absl_logging.WARNING)
  config_file = pathlib.Path(flags.FLAGS["config"].config_filename.split(":")[0])
  workdir = pathlib.Path(_WORKDIR.value or pathlib.Path("runs") / config_file.stem)
  try:
    result = train_and_evaluate(_CONFIG.value, workdir)
  except (ValueError, FloatingPointError, RuntimeError, OSError) as error:
    raise SystemExit(f"error: {error}") from error
  rows = [(label, form.format(result.summary[key])) for key, (label, form) in _ROWS.items() if key in result.summary]
  width = max(len(label) for label, _ in rows)
  print("\n".join(f"{label:<{width}}  {value:>8}" for label, value in rows))
  print(f"report: {result.report}")


if __name__ == "__main__":
  app.run(main)
