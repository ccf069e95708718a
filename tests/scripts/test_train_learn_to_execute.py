"""The training program of Learning to Execute."""

import json
import re

from absl import flags
import jax
import numpy as np
import pytest

from rmc import training
from scripts import train_learn_to_execute
from scripts.lib import adaptive_levels, core_flags, learn_to_execute_flags
from tasks import learn_to_execute
from tasks.learn_to_execute import LearnToExecute, Level
from tests.helpers.in_process import exit_of
from tests.helpers.programs import ROOT, parsed, run

FLAGS = flags.FLAGS
TOKEN = "if|for|else|range|_null_|_eos_|."  # Of text that a network wrote.
PRESETS = ROOT / "scripts" / "presets" / "learn_to_execute"
SMOKE = f"--flagfile={PRESETS / 'smoke.flags'}"
# Far from the paper's size: 8 examples, a core of 2 slots of 4 units.
TINY = (
    SMOKE,
    "--batch_size=8",
    "--num_heads=1",
    "--head_size=4",
    "--mlp_sizes=4",
    "--hidden_size=4",
    "--dnc_controller_layers=1",
    "--test_programs=30",
)


@pytest.fixture
def train(train_here):
  """Returns a function that trains in this process, on some devices."""

  def train(workdir, *arguments, num_devices=1):
    return train_here(
        train_learn_to_execute,
        workdir,
        *TINY,
        "--log_every=1",
        "--eval_every=2",
        "--checkpoint_every=10",
        *arguments,
        num_devices=num_devices,
    )

  return train


def test_smoke(tmp_path):
  """The preset runs, leaves its files, shows answers, and is evaluated."""
  workdir = f"--workdir={tmp_path}"
  result = run(
      "scripts.train_learn_to_execute", SMOKE, workdir, "--core=dnc"
  )
  assert result.returncode == 0, result.stderr
  for name in ("flags.txt", "metrics.jsonl", "summary.json", "checkpoints"):
    assert (tmp_path / name).exists()
  assert (tmp_path / "learning_curve.png").read_bytes()[:4] == b"\x89PNG"
  summary = json.loads((tmp_path / "summary.json").read_text())
  assert summary["step"] == 20
  lines = result.stdout.splitlines()
  header = next(i for i, x in enumerate(lines) if x.startswith("program "))
  shown = [line.split() for line in lines[header + 2 :]]
  assert len(shown) == 8
  for program, answer, guess in shown:
    assert answer == str(eval(program) % 1000)  # An addition of length 2.
    assert len(re.findall(TOKEN, guess)) == len(answer)

  # With the run's own flags, except those that are given.
  status, out, err = exit_of(
      train_learn_to_execute, workdir, "--mode=eval", "--test_programs=30"
  )
  assert (status, err) == (0, "")
  first, *table = out.splitlines()
  found = json.loads(first)
  assert found["step"] == 20
  assert 0 < found["eval_character_accuracy"] < 1
  assert [line.split() for line in table[2:]] == shown


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--task=sum"], "--task=sum: value should be one of <algebra|"),
        (["--length=9"], "length must be from 1 to 8, got 9"),
        (["--task=copy"], "nesting must be 1 for task 'copy'"),
        (["--nesting=0"], "nesting must be at least 1, got 0"),
        (["--length=7", "--by_token"], "from 1 to 6 by token, got 7"),
        (
            ["--curriculum_strategy=naive", "--eval_every=0"],
            "--curriculum_strategy=naive needs --eval_every above 0",
        ),
        (["--mlp_sizes=4,x"], "--mlp_sizes=4,x must be positive integers"),
    ],
)
def test_wrong_flags(tmp_path, arguments, message):
  status, out, err = exit_of(
      train_learn_to_execute, SMOKE, f"--workdir={tmp_path}", *arguments
  )
  assert (status, out, err.count("\n")) == (2, "", 1)
  assert message in err
  assert not list(tmp_path.iterdir())


def answers_shape():
  """Returns the shape of the answers, and the steps of the task's answers."""
  task = learn_to_execute_flags.make_task()
  network = learn_to_execute_flags.make_network(task)
  batch = task.sample(0, np.arange(2))
  params = jax.eval_shape(network.init, jax.random.key(0), batch)
  answers = jax.eval_shape(network.apply.answer, params, batch)
  return answers.shape, task.num_steps_out


@pytest.mark.parametrize(
    "path", sorted(PRESETS.glob("*")), ids=lambda path: path.stem
)
def test_presets(path):
  """They parse, and their networks fit their tasks."""
  with parsed(f"--flagfile={path}"):
    shape, steps = answers_shape()
    assert shape == (steps, 2, 45)
    if path.stem in ("smoke", "demo", "addition_small"):
      return
    assert FLAGS.mem_slots * FLAGS.num_heads * FLAGS.head_size == 1024
    assert FLAGS.entnet_num_cells * FLAGS.entnet_hidden_size == 1024
    assert (FLAGS.dnc_memory_size, FLAGS.dnc_word_size) == (80, 64)
    assert (FLAGS.dnc_num_reads, FLAGS.dnc_num_writes) == (4, 1)
    assert FLAGS.dnc_controller_layers == 2
    memorized = FLAGS.task in ("copy", "reverse", "double")
    assert (FLAGS.dnc_controller == "feedforward") == memorized
    assert (FLAGS.batch_size, FLAGS.test_programs) == (128, 12_800)
    assert (FLAGS.curriculum_strategy, FLAGS.learning_rate) == ("mix", 1e-3)
    hard = path.stem == "paper_hard"
    difficulty = (6, 3) if hard else (5, 1 if memorized else 2)
    assert (FLAGS.length, FLAGS.nesting) == difficulty
    assert FLAGS.steps == (500_000 if hard else 200_000)
    assert {FLAGS.mem_slots, FLAGS.num_heads} <= {2, 4}
    assert (FLAGS.gate_style, FLAGS.num_blocks) == ("memory", 1)
    assert FLAGS.hidden_size in (1024, 2048)
    assert FLAGS.dnc_hidden_size in (128, 256, 512)
    assert FLAGS.entnet_num_cells in (2, 4, 6, 8)
    assert core_flags.mlp_sizes() == [256] * 4
    assert FLAGS.decoder == "non_autoregressive"


@pytest.mark.parametrize("core", ["lstm", "dnc", "entnet"])
@pytest.mark.parametrize("preset", ["addition", "copy"])
def test_baselines_of_presets(preset, core):
  """The DNC's controller is an LSTM in one, and feedforward in the other."""
  with parsed(f"--flagfile={PRESETS / preset}.flags", f"--core={core}"):
    shape, steps = answers_shape()
  assert shape == (steps, 2, 45)


def test_every_task_of_the_paper_has_a_preset():
  tasks = {"addition", "control", "program", "copy", "reverse", "double"}
  assert tasks < {path.stem for path in PRESETS.glob("*")}


def test_lstm_has_two_layers():
  """The second sees the input and the first; both are put out."""
  with parsed(SMOKE, "--core=lstm", "--hidden_size=3", "--mlp_sizes=5"):
    task = LearnToExecute("copy", 1)
    network = learn_to_execute_flags.make_network(task)
    batch = task.sample(0, np.arange(1))
    params = jax.eval_shape(network.init, jax.random.key(0), batch)
  shapes = sorted(
      bundle["w"].shape for name, bundle in params.items() if "lstm" in name
  )
  assert shapes == [(45 + 3, 12), (45 + 3 + 3, 12)]
  assert params["seq2seq/~/mlp/~/linear_0"]["w"].shape == (6, 5)


@pytest.mark.parametrize("decoder", ["non_autoregressive", "teacher_forcing"])
def test_answers_are_told_in_teaching_alone(decoder):
  """Then by teacher forcing only; never where answers are asked for."""
  with parsed(
      "--core=lstm", "--hidden_size=3", "--mlp_sizes=5", f"--decoder={decoder}"
  ):
    task = LearnToExecute("copy", 3)
    network = learn_to_execute_flags.make_network(task)
    batch = task.sample(0, np.arange(4))
    other = batch._replace(targets=np.roll(batch.targets, 1, axis=0))
    params = jax.jit(network.init)(jax.random.key(0), batch)

    def is_told(function):
      return np.any(function(params, batch) != function(params, other))

    assert not is_told(jax.jit(network.apply.answer))
    teacher_forcing = decoder == "teacher_forcing"
    assert is_told(jax.jit(network.apply.teach)) == teacher_forcing


def test_which_programs_are_drawn(experiment_of, monkeypatch):
  """The seed is of training alone, so that all runs have the same tests.

  Test programs are as hard as the flags say; those of training, and those of
  validation, are of the curriculum's level.
  """
  monkeypatch.setattr(adaptive_levels, "_VALID_PROGRAMS", 30)
  with experiment_of(
      train_learn_to_execute,
      *TINY,
      "--core=lstm",
      "--seed=3",
      "--curriculum_strategy=naive",
  ) as made:
    task = learn_to_execute_flags.make_task()
    indices = np.arange(8, dtype=np.int32)
    easy = Level(1, 1)
    for found, expected in zip(
        made.batches(0, indices),
        next(task.batches(3, 0, indices, 8, easy)),
        strict=True,
    ):
      np.testing.assert_array_equal(found, expected)

    state = made.init()
    found = made.evaluate(state)

    @jax.jit
    def score(batch):
      logits = made.network.apply.answer(state.params, batch)
      return learn_to_execute.score(
          logits, batch.targets.T, batch.target_lengths
      )

    tests = task.sample(0, np.arange(30), split="test")
    valid = task.sample(0, np.arange(30), easy, "valid")
    expected = learn_to_execute.evaluate(score, tests, 30)
    expected |= {
        "valid_loss": float(score(valid)[0]),
        "level_length": 1,
        "level_nesting": 1,
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
      np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)


RESUMED = {
    "entnet, mix": ["--core=entnet", "--curriculum_strategy=mix"],
    "rmc, combine": ["--curriculum_strategy=combine"],
    "lstm, naive": [
        "--core=lstm",
        "--curriculum_strategy=naive",
        "--by_token",
        "--decoder=teacher_forcing",
        "--noshare_core",
    ],
}


@pytest.mark.parametrize("arguments", RESUMED.values(), ids=RESUMED)
def test_resumed_run_is_the_same(train, tmp_path, monkeypatch, arguments):
  """The level of a curriculum, too, is what it would have been."""
  monkeypatch.setattr(adaptive_levels, "_VALID_PROGRAMS", 30)
  adapts = "--curriculum_strategy=mix" not in arguments
  # Ten evaluations of each level; the last of the first part is out of turn,
  # and its report is dropped.
  half, steps = (27, 43) if adapts else (7, 11)
  whole = train(tmp_path / "whole", f"--steps={steps}", *arguments)
  train(tmp_path / "parts", f"--steps={half}", *arguments)
  parts = train(tmp_path / "parts", f"--steps={steps}", *arguments)
  assert parts == whole
  levels = [
      (record["level_length"], record["level_nesting"])
      for record in whole
      if "level_length" in record
  ]
  change = f"--steps={steps + 1}", "--eval_every=4", *arguments
  if adapts:
    assert levels == [(1, 1)] * 10 + [(2, 1)] * 10 + [(2, 2)] * 2
    # Its last report, out of turn, is made again, on the same level.
    again = train(tmp_path / "parts", f"--steps={steps}", *arguments)
    assert again == whole
    with pytest.raises(training.CheckpointError, match="eval_every was 2 and"):
      train(tmp_path / "parts", *change)
  else:
    assert not levels
    train(tmp_path / "parts", *change)
  for x, y in zip(
      jax.tree.leaves(training.load_params(tmp_path / "whole")),
      jax.tree.leaves(training.load_params(tmp_path / "parts", steps)),
      strict=True,
  ):
    np.testing.assert_array_equal(x, y)


def test_eight_devices_equal_one(train, tmp_path):
  one = train(tmp_path / "one", "--steps=4", "--parallel=jit")
  params = training.load_params(tmp_path / "one")
  for mode in ("jit", "pmap"):
    workdir = tmp_path / mode
    eight = train(workdir, "--steps=4", f"--parallel={mode}", num_devices=8)
    assert len(one) == len(eight) == 4
    for a, b in zip(one, eight, strict=True):
      assert a.keys() == b.keys()
      for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-4, err_msg=name)
    others = training.load_params(workdir)
    assert params.keys() == others.keys()
    for module, bundle in params.items():
      for name, x in bundle.items():
        y = others[module][name]
        if (module[-10:], name) == ("qkv_norm_0", "offset"):
          # The keys' part, 4 to 8, has a gradient of 0 but for rounding, which
          # Adam divides by itself.
          x, y = np.delete(x, np.s_[4:8]), np.delete(y, np.s_[4:8])
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5, err_msg=module)
