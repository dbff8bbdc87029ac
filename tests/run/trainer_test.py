"""What reaches the step, on any number of devices, and what an experiment tells about its weights."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soseleto_jax import init_train_state, make_train_step
from soseleto_jax.core import sharding
from soseleto_jax.core.step import Step
from soseleto_jax.feed.sampling import EpochSampler, TargetSampler
from soseleto_jax.methods.base import Method, Phase
from soseleto_jax.models import get_model
from soseleto_jax.models.losses import classification_loss
from soseleto_jax.run.given import Given
from soseleto_jax.run.trainer import Experiment
from tests import problems, runs

N = runs.NUM_SOURCE
IMAGE = (3, 4, 2)
FLIP = ("flip",)


def advance(experiment, until, state=None):
  """The state at a step, from the start or from an earlier state, and the metrics of the steps in between."""
  state = experiment.place(experiment.initial_state() if state is None else state)
  step, shown = int(state.step), []
  while step < until:
    state, count, metrics = experiment.advance(state, step, until)
    step, shown = step + count, shown + [metrics]
  return state, jax.tree.map(lambda *parts: np.concatenate(parts), *shown)


def show_batches():
  """A method with a step whose metrics are the rows that it was given, each at its place in its set.

  Returns its maker, and a list of the shapes it is traced with.
  """
  traces = []

  def rows(batch, size):
    index = jnp.where(batch["mask"], batch["index"], size)
    one_hot = jax.nn.one_hot(batch["label"], 8)
    place = lambda values: jnp.zeros((size, *values.shape[1:])).at[index].add(values, mode="drop")
    return jax.lax.psum((place(batch["x"]), place(one_hot)), sharding.AXIS)

  def gradients(state, source, target):
    traces.append((source["x"].shape, target["x"].shape))
    shown = {"source": rows(source, N), "target": rows(target, runs.NUM_TARGET)}
    return jax.tree.map(jnp.zeros_like, state.params), state, shown

  method = Method((Phase(8, Step(gradients, optax.identity())),))
  return lambda setup: method, traces


def expected_rows(examples, normalization, index):
  x, label = np.zeros(examples["x"].shape, np.float32), np.zeros((len(examples["x"]), 8), np.float32)
  np.add.at(x, index, ((examples["x"] - normalization.mean) / normalization.std)[index])
  np.add.at(label, (index, examples["label"][index]), 1)  # a target batch may hold a row twice
  return x, label


# Batches.


@pytest.mark.parametrize("devices, steps_per_call, shared", [(8, 1, True), (8, 3, False), (1, 3, True), (1, 1, False)])
@pytest.mark.parametrize("feed", ["resident", "streaming"])
def test_the_step_is_given_the_samplers_rows_normalised(monkeypatch, devices, steps_per_call, shared, feed):
  """Each once, with its label and index, and nothing but padding beside them."""
  runs.use_devices(monkeypatch, devices)
  method, _ = show_batches()
  task = runs.make_task(shape=IMAGE, shared=shared)
  config = runs.make_config(
    steps_per_call=steps_per_call, seed=3, target_balanced=True, data__shared_classes=shared, data__feed=feed
  )
  _, shown = advance(Experiment(config, task, Given(method=method)), 8)
  source = EpochSampler(N, runs.BATCH_SIZE, 3)
  target = TargetSampler(task.target["label"], 5, 3, balanced=True)
  for step in range(8):
    index, mask = source.batch(step)
    rows = {
      "source": expected_rows(task.source, task.source_normalization, index[mask]),
      "target": expected_rows(task.target, task.target_normalization, target.batch(step)[0]),
    }
    for side, arrays in rows.items():
      for array, expected in zip(shown[side], arrays, strict=True):
        np.testing.assert_allclose(array[step], expected, atol=1e-5)


def test_a_run_is_traced_once():
  """Also at the short last batch of an epoch; each of the 8 devices has its share of the batches."""
  method, traces = show_batches()
  advance(Experiment(runs.make_config(), runs.make_task(), Given(method=method)), 8)
  assert set(traces) == {((2, 5), (1, 5))}
  assert len(traces) == 1


def flips(shown, task):
  """For each step and source row: 1 if it is mirrored, 0 if it is not, -1 if it is absent."""
  x, label = shown["source"]
  plain = (task.source["x"] - task.source_normalization.mean) / task.source_normalization.std
  same = np.isclose(x, plain, atol=1e-5).all(axis=(2, 3, 4))
  mirrored = np.isclose(x, plain[:, :, ::-1], atol=1e-5).all(axis=(2, 3, 4))
  present = label.any(axis=2)
  assert ((same ^ mirrored) == present).all()
  return np.where(present, mirrored.astype(int), -1)


def test_flips(monkeypatch):
  """They are of one half, drawn anew for each epoch, the same whatever the devices and the steps in one call."""
  method, _ = show_batches()
  task = runs.make_task(shape=IMAGE)

  def run(until, state=None, **fields):
    return advance(Experiment(runs.make_config(**fields), task, Given(method=method)), until, state)

  assert flips(run(8)[1], task).max() == 0
  _, shown = run(8, augment__source=FLIP)
  drawn = flips(shown, task)
  epochs = drawn[:4].max(axis=0), drawn[4:].max(axis=0)
  assert 25 <= sum(epochs).sum() <= 57  # of 82, 3.5 standard deviations
  assert 8 <= np.count_nonzero(epochs[0] != epochs[1]) <= 33
  x, label = shown["target"]
  plain = (task.target["x"] - task.target_normalization.mean) / task.target_normalization.std
  np.testing.assert_allclose(x, label.sum(axis=2)[..., None, None, None] * plain, atol=1e-5)

  early, _ = run(3, augment__source=FLIP)
  _, late = run(8, jax.tree.map(np.asarray, early).replace(alpha=np.asarray(early.alpha)[:N]), augment__source=FLIP)
  np.testing.assert_array_equal(flips(late, task), drawn[3:])
  np.testing.assert_array_equal(flips(run(8, augment__source=FLIP, steps_per_call=3)[1], task), drawn)
  other = flips(run(8, augment__source=FLIP, seed=1)[1], task)
  both = (drawn >= 0) & (other >= 0)  # a row at the same step
  assert (drawn[both] != other[both]).any()
  runs.use_devices(monkeypatch, 1)
  np.testing.assert_array_equal(flips(run(8, augment__source=FLIP)[1], task), drawn)


# Steps and phases.


@pytest.mark.parametrize(
  "backend, fields, counts",
  [
    ("cpu", {}, [1] * 8),
    ("gpu", {}, [4, 1, 1, 1, 1]),
    ("tpu", {}, [4, 1, 1, 1, 1]),
    ("gpu", {"eval_every_epochs": 0.5}, [2, 2, 2, 1, 1]),
    ("gpu", {"steps_per_call": 2}, [2, 2, 2, 1, 1]),
    ("cpu", {"steps_per_call": 3}, [3, 1, 3, 1]),
  ],
)
def test_how_many_steps_a_call_takes(monkeypatch, backend, fields, counts):
  """Up to 20 where dispatches are dear, but none past a limit (here 7) or past the end of a phase (here 4)."""
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  monkeypatch.setattr(Experiment, "_compile", lambda self, phase, step, count: lambda state, batches: (state, batches))
  task = runs.make_task()
  experiment = Experiment(runs.make_config(method="finetune", num_epochs=1, **fields), task)
  assert (experiment.num_steps, experiment.steps_per_epoch) == (8, 4)
  state, step, taken = experiment.place(experiment.initial_state()), 0, []
  while step < 8:
    state, count, batches = experiment.advance(state, step, 7 if step < 7 else 8)
    side, first = ("source", step) if step < 4 else ("target", step - 4)  # each phase draws from the start
    assert batches.keys() == {side}
    sampler = EpochSampler(N, runs.BATCH_SIZE, 0) if step < 4 else TargetSampler(task.target["label"], 5, 0)
    for number in range(count):
      index, mask = (np.asarray(batches[side][part])[number] for part in ("index", "mask"))
      np.testing.assert_array_equal(index[mask], sampler.batch(first + number)[0][sampler.batch(first + number)[1]])
    taken, step = taken + [count], step + count
  assert taken == counts
  with pytest.raises(ValueError, match="step 8 of 8"):
    experiment.advance(state, 8, 9)


@pytest.mark.parametrize(
  "steps, count", [(1, 1), (18, 18), (21, 20), (40, 20), (45, 15), (47, 20), (50, 20), (57, 19), (391, 17), (66, 11)]
)
def test_two_programs_at_most_serve_where_dispatches_are_dear(monkeypatch, steps, count):
  """Dispatches of one length where one from 11 to 20 divides the steps between two events; else single steps, too."""
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  compiled = []
  monkeypatch.setattr(
    Experiment,
    "_compile",
    lambda self, phase, step, count: compiled.append(count) or (lambda state, batches: (state, {})),
  )
  every = steps / runs.STEPS_PER_EPOCH
  config = runs.make_config(num_epochs=200, eval_every_epochs=every, checkpoint_every_epochs=2 * every)
  experiment = Experiment(config, runs.make_task())
  state, step = experiment.place(experiment.initial_state()), 0
  while step < 2 * steps:
    state, taken, _ = experiment.advance(state, step, steps * (step // steps + 1))
    step += taken
  assert step == 2 * steps and compiled[0] == count and set(compiled) <= {count, 1} and len(compiled) <= 2


@pytest.mark.parametrize("feed", ["resident", "streaming"])
def test_no_pixels_are_kept_of_a_dispatch(feed):
  """Examples at fault are found by reading the batch again, which leaves the feed where it is."""
  task = runs.make_task()
  task.source["x"][17] = np.nan
  experiment = Experiment(runs.make_config(data__feed=feed), task)
  fed, batches = [], experiment._feeds["source"].batches
  experiment._feeds["source"].batches = lambda *place: fed.append(batches(*place)) or fed[-1]
  state = experiment.place(experiment.initial_state())
  epoch = [EpochSampler(N, runs.BATCH_SIZE, 0).batch(step)[0] for step in range(4)]
  place = next(step for step, index in enumerate(epoch) if 17 in index)
  start = experiment.place(experiment.initial_state())
  for step in range(4):
    state, *_ = experiment.advance(state, step, step + 1)
  seen = [weakref.ref(batch["x"]) for batch in fed[:4]]
  fed.clear()
  gc.collect()
  assert not any(ref() for ref in seen)
  for step in range(4):
    found = experiment.faulty_examples(start, step + 1)
    assert found == {"source": [17] if step == place else [], "target": []}
  if feed == "streaming":  # the stream itself has not moved
    index = np.asarray(batches(4, 1)["index"])[0]
    np.testing.assert_array_equal(index[: runs.BATCH_SIZE], EpochSampler(N, runs.BATCH_SIZE, 0).batch(4)[0])


def test_the_optimizer_starts_anew_with_a_phase(monkeypatch):
  """What it held at the end of the first phase has no part in the second."""
  runs.use_devices(monkeypatch, 1)
  config = runs.make_config(method="finetune", num_epochs=1, optimizer__name="adam")
  experiment = Experiment(config, runs.make_task())
  end, _ = advance(experiment, 4)
  end = jax.tree.map(np.asarray, end)
  spoiled = end.replace(opt_state=jax.tree.map(lambda leaf: leaf + 1, end.opt_state))
  after, _ = advance(experiment, 6, end)
  problems.assert_same_bits(after, advance(experiment, 6, spoiled)[0])
  counts = [int(leaf) for leaf in jax.tree.leaves(after.opt_state) if leaf.ndim == 0]
  assert counts and set(counts) == {2}
  later = jax.tree.map(np.asarray, after)
  spoiled = later.replace(opt_state=jax.tree.map(lambda leaf: leaf + 1, later.opt_state))
  leaves = lambda state: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.params)])
  assert (leaves(advance(experiment, 7, later)[0]) != leaves(advance(experiment, 7, spoiled)[0])).any()


def test_soseleto_is_the_published_step_on_these_batches():
  """On 8 devices, with the last batch of an epoch padded; against one device and no trainer."""
  task = runs.make_task()
  config = runs.make_config(seed=2, alpha__init=0.7, optimizer__schedule="constant", optimizer__weight_decay=0.0)
  state, shown = advance(Experiment(config, task), 5)

  model, optimizer = get_model("mlp", runs.CLASSES, hidden=(4,)), optax.sgd(0.1, momentum=0.9)
  loss = classification_loss(model)
  step = problems.jit(make_train_step(loss, loss, optimizer, alpha_step_size=0.1))
  params = Experiment(config, task).initial_state().params
  expected = init_train_state(params, optimizer, N, alpha_init=0.7, seed=2)
  source, target = EpochSampler(N, runs.BATCH_SIZE, 2), TargetSampler(task.target["label"], 5, 2)
  for number in range(5):
    batches = []
    for sampler, examples in ((source, task.source), (target, task.target)):
      index, mask = sampler.batch(number)
      x = task.source_normalization.apply(examples["x"])[index]
      batches.append({"x": x, "label": examples["label"][index], "index": index, "mask": mask})
    expected, metrics = step(expected, *batches)
    problems.assert_close({name: value[number] for name, value in shown.items()}, metrics, rtol=1e-4)
  problems.assert_close(state.params, expected.params)
  problems.assert_close(np.asarray(state.alpha)[:N], expected.alpha)
  assert np.asarray(state.alpha).shape == (48,)


@pytest.mark.parametrize("method, steps_per_call", [("soseleto", 2), ("finetune", 1)])
def test_split_parameters_change_nothing(method, steps_per_call):
  """Nor what is evaluated; two layers are large enough for it, and stay split."""
  fields = dict(method=method, num_epochs=1, model__hidden=(3280, 5), optimizer__name="adam")
  leaves = lambda state: jax.tree.leaves((state.params, state.opt_state))
  split = lambda state: sorted(leaf.shape for leaf in leaves(state) if not leaf.is_fully_replicated)
  results = []
  for shard_params in (False, True):
    config = runs.make_config(**fields, steps_per_call=steps_per_call, shard_params=shard_params)
    experiment = Experiment(config, runs.make_task())
    state, step = experiment.place(experiment.initial_state()), 0
    expected = 3 * [(5, 3280)] + 3 * [(3280, 5)] if shard_params else []
    assert split(state) == expected
    while step < 6 and step < experiment.num_steps:
      state, count, metrics = experiment.advance(state, step, 6)
      step += count
    results.append((state.replace(alpha=experiment.alpha(state)), metrics, experiment.evaluate(state)))
    assert split(state) == expected
  problems.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


def test_weights_move_with_their_batch_alone(monkeypatch):
  """The last batch of an epoch has 2 rows and 11 of padding, which name row 0."""
  experiment = Experiment(runs.make_config(seed=4), runs.make_task())
  state, _ = advance(experiment, 3)
  before = experiment.alpha(state)
  state, _ = advance(experiment, 4, jax.tree.map(np.asarray, state).replace(alpha=before))
  moved = np.flatnonzero(experiment.alpha(state) != before)
  index, mask = EpochSampler(N, runs.BATCH_SIZE, 4).batch(3)
  assert mask.sum() == 2
  np.testing.assert_array_equal(moved, np.sort(index[mask]))


@pytest.mark.parametrize("method, untouched", [("target_only", "source"), ("source_only", "target")])
def test_a_plain_method_never_touches_the_other_set(monkeypatch, method, untouched):
  runs.use_devices(monkeypatch, 1)
  params = []
  for seed in (0, 1):
    task = runs.make_task(normalization="none")
    if seed:
      examples = getattr(task, untouched)
      examples["x"], examples["label"] = -examples["x"][::-1], np.roll(examples["label"], 1)
    state, shown = advance(Experiment(runs.make_config(method=method), task), 5)
    params.append(state.params)
    assert shown.keys() == {method.replace("only", "loss"), "grad_norm", "valid_rows"}
    np.testing.assert_array_equal(state.alpha, 1)
  problems.assert_same_bits(*params)


def test_initial_states_are_of_the_seed():
  states = [Experiment(runs.make_config(seed=seed), runs.make_task()).initial_state() for seed in (1, 1, 2)]
  problems.assert_same_bits(states[0], states[1])
  assert [int(state.seed) for state in states] == [1, 1, 2]
  kernels = [state.params["representation"]["dense1"]["kernel"] for state in states]
  assert (np.asarray(kernels[0]) != np.asarray(kernels[2])).all()


# What is shown.


def test_evaluation_is_of_the_sets_that_are_there():
  task = runs.make_task()
  experiment = Experiment(runs.make_config(), task)
  state = experiment.place(experiment.initial_state())
  sets = {"validation_accuracy", "validation_loss", "test_accuracy", "test_loss"}
  record = experiment.evaluate(state)
  assert sets < record.keys()
  object.__setattr__(task, "validation", None)
  assert Experiment(runs.make_config(), task).evaluate(state).keys() == record.keys() - {
      "validation_accuracy", "validation_loss"
  }  # fmt: skip


@pytest.mark.parametrize("method", ["soseleto", "source_only", "target_only", "finetune", "joint"])
@pytest.mark.parametrize("known", [True, False])
def test_detection_is_of_learned_weights_and_known_labels(method, known):
  experiment = Experiment(runs.make_config(method=method), runs.make_task(true_label=known))
  alpha = np.linspace(0, 1, N, dtype=np.float32)
  statistics = experiment.alpha_statistics(alpha)
  assert bool(statistics) == (method == "soseleto" and known)
  if statistics:
    assert statistics["auc"] == 1  # the first 12 are wrong
    np.testing.assert_allclose(statistics["wrong_fraction"], 12 / N)
    np.testing.assert_allclose(statistics["alpha_wrong"], alpha[:12].mean())
