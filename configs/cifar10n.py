"""CIFAR-10N (Wei et al. 2022): CIFAR-10 with the labels that people gave, some 40 % of them wrong.

    python -m soseleto_jax.main --config=configs/cifar10n.py --workdir=runs/cifar10n
    python -m soseleto_jax.main --config=configs/cifar10n.py --config.method=source_only --workdir=runs/cifar10n_plain
    python -m soseleto_jax.main --config=configs/cifar10n.py:labels=aggre_label,small --workdir=runs/cifar10n_aggre

45,000 source images with human labels, and 5,000 with CIFAR-10's own: 4,000 of them as target, 1,000 for validation,
none of them in the source. Network, training and alpha as in configs/cifar_noise.py. The right labels of the source are
known too, for analysis alone. TFDS prepares the set `cifar10_n` from files that its authors offer for download, and
says which.

`python -m experiments.human_noise`, `small`, seeds 0 to 2, last epoch, 6 minutes a run on one CPU core:
`symmetric,joint` test 57.9 +- 0.5 %, AUC of 1 - alpha 0.800 +- 0.003 (cleanlab's label quality: 0.764 +- 0.012);
confident learning test 56.0 +- 0.6, method=joint 55.5 +- 1.2, source_only 53.3 +- 0.8. Not run: `full`, the other
labels.

Arguments:
  labels: wrong among all 50,000: worse_label 40.2 %, aggre_label 9.0 %, random_label1 17.2 %, random_label2 18.1 %,
    random_label3 17.6 %.
  small, paper, symmetric, joint, augment, runlocal: as in configs/cifar_noise.py.
"""

import pathlib
import runpy

from soseleto_jax.config import parse_argument

_SWITCHES = ("small", "paper", "symmetric", "joint", "augment", "runlocal")
_CIFAR_NOISE = pathlib.Path(__file__).with_name("cifar_noise.py")  # wherever both are installed


def get_config(argument=None):
  """Returns the experiment; see the module's docstring."""
  arg = parse_argument(argument, labels="worse_label", **dict.fromkeys(_SWITCHES, False))
  switches = [name for name in _SWITCHES if arg[name]]
  config = runpy.run_path(str(_CIFAR_NOISE))["get_config"](",".join(switches))
  config.name = f"CIFAR-10N, {arg.labels}"
  config.data.source.update(dataset="cifar10_n", label_key=arg.labels, noise="none", noise_rate=0.0)
  return config
