"""wip"""
from soseleto_jax.config import default_config


def get_config(arg=None):
  config = default_config()
  config.name = "Figure 1: points of the plane, some labels flipped"
  config.data.source.update(dict(dataset="synthetic", normalization="none"))
  config.data.target.update(dict(dataset="synthetic"))
  config.model = dict(name="mlp", hidden=(2,), dtype="float32")
  config.batch_size = 16
  config.target_batch_size = 50
  config.num_epochs = 100
  config.optimizer.update(dict(learning_rate=0.01, momentum=0.5))
  config.alpha.update(dict(init=0.5, step_size=0.2, first=True))
  return config
