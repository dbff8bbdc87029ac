"""wip"""
from soseleto_jax.config import default_config


def get_config(arg=None):
  config = default_config()
  config.name = "Digits with 30 % wrong labels"
  config.data.source.update(dict(dataset="digits", noise="symmetric", noise_rate=0.3))
  config.data.target.update(dict(dataset="digits", examples_per_class=10, num_validation=100))
  config.model = dict(name="mlp", hidden=(64,), dtype="float32")
  config.batch_size = 64
  config.target_batch_size = 50
  config.target_balanced = True
  config.num_epochs = 30
  config.optimizer.learning_rate = 0.05
  config.alpha.update(dict(init=0.5, step_size=0.05, transforms=("center_by_class", "residual_normalize", "standardize")))
  return config
