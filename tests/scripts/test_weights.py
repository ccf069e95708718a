"""Weights as files: exported, evaluated, shown, and begun with.

What was trained are the old runs of `tests/golden`.
"""

import json
import shutil

from absl import flags
import jax
import numpy as np
import pytest

from rmc import training
from scripts import (
  evaluate_agent,
  generate_text,
  play,
  render_agent,
  train_box_world,
  train_language_model,
  train_learn_to_execute,
  train_mini_pacman,
  train_nth_farthest,
)
from tests.helpers.in_process import exit_of, own_process
from tests.helpers.programs import run
from tests.helpers.texts import load
from tests.helpers.tiny_training import assert_same_bits
from tests.scripts.test_old_runs import PROGRAMS, unpack

FLAGS = flags.FLAGS


@pytest.fixture(scope="module")
def export_weights():
  """The program; another one has a flag of the same name, --output."""
  with own_process("scripts.export_weights") as exit_there:
    yield exit_there


@pytest.fixture(scope="module")
def exported(export_weights, tmp_path_factory):
  """Returns a function that exports an old run once.

  Its argument is the run's name; it returns the file, and what the run's
  program printed when it evaluated the run itself. The run is gone then.
  """
  made = {}

  def export(name):
    if name not in made:
      folder = tmp_path_factory.mktemp(name)
      unpack(name, folder / "run")
      evaluated = exit_of(
          PROGRAMS[name], "--mode=eval", f"--workdir={folder / 'run'}",
          *places(name, folder),
      )  # fmt: skip
      file = folder / f"{name}.safetensors"
      status, out, err = export_weights(
          f"--workdir={folder / 'run'}", f"--output={file}"
      )
      assert (status, err) == (0, "")
      assert f"{file.stat().st_size:,} bytes, to {file}" in out
      shutil.rmtree(folder / "run")
      made[name] = file, evaluated
    return made[name]

  return export


def places(name, folder):
  """Returns the flags that name a run's text, which is put out of the run."""
  if name != "language_model":
    return []
  text = folder / "text"
  if not text.exists():
    shutil.move(folder / "run" / "text", text)
    load(text)
  return [f"--manual_dir={text}", f"--data_dir={folder / 'data'}"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_evaluation_needs_no_run(exported, name):
  """It prints the same, to the last digit."""
  file, evaluated = exported(name)
  assert evaluated[0] == 0, evaluated
  assert json.loads(evaluated[1].splitlines()[0])["step"] > 0
  assert evaluated == exit_of(
      PROGRAMS[name], "--mode=eval", f"--weights={file}",
      *places(name, file.parent),
  )  # fmt: skip


def test_what_a_file_holds(exported, tmp_path):
  file, (_, out, _) = exported("language_model")
  unpack("language_model", tmp_path)
  params, metadata = training.load_weights(file)
  assert_same_bits(params, training.load_params(tmp_path))
  vocabulary = (tmp_path / "vocabulary.txt").read_text()
  assert metadata["vocabulary"] == vocabulary
  found = json.loads(out.splitlines()[0])
  assert metadata["step"] == str(found["step"])
  metrics = json.loads(metadata["metrics"])
  assert metrics["step"] == found["step"] and metrics["loss"] > 0
  assert len(metadata["commit"].split("-")[0]) in (7, 40)  # Or "unknown".
  lines = metadata["flags"].splitlines()
  assert "--core=rmc" in lines or "--core=lstm" in lines
  assert not any("dir=" in line for line in lines)


def test_half_the_size(export_weights, exported, tmp_path):
  file, _ = exported("mini_pacman")
  unpack("mini_pacman", tmp_path)
  half = tmp_path / "half.safetensors"
  status, _, err = export_weights(
      f"--workdir={tmp_path}", f"--output={half}", "--dtype=float16"
  )
  assert (status, err) == (0, "")
  params, _ = training.load_weights(half)
  whole, _ = training.load_weights(file)
  for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(whole), strict=True):
    assert (x.dtype, y.dtype) == (np.float16, np.float32)
    np.testing.assert_array_equal(x, y.astype(np.float16))
  status, out, err = exit_of(
      train_mini_pacman, "--mode=eval", f"--weights={half}"
  )
  assert (status, err) == (0, "") and json.loads(out)["step"] > 0


def test_an_agent_is_shown(exported, tmp_path):
  file, _ = exported("box_world")
  before = sorted(file.parent.iterdir())
  weights = f"--weights={file}"
  status, out, err = exit_of(
      evaluate_agent, weights, "--solution_length=2", "--eval_episodes=3"
  )
  assert (status, err) == (0, "") and "greedy" in out
  status, out, err = exit_of(play, weights)
  assert (status, err) == (0, "")
  assert "The episode ended after" in out and "key none" in out
  film = tmp_path / "film.gif"
  status, out, err = exit_of(render_agent, weights, f"--gif={film}")
  assert (status, err) == (0, "") and film.exists()
  assert sorted(file.parent.iterdir()) == before  # Nothing is left there.


def test_text_is_written(exported):
  file, _ = exported("language_model")
  found = [
      exit_of(generate_text, f"--weights={file}", "--num_words=9", *more)
      for more in ([], ["--seed=1"])
  ]
  assert [status for status, *_ in found] == [0, 0]
  assert found[0][1].strip() and found[0] != found[1]


def test_a_run_begins_with_weights(exported, tmp_path):
  """And goes on without the file, but with no other."""
  file, _ = exported("nth_farthest")
  params, metadata = training.load_weights(file)
  copy = tmp_path / "copy.safetensors"
  shutil.copy(file, copy)
  command = [
      train_nth_farthest,
      *metadata["flags"].splitlines(),
      "--learning_rate=1e-30",
      "--checkpoint_every=1",
      f"--workdir={tmp_path / 'run'}",
  ]
  status, _, err = exit_of(*command, "--steps=1", f"--init_from={copy}")
  assert (status, err) == (0, "")
  assert_same_bits(training.load_params(tmp_path / "run"), params)
  copy.unlink()
  status, _, err = exit_of(*command, "--steps=2", f"--init_from={copy}")
  assert (status, err) == (0, "")
  assert_same_bits(training.load_params(tmp_path / "run"), params)
  summary = json.loads((tmp_path / "run" / "summary.json").read_text())
  assert (summary["step"], summary["init_from"]) == (2, str(copy))
  for other in ([], [f"--init_from={file}"]):
    status, _, err = exit_of(*command, "--steps=3", *other)
    assert status == 2 and f"init_from was '{copy}' and is" in err


def test_a_state_that_depends_on_parameters_begins_with_them(
    exported, experiment_of
):
  """Agents and language models carry a state of the core."""
  for name in ("box_world", "language_model"):
    file, _ = exported(name)
    params, metadata = training.load_weights(file)
    with experiment_of(
        PROGRAMS[name],
        *metadata["flags"].splitlines(),
        *places(name, file.parent),
        f"--init_from={file}",
    ) as made:
      state = made.init()
      assert_same_bits(jax.device_get(state.params), params)
      fresh = made.optimizer.init(state.params)
      assert_same_bits(
          jax.device_get(state.opt_state), jax.device_get(fresh)
      )


def wrong_files(folder, file):
  """Yields files that are no weights, and what is said of them."""
  whole = file.read_bytes()
  for name, data, message in (
      ("cut", whole[:-1], "is no whole safetensors file"),
      ("flipped", whole[:20] + bytes([whole[20] ^ 1]) + whole[21:], " is "),
      ("text", b"--seed=0\n", "is no whole safetensors file"),
  ):
    path = folder / name
    path.write_bytes(data)
    yield path, message
  yield folder / "nowhere", "cannot be read: No such file"


def test_wrong_files(exported, tmp_path):
  file, _ = exported("nth_farthest")
  for path, message in wrong_files(tmp_path, file):
    for program, *arguments in (
        (train_nth_farthest, "--mode=eval", f"--weights={path}"),
        (evaluate_agent, f"--weights={path}"),
        (play, f"--weights={path}"),
        (generate_text, f"--weights={path}"),
    ):
      status, out, err = exit_of(program, *arguments)
      assert (status, out, err.count("\n")) == (2, "", 1)
      assert f"{path}" in err and message in err
  run = tmp_path / "run"
  status, out, err = exit_of(
      train_nth_farthest,
      "--num_objects=3",
      f"--init_from={tmp_path / 'cut'}",
      f"--workdir={run}",
  )
  assert (status, err.count("\n")) == (2, 1)
  assert f"{tmp_path / 'cut'} is no whole safetensors file" in err


@pytest.mark.parametrize(
    "program, name, arguments, message",
    [
        (
            generate_text,
            "nth_farthest",
            [],
            "holds no run of a language model: there is no vocabulary",
        ),
        (play, "nth_farthest", [], "must be of a run of train_box_world or"),
        (
            train_nth_farthest,
            "nth_farthest",
            ["--mode=eval", "--head_size=3"],
            "--head_size=3 contradicts --weights=",
        ),
        (
            train_learn_to_execute,
            "learn_to_execute",
            ["--mode=eval", "--mlp_sizes=3,4"],
            "--mlp_sizes=3,4 contradicts --weights=",
        ),
        (
            train_language_model,
            "language_model",
            ["--mode=eval", "--embedding_size=5"],
            "--embedding_size=5 contradicts --weights=",
        ),
        (
            evaluate_agent,
            "box_world",
            ["--view=full"],
            "--view=full contradicts --weights=",
        ),
        (
            train_nth_farthest,
            "nth_farthest",
            ["--mode=eval", "--num_features=9"],
            "input_projection/w is [11, 8] and should be [18, 8]",
        ),
        (
            train_box_world,
            "box_world",
            [],
            "goes with --mode=eval; a training begins with --init_from",
        ),
        (
            train_box_world,
            "box_world",
            ["--mode=eval", "--workdir=x"],
            "stands in place of --workdir",
        ),
    ],
)
def test_weights_that_do_not_fit(exported, program, name, arguments, message):
  file, _ = exported(name)
  status, out, err = exit_of(program, f"--weights={file}", *arguments)
  assert (status, out, err.count("\n")) == (2, "", 1)
  assert message in err


def test_weights_of_another_program(exported):
  file, _ = exported("box_world")
  done = run("scripts.train_nth_farthest", "--mode=eval", f"--weights={file}")
  assert (done.returncode, done.stderr.count("\n")) == (2, 1)
  message = f"--weights={file} must be of a run of this program, which has no -"
  assert message in done.stderr


def test_begins_with_another_network(exported, tmp_path):
  """The arrays that differ are listed."""
  file, _ = exported("nth_farthest")
  _, metadata = training.load_weights(file)
  status, _, err = exit_of(
      train_nth_farthest,
      *metadata["flags"].splitlines(),
      "--mlp_sizes=7",
      f"--init_from={file}",
      f"--workdir={tmp_path}",
  )
  assert (status, err.count("\n")) == (2, 1)
  assert "sequence_classifier/~/mlp/~/linear_0/w is [" in err
  assert " and should be [" in err and "/logits/w is [" in err
  assert "relational_memory" not in err
  assert not (tmp_path / "checkpoints").exists() or not list(
      (tmp_path / "checkpoints").iterdir()
  )


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--workdir must name"),
        (["--workdir={}/no", "--output={}/a.safetensors"], "--workdir="),
        (["--workdir={}", "--output={}/a.npz"], "must name a .safetensors"),
        (["--workdir={}"], "--output=None must name"),
        (
            ["--workdir={}", "--output={}/no/a.safetensors"],
            "in a folder that exists",
        ),
    ],
)
def test_wrong_flags_of_export(export_weights, tmp_path, arguments, message):
  arguments = [argument.format(tmp_path) for argument in arguments]
  status, out, err = export_weights(*arguments)
  assert (status, out, err.count("\n")) == (2, "", 1)
  assert message in err
