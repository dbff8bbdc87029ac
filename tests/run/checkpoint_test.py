"""Checkpoints give back what they were given."""

import pickle
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from experiments.reliability import faults
from soseleto_jax import init_train_state
from soseleto_jax.core import sharding
from soseleto_jax.run.checkpoint import Checkpoints
from tests import problems

N = 13
LOOP = {"sums": {"loss": 0.1 + 0.2, "grad_norm": 1e-300}, "count": 3, "seconds": 1 / 3}


def make_state(step=0, model_state=None):
  """With several dtypes, and a value of its own for each step."""
  params = {"w": jnp.arange(6.0).reshape(2, 3) / 7 + step, "b": jnp.full(3, step / 3, jnp.bfloat16)}
  optimizer = optax.chain(optax.add_decayed_weights(0.1), optax.adam(optax.cosine_decay_schedule(0.1, 9)))
  alpha = np.random.default_rng(step).uniform(size=N).astype(np.float32)
  model_state = jax.tree.map(jnp.asarray, model_state)
  state = init_train_state(params, optimizer, N, alpha_init=alpha, model_state=model_state, seed=2**32 - 1)
  opt_state = jax.tree.map(lambda leaf: leaf + jnp.asarray(step, leaf.dtype), state.opt_state)
  return state.replace(step=jnp.int32(step), opt_state=opt_state)


def open_checkpoints(workdir, max_to_keep=2, num_source=N, num_steps=None):
  return Checkpoints(workdir, max_to_keep=max_to_keep, num_source=num_source, num_steps=num_steps)


def place(state, devices):
  return sharding.shard_train_state(state, sharding.make_mesh(jax.devices()[:devices]))


def steps_on_disk(workdir):
  return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


@pytest.mark.parametrize("model_state", [None, {"batch_stats": {"mean": np.float32([1, 2])}, "calls": np.int32(7)}])
@pytest.mark.parametrize("loop", [LOOP, {"sums": {}, "count": 0, "seconds": 0.0}])
def test_restore_equals_save(tmp_path, model_state, loop):
  """Bit for bit, by another manager, with `like` giving only shapes and places."""
  state = make_state(5, model_state)
  with open_checkpoints(tmp_path / "new" / "run") as checkpoints:
    assert checkpoints.latest_step is None
    checkpoints.save(state, loop)
    assert checkpoints.latest_step == 5
  with open_checkpoints(tmp_path / "new" / "run") as checkpoints:
    assert checkpoints.latest_step == 5
    restored, restored_loop = checkpoints.restore(make_state(0, model_state))
  problems.assert_same_bits(restored, state)
  assert restored_loop == loop


@pytest.mark.parametrize("before, after", [(8, 3), (3, 8), (8, 1), (1, 8), (8, 8)])
def test_another_number_of_devices_goes_on(tmp_path, before, after):
  """It needs another padding of alpha: that of `like`, whatever was saved."""
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(place(make_state(1), before), LOOP)
    like = place(make_state(), after)
    restored, _ = checkpoints.restore(like.replace(alpha=like.alpha.at[N:].set(-1)))
  expected = place(make_state(1), after)
  expected = expected.replace(alpha=expected.alpha.at[N:].set(-1))
  problems.assert_same_bits(restored, expected)
  for leaf, same in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
    assert leaf.sharding == same.sharding


def test_the_newest_stay(tmp_path):
  with open_checkpoints(tmp_path, max_to_keep=3) as checkpoints:
    for step in (1, 2, 5, 7, 11):
      checkpoints.save(make_state(step), {"number": step})
  assert steps_on_disk(tmp_path) == [5, 7, 11]
  with open_checkpoints(tmp_path, max_to_keep=1) as checkpoints:
    restored, loop = checkpoints.restore(make_state())
    problems.assert_same_bits(restored, make_state(11))
    assert loop == {"number": 11}
    checkpoints.save(make_state(12), LOOP)
  assert steps_on_disk(tmp_path) == [12]


def test_a_step_is_saved_once(tmp_path):
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(make_state(3), {"number": 1})
    checkpoints.save(make_state(3), {"number": 2})
    assert checkpoints.restore(make_state())[1] == {"number": 1}


def test_saved_arrays_may_be_deleted(tmp_path):
  """The next step donates them while the save may still go on."""
  state = make_state(4)
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(state, LOOP)
    jax.tree.map(lambda leaf: leaf.delete(), state)
    problems.assert_same_bits(checkpoints.restore(make_state())[0], make_state(4))


def test_waiting_puts_it_on_disk(tmp_path):
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(make_state(6), LOOP)
    checkpoints.wait()
    assert steps_on_disk(tmp_path) == [6]


def test_a_save_that_was_cut_off_counts_for_nothing(tmp_path):
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(make_state(2), LOOP)
  (tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
  with open_checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest_step == 2
    problems.assert_same_bits(checkpoints.restore(make_state())[0], make_state(2))


@pytest.mark.parametrize(
  "num_source, params, message",
  [
    (N + 1, None, r"step 2: state.alpha is float32\[13\], but float32\[14\] here; choose another"),
    (N, {"w": jnp.zeros((2, 4)), "b": jnp.zeros(3, jnp.bfloat16)}, r"float32\[2, 3\], but float32\[2, 4\]"),
    (N, {"w": jnp.zeros((2, 3))}, r"state.params\['b'\] is bfloat16\[3\], but no such array here"),
    (N, {"w": jnp.zeros((2, 3)), "b": jnp.zeros(3)}, r"is bfloat16\[3\], but float32\[3\] here"),
  ],
)
def test_a_state_of_another_shape_is_refused(tmp_path, num_source, params, message):
  """On 8 devices 13 and 14 rows of alpha are padded to as many."""
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(place(make_state(2), 8), LOOP)
  like = place(make_state(), 8)
  with open_checkpoints(tmp_path, num_source=num_source) as checkpoints, pytest.raises(ValueError, match=message):
    checkpoints.restore(like.replace(params=params) if params else like)


def test_the_best_stays(tmp_path):
  with open_checkpoints(tmp_path) as checkpoints:
    for step, best in ((1, 1), (2, 2), (3, 2), (4, 2), (5, 2)):
      checkpoints.save(make_state(step), LOOP, best)
    checkpoints.wait()
    assert steps_on_disk(tmp_path) == checkpoints.steps == [2, 4, 5]
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(make_state(6), LOOP, 2)
    checkpoints.wait()
    assert steps_on_disk(tmp_path) == [2, 5, 6]
    checkpoints.save(make_state(7), LOOP, 7)
    checkpoints.save(make_state(8), LOOP, 7)
  assert steps_on_disk(tmp_path) == [7, 8]


def test_what_was_cut_off_is_cleared(tmp_path):
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(make_state(2), LOOP)
  left = tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp"
  (left / "state").mkdir(parents=True)
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(make_state(3), LOOP)
  assert not left.exists()


# Damage.


@pytest.fixture
def saved(tmp_path):
  """A folder with checkpoints of steps 2 and 5."""
  with open_checkpoints(tmp_path) as checkpoints:
    for step in (2, 5):
      checkpoints.save(make_state(step), {"number": step})
  return tmp_path


@pytest.mark.parametrize("name", faults.DAMAGES)
def test_damage_is_told_and_the_one_before_used(saved, caplog, name):
  faults.DAMAGES[name](saved / "checkpoints" / "5")
  with open_checkpoints(saved) as checkpoints:
    restored, loop = checkpoints.restore(make_state())
    problems.assert_same_bits(restored, make_state(2))
    assert loop == {"number": 2}
    assert "the checkpoint of step 5 is damaged: " in caplog.text and "going on from step 2" in caplog.text
    assert checkpoints.steps == [2]
    checkpoints.save(make_state(5), {"number": 5})  # the step comes again
  with open_checkpoints(saved) as checkpoints:
    problems.assert_same_bits(checkpoints.restore(make_state())[0], make_state(5))
  assert (saved / "checkpoints" / "5.damaged").is_dir()


def test_no_bit_of_any_file_can_change_unseen(saved, tmp_path_factory):
  """Three of each file: what is restored is right, or the one before."""
  before = 0
  rng = np.random.default_rng(0)
  for path in sorted(path for path in (saved / "checkpoints" / "5").rglob("*") if path.is_file()):
    for bit in rng.integers(0, 8 * path.stat().st_size, 3):
      copy = tmp_path_factory.mktemp("copy") / "run"
      shutil.copytree(saved, copy)
      faults.flip_bit(copy / path.relative_to(saved), bit)
      with open_checkpoints(copy) as checkpoints:
        restored, loop = checkpoints.restore(make_state())
      problems.assert_same_bits(restored, make_state(loop["number"]))
      before += loop["number"] == 2
  assert before > 10


def test_an_index_that_fits_no_tree(saved, caplog):
  """One bit of a name among the metadata, at which Orbax fails by an assertion."""
  path = saved / "checkpoints" / "5" / "state" / "_METADATA"
  assert '"key": "0"' in path.read_text()
  path.write_text(path.read_text().replace('"key": "0"', '"key": "4"'))
  with open_checkpoints(saved) as checkpoints:
    assert checkpoints.restore(make_state())[1] == {"number": 2}
  assert "the checkpoint of step 5 is damaged: state cannot be read: AssertionError" in caplog.text


@pytest.mark.parametrize("name", ["params", "opt_state", "alpha", "seed", "step"])
def test_an_array_that_is_not_the_one_that_was_saved(saved, caplog, monkeypatch, name):
  """Its file is sound, and its shape right."""
  restore = Checkpoints._read_item

  def changed(self, step, item, how):
    found = restore(self, step, item, how)
    if (step, item) == (5, "state"):
      leaves, structure = jax.tree.flatten(getattr(found, name))
      leaves[-1] = leaves[-1] + np.ones((), leaves[-1].dtype)
      found = found.replace(**{name: structure.unflatten(leaves)})
    return found

  monkeypatch.setattr(Checkpoints, "_read_item", changed)
  with open_checkpoints(saved) as checkpoints:
    assert checkpoints.restore(make_state())[1] == {"number": 2}
  assert f"step 5 is damaged: state.{name}" in caplog.text and "does not have the checksum" in caplog.text


def test_all_damaged(saved):
  """Says so, and leaves all as it is: a second try must not start from the beginning."""
  for step in ("2", "5"):
    faults.truncate(saved / "checkpoints" / step / "loop" / "metadata")
  for _ in range(2):
    with open_checkpoints(saved) as checkpoints:
      message = "no checkpoint can be used .step 5: loop cannot be read: .*; step 2: loop .*another --workdir"
      with pytest.raises(RuntimeError, match=message):
        checkpoints.restore(make_state())
  assert steps_on_disk(saved) == [2, 5]


def test_another_network_is_no_damage(saved):
  with open_checkpoints(saved, num_source=N + 1) as checkpoints, pytest.raises(ValueError, match="step 5"):
    checkpoints.restore(make_state())
  assert steps_on_disk(saved) == [2, 5]


@pytest.mark.parametrize(
  "error",
  [
    PermissionError(13, "Permission denied"),
    OSError(5, "Input/output error"),
    ValueError('RESOURCE_EXHAUSTED: Error opening "zarr" driver: Too many open files'),
    MemoryError("cannot allocate"),
    RuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
  ],
)
def test_what_cannot_be_read_just_now_is_no_damage(saved, monkeypatch, error):
  """The run stops and says why; the next one finds the checkpoint where it was."""
  item = "loop" if isinstance(error, OSError) else "state"

  def fail(*args, **kwargs):
    raise Exception("while reading") from error

  with monkeypatch.context() as patch, open_checkpoints(saved) as checkpoints:
    handler = {"loop": ocp.JsonCheckpointHandler, "state": ocp.StandardCheckpointHandler}[item]
    patch.setattr(handler, "restore", fail)
    with pytest.raises(OSError, match=f"^{item} of the checkpoint of step 5 cannot be read: .*{str(error)[-15:]}"):
      checkpoints.restore(make_state())
  assert steps_on_disk(saved) == [2, 5]
  with open_checkpoints(saved) as checkpoints:
    assert checkpoints.restore(make_state())[1] == {"number": 5}


def test_stray_folders_are_left_alone(saved, caplog):
  """Among them real checkpoints, of other runs or under other names."""
  strays = [saved / "checkpoints" / name for name in ("999", "1e3", "5 copy", "copy_7", "007")]
  for stray in strays:
    shutil.copytree(saved / "checkpoints" / "2", stray)
  with open_checkpoints(saved, num_steps=10) as checkpoints:
    assert checkpoints.steps == [2, 5] and checkpoints.latest_step == 5
    checkpoints.save(make_state(8), LOOP)
  with open_checkpoints(saved, num_steps=10) as checkpoints:
    problems.assert_same_bits(checkpoints.restore(make_state())[0], make_state(8))
  assert all(stray.is_dir() for stray in strays)
  assert "999 is no checkpoint of this run, and is left as it is" in caplog.text  # the one that looks like it


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_checkpoints_that_are_no_folder(tmp_path, kind):
  place = tmp_path / "checkpoints"
  place.touch() if kind == "file" else place.symlink_to(tmp_path / "nowhere")
  with pytest.raises(OSError, match="checkpoints is no folder; move it away, or choose another --workdir"):
    open_checkpoints(tmp_path)


def test_checkpoints_may_be_a_link_to_a_folder(tmp_path):
  (tmp_path / "elsewhere").mkdir()
  (tmp_path / "checkpoints").symlink_to(tmp_path / "elsewhere")
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(make_state(3), LOOP)
  assert (tmp_path / "elsewhere" / "3").is_dir()


# Saves that fail.


def hinder(monkeypatch):
  """Lets a file that is written in the background meet a full disk."""

  async def full(*args, **kwargs):
    raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

  monkeypatch.setattr(ocp.JsonCheckpointHandler, "_save_fn", full)


@pytest.mark.parametrize("meets", ["wait", "save", "exit"])
def test_a_save_that_fails_is_not_lost(tmp_path, monkeypatch, meets):
  """It is met at the next occasion, and what was saved before it stays."""
  with pytest.raises(OSError, match="a checkpoint could not be written: RESOURCE_EXHAUSTED: No space left on device"):
    with open_checkpoints(tmp_path, max_to_keep=1) as checkpoints:
      checkpoints.save(make_state(1), LOOP)
      checkpoints.wait()
      hinder(monkeypatch)
      checkpoints.save(make_state(2), LOOP)
      if meets == "wait":
        checkpoints.wait()
      if meets == "save":
        checkpoints.save(make_state(3), LOOP)
  assert checkpoints.latest_step == 1
  assert steps_on_disk(tmp_path) == [1]
  monkeypatch.undo()
  with open_checkpoints(tmp_path) as checkpoints:
    problems.assert_same_bits(checkpoints.restore(make_state())[0], make_state(1))


def test_a_folder_that_cannot_be_made(tmp_path):
  """Is met at once: no thread waits for it."""
  with pytest.raises(OSError, match="a checkpoint could not be written: .*File exists"):
    with open_checkpoints(tmp_path) as checkpoints:
      checkpoints.save(make_state(1), LOOP)
      checkpoints.wait()  # the folder is cleared of unfinished saves by a thread
      (tmp_path / "checkpoints").rename(tmp_path / "elsewhere")
      (tmp_path / "checkpoints").touch()
      checkpoints.save(make_state(2), LOOP)


def test_what_stopped_the_run_goes_before_a_save_that_failed(tmp_path, monkeypatch, caplog):
  hinder(monkeypatch)
  with pytest.raises(ZeroDivisionError):
    with open_checkpoints(tmp_path) as checkpoints:
      checkpoints.save(make_state(1), LOOP)
      raise ZeroDivisionError
  assert "a checkpoint could not be written: RESOURCE_EXHAUSTED" in caplog.text


# Trust.

_FOUND = []
sys.addaudithook(lambda event, args: _FOUND.append(args) if event == "pickle.find_class" else None)


def test_restoring_never_unpickles(saved):
  with open_checkpoints(saved) as checkpoints:
    _FOUND.clear()
    checkpoints.restore(make_state())
    assert _FOUND == []
  pickle.loads(pickle.dumps(np.float32))
  assert _FOUND != []
