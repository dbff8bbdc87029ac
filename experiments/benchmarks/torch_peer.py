"""What the same step costs in PyTorch: `pip install .[bench]`, `python -m experiments.benchmarks.torch_peer`.

CIFAR-10 Quick with two batches, as in `step_cost`, and three ways to the products q of each source gradient with the
target's, each followed by the weighted step: forward mode along the target gradient, as ours; a double backward pass,
reverse over reverse; and learning to reweight's three passes (Ren et al. 2018), which differentiate the target's loss
after a virtual step. Printed are the median times, processor time on a CPU, and the ratio to a plain step in the same
round; first that the three give the same q. Nothing here is JAX's, so that ratios, not milliseconds, compare.
"""

import time

import numpy as np
import torch
from absl import app, flags
from torch import nn
from torch.func import functional_call, jvp

_SOURCE = flags.DEFINE_integer("batch_size", 256, "B", lower_bound=1)
_TARGET = flags.DEFINE_integer("target_batch_size", 32, "T", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 20, "How often each step is timed.", lower_bound=1)
_THREADS = flags.DEFINE_integer("threads", 1, "Of the CPU.", lower_bound=1)

_RATE, _MOMENTUM = 0.01, 0.9


def make_network():
  """CIFAR-10 Quick, 145,578 parameters."""
  return nn.Sequential(
    nn.Conv2d(3, 32, 5, padding=2), nn.MaxPool2d(3, 2, ceil_mode=True), nn.ReLU(),
    nn.Conv2d(32, 32, 5, padding=2), nn.ReLU(), nn.AvgPool2d(3, 2, ceil_mode=True),
    nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.AvgPool2d(3, 2, ceil_mode=True),
    nn.Flatten(), nn.Linear(1024, 64), nn.Linear(64, 10),
  )  # fmt: skip


class Steps:
  """The steps on one state: parameters, momentum, and the weights of the source batch."""

  def __init__(self, device):
    torch.manual_seed(0)
    self.network = make_network().to(device)
    self.params = {name: p.detach().clone().requires_grad_() for name, p in self.network.named_parameters()}
    self.momentum = {name: torch.zeros_like(p) for name, p in self.params.items()}
    self.source, self.target = (_batch(size, device) for size in (_SOURCE.value, _TARGET.value))
    self.alpha = torch.full((_SOURCE.value,), 0.5, device=device)

  def losses(self, params, batch):
    """Each example's loss `[B]`."""
    x, label = batch
    return nn.functional.cross_entropy(functional_call(self.network, params, (x,)), label, reduction="none")

  def plain(self):
    """Descends the mean loss of the source."""
    self._descend(self._gradient(self.losses(self.params, self.source).mean()))

  def forward_mode(self):
    """Takes q by one tangent pass beside the forward pass."""
    direction = self._gradient(self.losses(self.params, self.target).mean())
    losses, q = jvp(lambda params: self.losses(params, self.source), (self.params,), (direction,))
    self._learn(q)
    self._descend(self._gradient((self.alpha * losses).mean()))
    return q

  def double_backward(self):
    """Takes q as the derivative of <Σ w ∂ℓ, g_t> by w, and the weighted gradient of the same losses."""
    direction = self._gradient(self.losses(self.params, self.target).mean())
    losses = self.losses(self.params, self.source)
    weights = torch.ones_like(losses, requires_grad=True)
    gradient = torch.autograd.grad((weights * losses).sum(), list(self.params.values()), create_graph=True)
    product = sum((g * d).sum() for g, d in zip(gradient, direction.values(), strict=True))
    (q,) = torch.autograd.grad(product, weights, retain_graph=True)
    self._learn(q)
    self._descend(self._gradient((self.alpha * losses).mean()))
    return q

  def three_passes(self):
    """Learning to reweight: a virtual step with weights 0, the target's loss there, its gradient by the weights."""
    losses = self.losses(self.params, self.source)
    weights = torch.zeros_like(losses, requires_grad=True)
    gradient = torch.autograd.grad((weights * losses).sum(), list(self.params.values()), create_graph=True)
    ahead = {name: p - g for (name, p), g in zip(self.params.items(), gradient, strict=True)}
    (slope,) = torch.autograd.grad(self.losses(ahead, self.target).mean(), weights)
    self._learn(-slope)
    self._descend(self._gradient((self.alpha * self.losses(self.params, self.source)).mean()))
    return -slope

  def _gradient(self, loss):
    return dict(zip(self.params, torch.autograd.grad(loss, list(self.params.values())), strict=True))

  def _learn(self, q):
    self.alpha = (self.alpha + 0.1 * q.detach()).clamp(0, 1)

  def _descend(self, gradient):
    with torch.no_grad():
      for name, param in self.params.items():
        self.momentum[name].mul_(_MOMENTUM).add_(gradient[name])
        param.sub_(_RATE * self.momentum[name])


def _batch(size, device):
  return torch.randn(size, 3, 32, 32, device=device), torch.randint(10, (size,), device=device)


def _check(device):
  """Fails unless the three take the same q of the same state."""
  expected, *others = (
    getattr(Steps(device), name)().detach() for name in ("forward_mode", "double_backward", "three_passes")
  )
  for q in others:
    torch.testing.assert_close(q, expected, rtol=1e-3, atol=1e-5)


def main(_):
  """Times the steps and prints the table."""
  torch.set_num_threads(_THREADS.value)
  device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
  _check(device)
  now = time.process_time if device.type == "cpu" else time.perf_counter
  names = ("plain", "forward_mode", "double_backward", "three_passes")
  seconds = {name: [] for name in names}
  steps = {name: Steps(device) for name in names}
  for _ in range(_ROUNDS.value + 1):
    for name in names:
      began = now()
      getattr(steps[name], name)()
      if device.type == "cuda":
        torch.cuda.synchronize()
      seconds[name].append(now() - began)
  what = "processor time" if device.type == "cpu" else "time"
  where = "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)
  print(f"cifar_quick, B={_SOURCE.value}, T={_TARGET.value}, PyTorch {torch.__version__}, {where}, {what}\n")
  print("| step | ms | ratio |\n|---|---|---|")
  for name in names:
    values, plain = (np.asarray(seconds[key][1:]) for key in (name, "plain"))
    print(f"| {name.replace('_', ' ')} | {1e3 * np.median(values):.1f} | {np.median(values / plain):.2f} |")


if __name__ == "__main__":
  app.run(main)
