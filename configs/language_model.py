"""A language model that chooses what it learns from: labels that are no classes, from a text that needs no download.

    python -m soseleto_jax.main --config=configs/language_model.py

Sequences of 40 bytes from Python's own library, each next byte to be predicted: docstrings of some modules steer, and
the source holds docstrings and code of others, both also with their bytes shuffled, and bytecode
(soseleto_jax/data/python_text.py). A transformer of one block in Flax NNX, and a loss for each sequence. The alignment
runs over the first kernel of its perceptron, which told the kinds apart best. What it gives beside plain training:
`python -m experiments.language_model`.

Arguments:
  runlocal: a few sequences and steps, to see that it runs.
"""

from soseleto_jax.config import default_config, parse_argument


def get_config(argument=None):
  """Returns the experiment; see the module's docstring."""
  arg = parse_argument(argument, runlocal=False)
  config = default_config()
  config.name = "Docstrings among code, shuffled bytes and bytecode"
  config.task = "soseleto_jax.data.python_text:make_task"
  config.task_options = dict(length=40, num_source=2500, num_target=64, num_validation=256, num_test=512)
  config.loss = "sequence_cross_entropy"
  config.model = dict(
    name="soseleto_jax.models.byte_transformer:ByteTransformer", dtype="float32", length=40, width=64, depth=1, heads=4
  )
  config.batch_size = 32
  config.target_batch_size = 48
  config.num_epochs = 12
  config.optimizer.update(name="adam", learning_rate=1e-2, schedule="steps", drop_epochs=(11,))
  config.alpha.update(init=0.45, gain=4.0, step_size=0.05, params=("wide",), transforms=("scale_by_std",))
  config.eval_every_epochs = config.checkpoint_every_epochs = 1.0
  if arg.runlocal:
    config.task_options.update(num_source=100, num_target=16, num_validation=16, num_test=16)
    config.model.update(width=16, depth=1)
    config.update(batch_size=20, target_batch_size=8, num_epochs=2)
  return config
