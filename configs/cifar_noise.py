"""wip"""
from soseleto_jax.config import default_config


def get_config(arg=None):
  arg = arg or ""
  small = "small" in arg
  config = default_config()
  config.name = "CIFAR-10 with 30 % wrong labels"
  config.data.source.update(dict(dataset="cifar10", num_examples=10_000 if small else 45_000, noise="symmetric", noise_rate=0.3))
  config.data.target.update(dict(dataset="cifar10", num_examples=1000 if small else 4000, num_validation=2000 if small else 1000))
  config.model = dict(name="cifar_quick", init="fan_in", dtype="float32")
  config.batch_size = 128 if small else 256
  config.target_batch_size = 250
  config.target_balanced = True
  config.num_epochs = 20
  config.optimizer.update(dict(learning_rate=0.02, weight_decay=4e-4, schedule="steps", drop_epochs=(17,)))
  config.alpha.update(dict(init=0.5, target_loss="log_odds", params="classifier", step_size=0.05, transforms=("center_by_class", "residual_normalize", "standardize")))
  if "paper" in arg:
    config.target_batch_size = 32
    config.target_balanced = False
    config.alpha.update(dict(init=0.5, target_loss="cross_entropy", params="all", step_size=0.05, transforms=()))
  return config
