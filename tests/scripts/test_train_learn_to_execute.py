"""The training program of Learning to Execute."""

import functools
import json

from absl import flags
import jax
import numpy as np
import pytest

from rmc import training
from scripts import train_learn_to_execute
from scripts.lib import core_flags, plots, run_flags
from tasks.learn_to_execute import Batch, LearnToExecute, Level, LevelCurriculum
from tests.helpers.programs import ROOT, parsed, run

FLAGS = flags.FLAGS
PRESETS = sorted((ROOT / "scripts" / "presets").glob("lte_*.flags"))
SMOKE = f"--flagfile={ROOT / 'scripts/presets/lte_smoke.flags'}"
PROGRAM = ("scripts.train_learn_to_execute", SMOKE)


@pytest.fixture
def train(train_here):
  """Returns a function that trains in this process, on some devices.

  What is compiled is far from the paper's size: 8 examples, a core of 2 slots
  of 4 units.
  """

  def train(workdir, *arguments, num_devices=1):
    return train_here(
        train_learn_to_execute,
        workdir,
        SMOKE,
        "--batch_size=8",
        "--num_heads=1",
        "--head_size=4",
        "--mlp_sizes=4",
        "--hidden_size=4",
        "--dnc_controller_layers=1",
        "--log_every=1",
        "--eval_every=2",
        "--checkpoint_every=3",
        "--test_programs=20",
        *arguments,
        num_devices=num_devices,
    )

  return train


def test_smoke(tmp_path):
  """The preset runs, leaves its files, shows answers, and is evaluated."""
  result = run(*PROGRAM, f"--workdir={tmp_path}")
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
    assert len(guess) == len(answer)

  result = run(
      *PROGRAM, f"--workdir={tmp_path}", "--mode=eval", "--test_programs=30"
  )
  assert result.returncode == 0, result.stderr
  found = json.loads(result.stdout.splitlines()[0])
  assert found["step"] == 20
  assert 0 < found["eval_character_accuracy"] < 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--task=sum"], "--task=sum: value should be one of <algebra|"),
        (["--length=9"], "length must be from 1 to 8, got 9"),
        (["--task=copy"], "nesting must be 1 for task 'copy'.* got 2"),
    ],
)
def test_wrong_flags_are_one_line(tmp_path, arguments, message):
  result = run(*PROGRAM, f"--workdir={tmp_path}", *arguments)
  assert result.returncode == 2
  assert result.stderr.count("\n") == 1
  assert message.partition(".*")[0] in result.stderr
  assert not result.stdout
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--nesting=0"], "nesting must be at least 1, got 0"),
        (["--length=7", "--by_token"], "from 1 to 6 by token, got 7"),
        (
            ["--curriculum_strategy=naive", "--eval_every=0"],
            "--curriculum_strategy=naive needs --eval_every above 0",
        ),
        (["--mlp_sizes=4,x"], "--mlp_sizes=4,x must be positive integers"),
    ],
)
def test_wrong_flags(train, tmp_path, arguments, message):
  with pytest.raises(run_flags.UsageError, match=message):
    train(tmp_path, *arguments)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
@pytest.mark.parametrize("core", ["rmc", "lstm", "dnc", "entnet"])
def test_presets(path, core):
  """They parse and their networks fit their tasks."""
  with parsed(f"--flagfile={path}", f"--core={core}"):
    task = LearnToExecute(FLAGS.task, FLAGS.length, FLAGS.nesting)
    batch = task.sample(0, np.arange(2))
    network = train_learn_to_execute._make_network(task)
    params = jax.eval_shape(network.init, jax.random.key(0), batch)
    logits = jax.eval_shape(network.apply.answer, params, batch)
    assert logits.shape == (task.num_steps_out, 2, 45)
    if path.stem not in ("lte_smoke", "lte_demo", "lte_addition_small"):
      assert FLAGS.mem_slots * FLAGS.num_heads * FLAGS.head_size == 1024
      assert FLAGS.entnet_num_cells * FLAGS.entnet_hidden_size == 1024
      assert (FLAGS.dnc_memory_size, FLAGS.dnc_word_size) == (80, 64)
      assert (FLAGS.dnc_num_reads, FLAGS.dnc_num_writes) == (4, 1)
      assert FLAGS.dnc_controller_layers == 2
      memorized = FLAGS.task in ("copy", "reverse", "double")
      assert (FLAGS.dnc_controller == "feedforward") == memorized
      assert (FLAGS.batch_size, FLAGS.test_programs) == (128, 12_800)
      assert (FLAGS.curriculum_strategy, FLAGS.learning_rate) == ("mix", 1e-3)
      hard = path.stem == "lte_paper_hard"
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


def test_every_task_of_the_paper_has_a_preset():
  tasks = {"addition", "control", "program", "copy", "reverse", "double"}
  assert {f"lte_{task}" for task in tasks} < {path.stem for path in PRESETS}


def test_lstm_has_two_layers():
  """The second sees the input and the first; both are put out."""
  with parsed(SMOKE, "--core=lstm", "--hidden_size=3", "--mlp_sizes=5"):
    task = LearnToExecute("copy", 1)
    network = train_learn_to_execute._make_network(task)
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
    network = train_learn_to_execute._make_network(task)
    batch = task.sample(0, np.arange(4))
    other = batch._replace(targets=np.roll(batch.targets, 1, axis=0))
    params = jax.jit(network.init)(jax.random.key(0), batch)

    def is_told(function):
      return np.any(function(params, batch) != function(params, other))

    assert not is_told(jax.jit(network.apply.answer))
    teacher_forcing = decoder == "teacher_forcing"
    assert is_told(jax.jit(network.apply.teach)) == teacher_forcing


def test_which_programs_are_drawn(monkeypatch):
  """The seed is of training alone, so that all runs have the same tests."""
  drawn, sample = set(), LearnToExecute.sample

  def watched(self, seed, examples, level=None, split="train"):
    drawn.add((seed, split, level))
    return sample(self, seed, examples, level, split)

  def train(parallel, init, loss_fn, optimizer, evaluate, batches, **options):
    del parallel, loss_fn, optimizer, options
    batches(0, np.arange(8))
    evaluate(init())

  monkeypatch.setattr(LearnToExecute, "sample", watched)
  monkeypatch.setattr(run_flags, "train_or_evaluate", train)
  monkeypatch.setattr(train_learn_to_execute, "_VALID_PROGRAMS", 200)
  monkeypatch.setattr(train_learn_to_execute, "_show", lambda *_: None)
  monkeypatch.setattr(plots, "learning_curve", lambda *_: None)
  with parsed(
      SMOKE,
      "--workdir=nowhere",
      "--core=lstm",
      "--seed=3",
      "--curriculum_strategy=naive",
  ):
    train_learn_to_execute.main()
  assert drawn == {
      (0, "test", None),
      (3, "train", Level(1, 1)),
      (0, "valid", Level(1, 1)),
  }


RESUMED = {
    "lstm, mix": ["--core=lstm", "--curriculum_strategy=mix"],
    "dnc, mix": ["--core=dnc", "--curriculum_strategy=mix"],
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
  monkeypatch.setattr(
      train_learn_to_execute,
      "LevelCurriculum",
      functools.partial(LevelCurriculum, window=2, threshold=10.0),
  )
  whole = train(tmp_path / "whole", "--steps=11", *arguments)
  # The last report of the first part is out of turn, and is dropped.
  train(tmp_path / "parts", "--steps=7", *arguments)
  parts = train(tmp_path / "parts", "--steps=11", *arguments)
  assert parts == whole
  # Its last report, out of turn, is made again, on the same level.
  assert train(tmp_path / "parts", "--steps=11", *arguments) == whole
  change = "--steps=12", "--eval_every=4", *arguments
  if whole[-1].keys() & {"level_length"}:
    with pytest.raises(training.CheckpointError, match="eval_every was 2 and"):
      train(tmp_path / "parts", *change)
  else:
    train(tmp_path / "parts", *change)
  levels = [
      (record["level_length"], record["level_nesting"])
      for record in whole
      if "level_length" in record
  ]
  if "--curriculum_strategy=mix" in arguments:
    assert not levels
  else:
    assert levels[:5] == [(1, 1), (1, 1), (2, 1), (2, 1), (2, 2)]
  for x, y in zip(
      jax.tree.leaves(training.load_params(tmp_path / "whole")),
      jax.tree.leaves(training.load_params(tmp_path / "parts", 11)),
      strict=True,
  ):
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("core", ["rmc", "dnc", "entnet"])
def test_eight_devices_equal_one(train, tmp_path, core):
  flags_of_all = ("--steps=4", f"--core={core}")
  one = train(tmp_path / "one", *flags_of_all, "--parallel=jit")
  params = training.load_params(tmp_path / "one")
  for mode in ("jit", "pmap") if core == "rmc" else ("pmap",):
    workdir = tmp_path / mode
    eight = train(
        workdir, *flags_of_all, f"--parallel={mode}", num_devices=8
    )
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


def test_evaluation_figures():
  """Accuracies and standard errors of parts that do not divide evenly."""
  random = np.random.default_rng(0)
  count = 2 * train_learn_to_execute._EVAL_BATCH + 100
  lengths = random.integers(1, 5, size=count).astype(np.int32)
  correct = random.binomial(lengths, 0.8).astype(np.float32)
  places = np.arange(count)
  test = Batch(places, lengths, places, lengths)

  def score_batch(part):
    found = correct[part.inputs]
    solved = (found == part.target_lengths).astype(np.float32)
    return np.mean(found), found, solved

  found = train_learn_to_execute._evaluate(score_batch, test)
  np.testing.assert_allclose(found["eval_loss"], correct.mean(), rtol=1e-6)
  accuracy = correct.sum() / lengths.sum()
  np.testing.assert_allclose(found["eval_character_accuracy"], accuracy)
  solved = correct == lengths
  np.testing.assert_allclose(found["eval_answer_accuracy"], solved.mean())
  # The spread over samples of programs drawn with replacement.
  draws = random.integers(count, size=(2000, count))
  ratios = correct[draws].sum(axis=1) / lengths[draws].sum(axis=1)
  np.testing.assert_allclose(
      found["eval_character_accuracy_standard_error"], ratios.std(), rtol=0.1
  )
  np.testing.assert_allclose(
      found["eval_answer_accuracy_standard_error"],
      solved[draws].mean(axis=1).std(),
      rtol=0.1,
  )
