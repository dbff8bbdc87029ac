"""Your own NumPy files: images, vectors or sequences, many whose labels you do not quite trust, and a few that you do.

    python -m soseleto_jax.main --config=configs/own_arrays.py:source=many,target=few --workdir=runs/many

many/x.npy and many/label.npy are the many; the few are few/train/x.npy and label.npy, or few/x.npy and label.npy where
nothing is to be tested on, and few/test/ is tested on where it is there. Network and settings follow from what is in
the files (docs/settings.md); what was chosen is printed, and `--config.FIELD=VALUE` changes it.

Arguments:
  source: the folder of the many.
  target: the folder of the few.
  epochs: passes over the many, which other settings follow.
"""

from soseleto_jax.choices import for_folders
from soseleto_jax.config import parse_argument


def get_config(argument=None):
  """Returns the experiment; see the module's docstring."""
  arg = parse_argument(argument, source="", target="", epochs=0)
  return for_folders(arg.source, arg.target, kind="arrays", num_epochs=arg.epochs)
