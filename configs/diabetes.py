"""A regression whose source has wrong values: labels that are no classes, from a set that comes with scikit-learn.

    python -m soseleto_jax.main --config=configs/diabetes.py

442 patients, ten measurements of each, and how the illness went on; 30 % of the source's values are permuted among each
other. 50 right ones steer (soseleto_jax/data/diabetes.py). A perceptron with one hidden layer, and the squared error.
What it gives beside plain training: `python -m experiments.regression`.
"""

from soseleto_jax.config import default_config, parse_argument


def get_config(argument=None):
  """Returns the experiment; see the module's docstring."""
  parse_argument(argument)
  config = default_config()
  config.name = "Diabetes with 30 % permuted values"
  config.task = "soseleto_jax.data.diabetes:make_task"
  config.task_options = dict(num_target=50, num_validation=50, num_test=92, wrong_fraction=0.3)
  config.loss = "squared_error"
  config.model = dict(name="mlp", hidden=(32,), dtype="float32")
  config.batch_size = config.target_batch_size = 50
  config.num_epochs = 20
  config.optimizer.learning_rate = 0.002
  config.alpha.update(step_size=0.02, transforms=("scale_by_std",))
  config.eval_every_epochs = config.checkpoint_every_epochs = 5.0
  return config
