"""The paper's Table 2: from SVHN's digits 0-4 to MNIST's digits 5-9, with 20 or 25 labelled MNIST images.

    python -m soseleto_jax.main --config=configs/svhn_mnist.py --workdir=runs/svhn
    python -m soseleto_jax.main --config=configs/svhn_mnist.py:num_target=20,source_classes=0-9

SVHN's pictures are made like MNIST's: the digit in the middle, white on black. LeNet, with a ReLU after both pools, one
representation and two classifiers, first learns the source alone, moved and distorted at random. Then come 2,000 steps
of SOSELETO with all labelled images, distorted too, in each, in which the target's loss descends in the whole network.
A few minutes on one CPU core. What came out: docs/results.md; what was tried: docs/lab_notes.md.

Arguments:
  num_target: 20 or 25.
  source_classes: 0-4 or 0-9.
  plain: no augmentation of the target, as in the paper; 200 steps, the digits of both are made upright, and LeNet's
    features are of one length.
  published: the published rule: the target's loss descends in its own classifier alone.
  runlocal: 2,000 SVHN images, 200 steps, seconds.
"""

from soseleto_jax.config import default_config, parse_argument

MNIST = dict(normalization="fixed", mean=(0.1307,), std=(0.3081,))
SOURCE_AUGMENTATION = ("rotation=15", "shift=1.5", "scale=0.15", "shear=0.2", "aspect=0.15", "elastic=1.5/4")
TARGET_AUGMENTATION = ("rotation=20", "shift=2", "scale=0.2", "shear=0.35", "aspect=0.25", "elastic=2/4")


def get_config(argument=None):
  """Returns the experiment; see the module's docstring."""
  arg = parse_argument(argument, num_target=25, source_classes="0-4", plain=False, published=False, runlocal=False)
  first, last = (int(digit) for digit in arg.source_classes.split("-"))
  config = default_config()
  config.name = f"SVHN {arg.source_classes} to MNIST 5-9 with {arg.num_target} target images"
  config.data.shared_classes = False
  config.data.source.update(
    dataset="svhn_cropped",
    classes=tuple(range(first, last + 1)),
    num_examples=2000 if arg.runlocal else 0,
    grayscale=True,
    isolate=True,
    size=28,
    **MNIST,
  )
  config.data.target.update(dataset="mnist", classes=(5, 6, 7, 8, 9), num_examples=arg.num_target, **MNIST)
  config.augment.source = SOURCE_AUGMENTATION
  config.augment.target = () if arg.plain else TARGET_AUGMENTATION
  config.model = dict(name="lenet", relu=True, dtype="float32")
  if arg.plain:
    config.data.source.deskew = config.data.target.deskew = True
    config.model.feature_norm = 5.0
  config.batch_size = 32
  config.target_batch_size = arg.num_target
  config.pretrain_epochs = 1.75
  config.pretrain_learning_rate = 2e-2
  config.num_steps = 200 if arg.plain or arg.runlocal else 2000
  config.finetune_epochs, config.finetune_learning_rate = 0.25, 1e-2  # of methods that end on the target alone
  config.optimizer.update(learning_rate=2e-2, momentum=0.9, schedule="cosine")
  config.alpha.update(init=0.5, step_size=10.0, first=True, target_params="all")
  if arg.published:
    config.alpha.update(step_size=0.5, transforms=("scale_by_std",), target_params="none")
  return config
