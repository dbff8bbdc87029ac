"""The paper's Table 2, from SVHN's digits 0-4 to MNIST's 5-9: `python -m experiments.table2`.

A seed draws the labelled target images, which matters more than the method: every method has the same draws and the
same pretraining, and differences are taken draw by draw. Once as the paper has it, without augmentation of the target,
with upright digits and features of one length, and once with the same augmentation of the target for all methods. See
configs/svhn_mnist.py. Settings were chosen on draws 100 to 103. Accuracies are those of the last step on MNIST's test
images of the digits 5-9.
"""

import pathlib
from collections.abc import Sequence

from ml_collections import ConfigDict

from configs import svhn_mnist
from experiments import runs, tables, transfer
from experiments.tables import Method

NUM_TARGET = (20, 25)
BEST, DOMAIN = "soseleto_best", "soseleto_domain"


def _method(title, published=(), method=None, options=None, tries=None):
  return Method(title, published, method, options or {}, train=transfer.train, tries=tries)


METHODS = {
  "target_only": _method("target only", (80.1, 84.0), tries=4),
  "finetune": _method("source, then fine-tuned on the target", (80.2, 83.0), "target_only", tries=4),
  "joint": _method("source, then both jointly", tries=21),
  "soseleto": _method("SOSELETO, published rule", (83.2, 87.9), tries=2),
  BEST: _method("SOSELETO, at its best", (83.2, 87.9), "soseleto", tries=33),
  DOMAIN: _method("the same, with domain alignment", (), "soseleto", tries=1),
  "matching_networks": _method("matching networks (Vinyals et al. 2016)", (56.6, 51.3)),
  "matching_networks_tuned": _method(
    "the same, fine-tuned on the target", (79.3, 82.7), "matching_networks", {"finetune": True}
  ),
}


def make_runs(protocol: str, seeds: Sequence[int]) -> list[runs.Run]:
  """Returns the runs of all methods, sizes of the target and augmentations, draw by draw of one size."""
  del protocol  # there is one
  return [
    method.run(name, conditions, config_of(name, seed=seed, **conditions))
    for size in reversed(NUM_TARGET)
    for seed in seeds
    for conditions in conditions_of([size], (False, True))
    for name, method in METHODS.items()
  ]


def conditions_of(sizes, augmented):
  """Returns what the runs are made under, in their order."""
  return [{"num_target": size, "augmented": is_augmented} for size in sizes for is_augmented in augmented]


def config_of(name: str, *, num_target: int, augmented: bool, seed: int, source_classes: str = "0-4") -> ConfigDict:
  """Returns the config of a method, before it is told which; see configs/svhn_mnist.py."""
  published = ",published" * (name == "soseleto")
  sets = f"num_target={num_target},source_classes={source_classes}"
  config = svhn_mnist.get_config(sets + ",plain" * (not augmented) + published)
  config.seed = seed
  if name == DOMAIN:
    config.domain_weight = 0.1
  if name == "target_only":
    config.pretrain_epochs = 0.0
  return config


def render(protocol: str, records: Sequence[runs.Record], folder: pathlib.Path) -> None:
  """Writes table2_PROTOCOL.md."""
  names = [f"{num_target} images" for num_target in NUM_TARGET]
  parts = []
  for augmented, how in ((False, "as published: no augmentation of the target"), (True, "target augmented")):
    conditions = conditions_of(NUM_TARGET, [augmented])
    parts += [
      (
        f"Test accuracy in %, last step, {how}: mean ± sd over draws of the target (how many). "
        f"{tables.source_sizes(records)} source images",
        tables.beside(METHODS, records, conditions, names),
      ),
      tables.paired_with_caption(METHODS, BEST, records, conditions, names, how, by="draws"),
    ]
  tables.write(folder / f"table2_{protocol}.md", *parts, methods=METHODS, records=records)


EXPERIMENT = runs.Experiment("table2", make_runs, render, seeds=tuple(range(10)), protocols=("full",))

if __name__ == "__main__":
  runs.main(EXPERIMENT)
