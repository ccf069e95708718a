"""Checkpoints: what is damaged, what is not this run's, and who may read."""

import contextlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmc import training
from tests.helpers import tiny_training
from tests.helpers.tiny_training import (
  assert_same_bits,
  assert_same_run,
  state_of,
  steps_of,
  train,
)

# A read that failed leaves others under way, which find orbax's event loop
# closed when they end.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """The directory of a run with checkpoints at 30, 40 and 45."""
  workdir = tmp_path_factory.mktemp("finished")
  train(workdir, 45, checkpoint_every=10)
  return workdir


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
  """The directory of a longer run that nothing disturbed."""
  workdir = tmp_path_factory.mktemp("unbroken")
  train(workdir, 50, checkpoint_every=10)
  return workdir


@pytest.fixture
def workdir(tmp_path, finished):
  """A copy of the finished run, to be damaged."""
  return shutil.copytree(finished, tmp_path / "run")


def example_state(seed=0):
  """A state with all kinds of arrays that optimisers and tasks have."""
  rng = np.random.default_rng(seed)
  params = {
      "core/~/linear": {"w": rng.normal(size=(3, 2)).astype(np.float32)},
      "head": {"b": rng.normal(size=(2,))},
  }
  return training.TrainState(
      step=np.int32(7),
      params=params,
      opt_state=(
          jax.tree.map(np.zeros_like, params),
          np.int32(3),
          np.array(rng.normal(size=2), jnp.bfloat16),
      ),
      carry={"x": rng.normal(size=(4, 2)), "done": np.array([True, False])},
      key=np.array([1, 2], np.uint32),
  )


def files_of(directory):
  """Returns the files under a directory, largest first."""
  files = [path for path in directory.rglob("*") if path.is_file()]
  return sorted(files, key=lambda path: (-path.stat().st_size, path))


def test_round_trip(tmp_path):
  state, meta = example_state(), {"config": {"a": [1, 2]}, "b": 0.1}
  with contextlib.closing(training.Checkpointer(tmp_path)) as checkpointer:
    assert checkpointer.restore(state) is None
    assert checkpointer.meta() is None
    checkpointer.save(state, meta)
    restored, restored_meta = checkpointer.restore(example_state(1))
    assert checkpointer.meta() == restored_meta == meta
  assert_same_bits(restored, state)
  assert_same_bits(training.load_params(tmp_path), state.params)


def test_what_is_there_is_not_written_again(tmp_path):
  with contextlib.closing(training.Checkpointer(tmp_path)) as checkpointer:
    checkpointer.save(example_state(0), {"n": 0})
    checkpointer.save(example_state(1), {"n": 1})
    restored, meta = checkpointer.restore(example_state())
  assert meta == {"n": 0}
  assert_same_bits(restored, example_state(0))


def test_three_are_kept(finished):
  assert steps_of(finished) == [30, 40, 45]


# Damage.


def truncate_all(step):
  for path in files_of(step):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty_all(step):
  for path in files_of(step):
    path.write_bytes(b"")


def truncate_largest(step):
  path = files_of(step / "params")[0]
  path.write_bytes(path.read_bytes()[:-10])


def remove_params(step):
  shutil.rmtree(step / "params")


def remove_meta(step):
  shutil.rmtree(step / "meta")


def remove_a_file(step):
  files_of(step / "rest" / "d")[0].unlink()


def empty_directory(step):
  shutil.rmtree(step)
  step.mkdir()


def zero_meta(step):
  path = step / "meta" / "metadata"
  path.write_bytes(bytes(path.stat().st_size))


def meta_is_no_object(step):
  (step / "meta" / "metadata").write_text("[1]")


def change_a_mean(step):
  """To the number next to it; all is as it was but for some digits."""
  path = step / "meta" / "metadata"
  meta = json.loads(path.read_text())
  text = path.read_text()
  mean = meta["meta"]["means"]["sums"]["loss"]
  other = float(np.nextafter(mean, np.inf))
  assert text.count(repr(mean)) == 1
  path.write_text(text.replace(repr(mean), repr(other)))


def change_the_config(step):
  path = step / "meta" / "metadata"
  text = path.read_text()
  assert '"config": {' in text
  path.write_text(text.replace('"config": {', '"cOnfig": {'))


def params_of_another_step(step):
  """Whole files, each as orbax wrote it, that do not belong together."""
  shutil.rmtree(step / "params")
  shutil.copytree(step.parent / "40" / "params", step / "params")


DAMAGES = [
    params_of_another_step,
    truncate_all,
    empty_all,
    truncate_largest,
    remove_params,
    remove_meta,
    remove_a_file,
    empty_directory,
    zero_meta,
    meta_is_no_object,
    change_a_mean,
    change_the_config,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_the_one_before_is_taken(workdir, unbroken, damage, caplog):
  damage(workdir / "checkpoints" / "45")
  first = []
  train(workdir, 50, checkpoint_every=10, before=first.append)
  assert first[0] == 40
  (warning,) = (
      r.getMessage() for r in caplog.records if "damaged" in r.getMessage()
  )
  assert "damaged checkpoint left out, step 45" in warning
  assert steps_of(workdir) == steps_of(unbroken) == [30, 40, 50]
  assert_same_run(workdir, unbroken)


@pytest.mark.parametrize("seed", range(25))
def test_a_flipped_bit_changes_nothing_or_is_found(
    workdir, unbroken, seed, caplog
):
  """Anywhere: some bits mean nothing, none may mean something else."""
  rng = np.random.default_rng(seed)
  files = [p for p in files_of(workdir / "checkpoints" / "45")
           if p.stat().st_size]
  path = files[rng.integers(len(files))]
  data = bytearray(path.read_bytes())
  data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
  path.write_bytes(data)
  first = []
  train(workdir, 50, checkpoint_every=10, before=first.append)
  found = any("damaged" in r.getMessage() for r in caplog.records)
  assert first[0] == (40 if found else 45)
  assert_same_run(workdir, unbroken)


def test_two_damaged_ones(workdir, unbroken, caplog):
  truncate_all(workdir / "checkpoints" / "45")
  remove_params(workdir / "checkpoints" / "40")
  first = []
  train(workdir, 50, checkpoint_every=10, before=first.append)
  assert first[0] == 30
  messages = " ".join(r.getMessage() for r in caplog.records)
  assert "step 45" in messages and "step 40" in messages
  assert_same_run(workdir, unbroken)


@pytest.mark.parametrize(
    "damage", [truncate_all, remove_meta, empty_directory],
    ids=lambda f: f.__name__,
)
def test_never_a_silent_fresh_start(workdir, damage):
  for step in steps_of(workdir):
    damage(workdir / "checkpoints" / str(step))
  files = {path: path.read_bytes() for path in files_of(workdir)}
  with pytest.raises(training.CheckpointError) as caught:
    train(workdir, 50)
  for step in (30, 40, 45):
    assert f"step {step}" in str(caught.value)
  assert "can be read" in str(caught.value)
  # Nothing is touched, so that there is something left to look into.
  left = {path: path.read_bytes() for path in files_of(workdir)}
  left.pop(workdir / ".lock", None)
  files.pop(workdir / ".lock", None)
  assert left == files


def test_what_a_kill_left_half_written_is_cleared_away(workdir, unbroken):
  """orbax writes beside and renames; what is beside is no checkpoint."""
  checkpoints = workdir / "checkpoints"
  beside = checkpoints / "46.orbax-checkpoint-tmp-1"
  shutil.copytree(checkpoints / "45", beside)
  truncate_all(beside)
  (workdir / "summary.json.tmp").write_text("{")
  first = []
  train(workdir, 50, checkpoint_every=10, before=first.append)
  assert first[0] == 45
  assert steps_of(workdir) == [40, 45, 50]
  assert not list(workdir.glob("*.tmp"))
  assert_same_run(workdir, unbroken)


# Other runs' checkpoints.


def test_another_architecture(workdir):
  """Without a configuration to compare, shapes tell."""
  with contextlib.closing(training.Checkpointer(workdir)) as checkpointer:
    like = training.to_numpy(tiny_training.init())
    wider = like._replace(params={"linear": {"w": np.zeros(4, np.float32)}})
    with pytest.raises(training.CheckpointError) as caught:
      checkpointer.restore(wider)
  assert "['linear']['w'] is float32[3], expected float32[4]" in str(
      caught.value
  ) or "['linear']['b'] is float32[], expected None" in str(caught.value)
  assert steps_of(workdir) == [30, 40, 45]


# Readers.


def test_load_params(finished):
  state, _ = state_of(finished)
  assert training.latest_step(finished) == state.step == 45
  assert_same_bits(training.load_params(finished), state.params)
  assert_same_bits(training.load_params(str(finished), 45), state.params)
  assert not np.array_equal(
      training.load_params(finished, 30)["linear"]["w"],
      state.params["linear"]["w"],
  )


def test_load_params_of_a_running_run(tmp_path):
  found = {}

  def before(step):
    with contextlib.suppress(training.CheckpointError):
      found[step] = training.load_params(tmp_path)

  train(tmp_path, 25, before=before, checkpoint_every=10)
  assert sorted(found) == list(range(10, 25))
  for step in (12, 20):
    kept = training.load_params(tmp_path, step // 10 * 10)
    assert_same_bits(found[step], kept)
  assert not list(tmp_path.glob("checkpoints/*tmp*"))


def test_load_params_says_what_is_wrong(workdir, tmp_path):
  with pytest.raises(training.CheckpointError, match=r"\[30, 40, 45\]"):
    training.load_params(workdir, 44)
  with pytest.raises(training.CheckpointError, match="step 0"):
    training.load_params(workdir, 0)
  with pytest.raises(training.CheckpointError, match="no checkpoint"):
    training.load_params(tmp_path / "nowhere")
  assert not (tmp_path / "nowhere").exists()
  for damage in (params_of_another_step, truncate_all):
    damage(workdir / "checkpoints" / "45")
    with pytest.raises(training.CheckpointError, match="step 45 .*cannot be"):
      training.load_params(workdir)
  assert training.load_params(workdir, 40).keys() == {"linear"}
