"""Your own folders of images: one folder for each class, many that you do not quite trust, and a few that you do.

    python -m soseleto_jax.main --config=configs/own_images.py:source=web,target=clean --workdir=runs/web

web/cat/1.jpg are the many; the few are clean/train/cat/a.jpg, or clean/cat/a.jpg where nothing is to be tested on, and
clean/test/cat/b.jpg is tested on where it is there. Sizes, network and settings follow from what is in the folders
(docs/settings.md); what was chosen is printed, and `--config.FIELD=VALUE` changes it. docs/your_data.md tells more.

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
  return for_folders(arg.source, arg.target, kind="folder", num_epochs=arg.epochs)
