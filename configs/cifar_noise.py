"""DOCSTRING"""

from soseleto_jax.config import default_config, parse_argument


def get_config(argument=None):
  """Returns the experiment; see the module's docstring."""
  arg = parse_argument(argument, noise=0.3, small=False, paper=False, runlocal=False)
  num_source, num_target, num_validation = 45_000, 4000, 1000
  if arg.small:
    num_source, num_target, num_validation = 10_000, 1000, 2000
  if arg.runlocal:
    num_source, num_target, num_validation = 2000, 500, 200

  config = default_config()
  config.name = f"CIFAR-10 with {arg.noise:.0%} wrong labels"
  config.data.source.update(dataset="cifar10", num_examples=num_source, noise="symmetric", noise_rate=arg.noise)
  config.data.target.update(dataset="cifar10", num_examples=num_target, num_validation=num_validation)
  config.model = dict(name="cifar_quick", init="fan_in", dtype="float32")
  config.batch_size = 128 if arg.small or arg.runlocal else 256
  config.num_epochs = 2 if arg.runlocal else 12
  config.optimizer.update(learning_rate=0.02, weight_decay=4e-4, schedule="steps", drop_epochs=(9,))
  if arg.paper:
    config.target_batch_size = 32
    config.alpha.update(init=0.5, step_size=0.02)
  else:
    config.target_batch_size = 100
    config.target_balanced = True
    config.alpha.update(
        init=0.5,
        step_size=0.07,
        target_loss="log_odds",
        params=("conv3", "dense", "classifier"),
        transforms=("residual_normalize", "center_by_class", "standardize"),
    )
  return config
