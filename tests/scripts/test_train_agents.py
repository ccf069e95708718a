"""The programs that train, evaluate and film agents."""

import contextlib
import json

from absl import flags
import jax
import numpy as np
import optax
from PIL import Image
import pytest

from rmc import training
from scripts import (
  evaluate_agent,
  render_agent,
  train_box_world,
  train_mini_pacman,
)
from scripts.lib import (
  agent_flags,
  box_world_flags,
  mini_pacman_flags,
  run_flags,
)
from scripts.lib.agent import describe
from scripts.lib.program import UsageError
from tests.helpers.in_process import exit_of
from tests.helpers.programs import ROOT, parsed, run
from tests.helpers.tiny_training import assert_same_bits

FLAGS = flags.FLAGS
PRESETS = ROOT / "scripts" / "presets"
PROGRAMS = {"box_world": train_box_world, "mini_pacman": train_mini_pacman}


def preset(name):
  return f"--flagfile={PRESETS / name}.flags"


ENVIRONMENTS = {
    "box_world": box_world_flags.make_environment,
    "mini_pacman": mini_pacman_flags.make_environment,
}


@pytest.fixture
def train(train_here):
  """Returns a function that trains in this process, on some devices."""

  def train(env, workdir, *arguments, num_devices=1):
    return train_here(
        PROGRAMS[env],
        workdir,
        preset(f"{env}/smoke"),
        *arguments,
        num_devices=num_devices,
    )

  return train


def test_resumed_run_is_the_same(train, tmp_path):
  """Environments, memories and what is still to be learnt from go on."""
  whole = train("box_world", tmp_path / "whole", "--core=lstm")
  train("box_world", tmp_path / "halves", "--core=lstm", "--steps=3")
  halves = train("box_world", tmp_path / "halves", "--core=lstm")
  assert [record["step"] for record in whole] == [2, 4, 6, 6]
  assert halves == whole
  assert_same_bits(
      training.load_params(tmp_path / "halves"),
      training.load_params(tmp_path / "whole"),
  )
  figures = whole[1]
  assert figures["environment_steps"] == 4 * 8 * 5
  assert figures["episodes"] > 0 and figures["length"] <= 11
  names = {"policy_loss", "value_loss", "entropy", "explained_variance"}
  names |= {"importance_ratio", "clipped_ratios", "grad_norm"}
  names |= {"return", "return_standard_error", "solved", "timeout_1"}
  names |= {"eval_return", "eval_return_standard_error", "eval_distractor"}
  assert names <= figures.keys()
  path = tmp_path / "whole" / "summary.json"
  with parsed(f"--workdir={tmp_path / 'whole'}", preset("box_world/smoke")):
    agent_flags.report(json.loads(path.read_text()))
  assert (tmp_path / "whole" / "learning_curve.png").exists()
  summary = json.loads(path.read_text())
  # Both are rounded.
  assert summary["environment_steps_per_second"] == pytest.approx(
      8 * 5 * summary["steps_per_second"], abs=0.1
  )


def test_what_was_trained_is_evaluated_and_filmed(train, tmp_path):
  records = train("mini_pacman", tmp_path)
  assert {"level", "food", "pills", "ghosts"} <= records[-2].keys()
  result = run("scripts.evaluate_agent", f"--workdir={tmp_path}")
  assert result.returncode == 0, result.stderr
  (evaluation,) = evaluations_of(tmp_path)
  assert (evaluation["step"], evaluation["overruled"]) == (6, {})
  for policy in ("sampled", "greedy"):
    figures = evaluation[policy]
    assert figures["length"]["episodes"] == 16
    assert 1 <= figures["length"]["mean"] <= 10
    assert figures["return"]["standard error"] >= 0
  # The same levels as in training's own evaluation.
  found = evaluation["sampled"]["return"]
  assert found["mean"] == pytest.approx(records[-1]["eval_return"])
  assert found["standard error"] == pytest.approx(
      records[-1]["eval_return_standard_error"]
  )
  assert len(result.stdout.splitlines()) == 2 + sum(
      len(evaluation[policy]) for policy in ("sampled", "greedy")
  )
  film = tmp_path / "episode.gif"
  result = run("scripts.render_agent", f"--workdir={tmp_path}", f"--gif={film}")
  assert result.returncode == 0, result.stderr
  assert result.stdout.startswith("Saved ")
  with Image.open(film) as image:
    # The board, and beside it what the slots attend to.
    assert image.width > 19 * 16 + 8 and image.height > 15 * 16
    assert image.n_frames > 1


def leave_untrained(env, workdir, *arguments):
  """Leaves what 3 updates of a run would, with parameters of no use."""
  program = PROGRAMS[env]
  with parsed(preset(f"{env}/smoke"), *arguments):
    lines = [
        flag.serialize()
        for flag in FLAGS.get_key_flags_for_module(program.__name__)
        if flag.name not in run_flags.CHANGEABLE_ON_RESUME
    ]
    agent = agent_flags.make_agent(ENVIRONMENTS[env]())
    shapes = jax.eval_shape(agent.init, jax.random.key(0))
  (workdir / "flags.txt").write_text("\n".join(lines) + "\n")
  rng = np.random.default_rng(0)
  params = jax.tree.map(
      lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes
  )
  state = training.init_state(params, optax.sgd(1.0), jax.random.key(0), None)
  with contextlib.closing(training.Checkpointer(workdir)) as checkpointer:
    checkpointer.save(training.to_numpy(state._replace(step=np.int32(3))), {})


def evaluate(workdir, *arguments):
  """Evaluates in this process; returns all evaluations so far."""
  with parsed(
      f"--flagfile={workdir}/flags.txt", f"--workdir={workdir}", *arguments
  ):
    evaluate_agent.main()
  return evaluations_of(workdir)


def evaluations_of(workdir):
  text = (workdir / "evaluations.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_evaluations_say_what_they_are_of(tmp_path):
  """Those with other flags stand beside those with the run's own."""
  leave_untrained("box_world", tmp_path, "--core=lstm", "--eval_episodes=2")
  # What is given as it was is not overruled.
  (first,) = evaluate(tmp_path, "--num_forward=0,1")
  again, second = evaluate(
      tmp_path,
      "--solution_length=2",
      "--max_steps=1",
      "--eval_episodes=3",
      "--eval_seed=1",
  )
  assert again == first
  assert (first["step"], first["eval_seed"]) == (3, 0)
  assert (second["step"], second["eval_seed"]) == (3, 1)
  assert first["overruled"] == {}
  assert second["overruled"] == {
      "solution_length": ["2"],
      "max_steps": 1,
      "eval_episodes": 3,
  }
  assert first["sampled"]["length"]["episodes"] == 2
  assert second["sampled"]["length"]["episodes"] == 3
  assert second["sampled"]["length"]["mean"] == 2


def test_what_is_played(tmp_path):
  """Drawn and likeliest actions, on the levels of the evaluation's own seed."""
  leave_untrained("mini_pacman", tmp_path, "--core=lstm")
  (found,) = evaluate(tmp_path, "--eval_seed=5", "--eval_episodes=4")
  with parsed(f"--flagfile={tmp_path}/flags.txt"):
    agent = agent_flags.make_agent(mini_pacman_flags.make_environment())
    params = training.load_params(tmp_path)
    for policy in ("sampled", "greedy"):
      played = agent.play(
          params, agent_flags.held_out_key(5), 4, greedy=policy == "greedy"
      )
      for name, (mean, error, episodes) in describe(played).items():
        assert found[policy][name] == {
            "mean": mean,
            "standard error": error,
            "episodes": episodes,
        }
  assert found["sampled"] != found["greedy"]


def test_flags_of_another_environment(tmp_path):
  leave_untrained("box_world", tmp_path, "--core=lstm")
  with pytest.raises(
      UsageError, match="--frame_cap=10 is no flag of a run like"
  ):
    evaluate(tmp_path, "--frame_cap=10")


@pytest.mark.parametrize(
    "options",
    ["--core=rmc", "--core=rmc --mem_slots=17", "--core=conv_lstm"],
)
def test_box_world_is_filmed(tmp_path, options):
  """Of 10 x 10 cells; what is attended to is there for the RMC alone."""
  leave_untrained("box_world", tmp_path, *options.split())
  film = tmp_path / "episode.gif"
  status, out, err = exit_of(
      render_agent, f"--workdir={tmp_path}", f"--gif={film}"
  )
  assert (status, err) == (0, "") and out.startswith("Saved ")
  with Image.open(film) as image:
    assert (image.width > 10 * 16 + 8) == ("rmc" in options)
    assert (image.height >= 17 * (17 + 4)) == ("17" in options)
    assert 1 < image.n_frames <= 12
    frame = np.asarray(image.convert("RGB"))
  board = frame[: 10 * 16, : 10 * 16].reshape(-1, 3)
  assert len(np.unique(board, axis=0)) > 3


@pytest.mark.parametrize("program", ["evaluate_agent", "render_agent"])
def test_workdir_of_another_program(tmp_path, program):
  (tmp_path / "flags.txt").write_text("--seed=0\n--num_objects=4\n")
  result = run(f"scripts.{program}", f"--workdir={tmp_path}")
  assert result.returncode == 2
  assert result.stderr.count("\n") == 1
  assert f"--workdir={tmp_path} must be of a run of this" in result.stderr
  assert "no --num_objects" in result.stderr


@pytest.mark.parametrize(
    "program, arguments, message",
    [
        (evaluate_agent, [], "--workdir must name"),
        (evaluate_agent, ["--workdir=/nowhere"], "must be of a run of"),
        (render_agent, ["--workdir=/nowhere"], "--gif must name"),
        (train_box_world, ["--workdir={}", "--grid_size=3"], "too small"),
        (
            train_box_world,
            ["--workdir={}", "--num_forward=0,x"],
            "--num_forward=0,x must be positive integers or 0",
        ),
        (
            train_mini_pacman,
            ["--workdir={}", "--conv_strides=1"],
            "equally many",
        ),
        (train_mini_pacman, ["--workdir={}", "--rules=run"], "--rules=run"),
        (train_box_world, ["--workdir={}", "--discount=nan"], "=nan"),
        (train_box_world, ["--workdir={}", "--rmsprop_decay=nan"], "=nan"),
        (evaluate_agent, ["--eval_seed=4294967296"], "--eval_seed=429496729"),
    ],
)
def test_wrong_flags_are_one_line(tmp_path, program, arguments, message):
  arguments = [argument.format(tmp_path) for argument in arguments]
  status, out, err = exit_of(program, *arguments)
  assert (status, out, err.count("\n")) == (2, "", 1)
  assert message in err
  assert not list(tmp_path.iterdir())


AGENTS = sorted(
    f"{env}/{path.stem}"
    for env in PROGRAMS
    for path in (PRESETS / env).iterdir()
)


@pytest.mark.parametrize("core", ["rmc", "lstm", "conv_lstm"])
@pytest.mark.parametrize("name", AGENTS)
def test_presets(name, core):
  """They parse, their networks fit, and the paper's are of its size."""
  env = name.partition("/")[0]
  with parsed(preset(name), f"--core={core}"):
    agent = agent_flags.make_agent(ENVIRONMENTS[env]())
    params = jax.eval_shape(agent.init, jax.random.key(0))
    if not name.endswith("paper"):
      return
    assert (FLAGS.unroll_length, FLAGS.batch_size) == (40, 32)
    assert (FLAGS.entropy_cost, FLAGS.discount) == (0.005, 0.99)
    assert 1e-5 <= FLAGS.learning_rate <= 2e-4
    steps = FLAGS.steps * FLAGS.unroll_length * FLAGS.batch_size
    total = 1e9 if env == "box_world" else 2e9
    assert steps == pytest.approx(total, rel=0.01)
    if env == "box_world":
      assert (FLAGS.grid_size, FLAGS.max_steps) == (12, 120)
      assert (FLAGS.branch_length, FLAGS.view) == (1, "viewport")
      assert FLAGS.solution_length == ["1", "2", "3", "4", "5"]
      assert FLAGS.num_forward == ["0", "1", "2", "3", "4", "5"]
    else:
      assert (FLAGS.rules, FLAGS.frame_cap) == ("regular", 3000)
      assert FLAGS.view == ("viewport" if "viewport" in name else "full")
    heads = params["actor_critic/~/policy"]["w"].shape[0]
    if core == "rmc":
      assert (FLAGS.mem_slots, FLAGS.num_heads) == (4, 4)
      assert (FLAGS.gate_style, FLAGS.num_blocks) == ("memory", 1)
      assert heads == 1024
    if core == "conv_lstm" and FLAGS.view == "viewport":
      assert heads == 5 * 5 * 64


def test_presets_are_there():
  names = {"box_world/paper", "mini_pacman/viewport_paper"}
  names |= {"mini_pacman/full_paper", "box_world/demo", "mini_pacman/demo"}
  names |= {"box_world/base", "mini_pacman/base"}
  assert {*AGENTS} == names | {"box_world/smoke", "mini_pacman/smoke"}


def test_flags_reach_the_agent():
  """Each has a value of its own, so that none can be taken for another."""
  expected = {
      "unroll_length": 3,
      "discount": 0.75,
      "entropy_cost": 0.125,
      "value_cost": 0.375,
      "actor_lag": 2,
  }
  with parsed(
      preset("box_world/smoke"),
      *(f"--{name}={value}" for name, value in expected.items()),
  ):
    agent = agent_flags.make_agent(box_world_flags.make_environment())
  for name, value in expected.items():
    assert getattr(agent, f"_{name}") == value


def test_flags_reach_the_environments():
  with parsed(
      "--grid_size=9",
      "--solution_length=2",
      "--num_forward=0,1",
      "--branch_length=3",
      "--max_steps=7",
      "--view=full",
  ):
    env = box_world_flags.make_environment()
  assert (env.solution_length, env.num_forward) == ((2,), (0, 1))
  assert (env.grid_size, env.branch_length, env.max_steps) == (9, 3, 7)
  assert env.view == "full"
  with parsed(
      "--rules=hunt", "--encoding=planes", "--frame_cap=7", "--view=full"
  ):
    env = mini_pacman_flags.make_environment()
  assert (env.rules.cleared_by, env.rules.ghost_reward) == ("ghosts", 10)
  assert (env.rules.pill_reward, env.rules.frame_cap) == (1, 7)
  assert (env.view, env.encoding) == ("full", "planes")


def test_seed(experiment_of):
  """Of parameters, of actions and of levels."""
  found = []
  for seed in (0, 3):
    smoke = preset("mini_pacman/smoke")
    with experiment_of(
        train_mini_pacman, smoke, "--core=lstm", f"--seed={seed}"
    ) as run:
      state = training.to_numpy(run.init())
    weights = state.params["actor_critic/~/policy"]["w"]
    found.append((weights, state.key, state.carry.env_state.board.pacman))
  for x, y in zip(*found, strict=True):
    assert np.any(x != y)


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_update_in_double_precision(name, experiment_of):
  smoke = preset(f"{name}/smoke")
  with (
      jax.enable_x64(True),
      experiment_of(PROGRAMS[name], smoke) as run,
  ):
    state = jax.eval_shape(run.init)
    indices = np.arange(FLAGS.batch_size, dtype=np.int32)
    loss, (_, carry) = jax.eval_shape(
        run.loss_fn, state.params, indices, state.carry, state.key
    )
  assert loss.shape == ()
  assert carry == state.carry
  assert carry.timestep.observation.dtype == np.float32


def test_flattened_input():
  """One row of all cells, rather than a row each."""
  sizes = []
  for option in ("--flatten", "--noflatten"):
    with parsed(preset("box_world/smoke"), option):
      agent = agent_flags.make_agent(box_world_flags.make_environment())
      params = jax.eval_shape(agent.init, jax.random.key(0))
      core = "actor_critic/~/relational_memory/~/input_projection"
      sizes.append(params[core]["w"].shape[0])
  assert sizes == [25 * 5, 5]
