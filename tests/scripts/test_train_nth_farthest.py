"""The training program: flags, files, faults."""

import fcntl
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

from absl import flags
from absl.testing import flagsaver
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rmc
from rmc import training
from scripts import train_nth_farthest
from scripts.lib import core_flags, cores, experiment
from scripts.lib.program import Failure
from tasks.nth_farthest import NthFarthest, StageCurriculum, parse_stages
from tests.helpers.programs import parsed
from tests.helpers.tiny_training import (
  assert_same_bits,
  events_of,
  records_of,
  steps_of,
  summary_of,
)

FLAGS = flags.FLAGS
ROOT = pathlib.Path(__file__).parents[2]
PRESETS = sorted((ROOT / "scripts" / "presets").glob("nth_farthest/*.flags"))
TINY = (
    "--num_objects=3",
    "--num_features=2",
    "--mem_slots=2",
    "--num_heads=2",
    "--head_size=4",
    "--mlp_sizes=8",
    "--batch_size=16",
    "--learning_rate=1e-2",
    "--log_every=10",
    "--eval_every=20",
    "--checkpoint_every=10",
    "--eval_examples=100",
    "--steps=45",
)


def start(*arguments, num_devices=1, before=""):
  """Starts the program, after some Python code."""
  module = "scripts.train_nth_farthest"
  code = (
      f"import runpy\n{before}\n"
      f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
  )
  how = ["-c", code] if before else ["-m", module]
  return subprocess.Popen(
      [sys.executable, *how, *arguments],
      cwd=ROOT,
      env=os.environ
      | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(num_devices)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
  )


def finish(process, status=0, timeout=180):
  """Waits for the program; returns what it printed on stdout and stderr."""
  try:
    out, err = process.communicate(timeout=timeout)
  finally:
    process.kill()
  assert process.returncode == status, err
  return out, err


def wait_until(process, condition, timeout=120):
  """Waits until something is so, while the program runs."""
  end = time.monotonic() + timeout
  while not condition():
    assert process.poll() is None, process.communicate()
    assert time.monotonic() < end
    time.sleep(0.005)


def assert_same_run(actual, expected):
  """Asserts that two runs left the same files, but for times."""
  assert records_of(actual) == records_of(expected)
  assert summary_of(actual) == summary_of(expected)
  assert events_of(actual) == events_of(expected)
  assert steps_of(actual) == steps_of(expected)
  assert_same_bits(
      training.load_params(actual), training.load_params(expected)
  )
  names = [
      sorted(
          re.sub(r"^events\..*", "events", path.name)
          for path in pathlib.Path(workdir).iterdir()
      )
      for workdir in (actual, expected)
  ]
  assert names[0] == names[1]


def contents(directory):
  """Returns all files under a directory, but for the lock."""
  return {
      path: path.read_bytes()
      for path in directory.rglob("*")
      if path.is_file() and path.name != ".lock"
  }


def made_once(tmp_path_factory, worker_id, name, make):
  """Returns a directory that one of the test processes fills for all."""
  shared = tmp_path_factory.getbasetemp()
  if worker_id != "master":
    shared = shared.parent
  directory = shared / name
  with (shared / f"{name}.lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not (shared / f"{name}.made").exists():
      make(directory)
      (shared / f"{name}.made").touch()
  return directory


SMALL_LSTM = ("--core=lstm", "--hidden_size=4")


@pytest.fixture(scope="session")
def finished(tmp_path_factory, worker_id):
  """The directory of a tiny run."""

  def make(directory):
    out, err = finish(start(*TINY, f"--workdir={directory / 'by' / 'itself'}"))
    (directory / "out").write_text(out)
    (directory / "err").write_text(err)

  directory = made_once(tmp_path_factory, worker_id, "tiny", make)
  return directory / "by" / "itself"


# Flags.


@pytest.fixture
def program(monkeypatch, capfd):
  """Returns a function that runs the program in this process.

  It returns the exit status, both outputs, and what was compiled. What the
  program does after its flags are checked may be given.
  """
  compiled = []

  def listen(event, duration, **kwargs):
    del duration
    if event == "/jax/core/compile/backend_compile_duration":
      compiled.append(kwargs["fun_name"])

  jax.monitoring.register_event_duration_secs_listener(listen)

  def run(*arguments, main=train_nth_farthest.main):
    compiled.clear()
    capfd.readouterr()
    monkeypatch.setattr(sys, "argv", ["train_nth_farthest.py", *arguments])
    precision = jax.config.jax_default_matmul_precision
    try:
      with (
          flagsaver.flagsaver(),
          jax.numpy_dtype_promotion("standard"),  # optax asks for it.
          pytest.raises(SystemExit) as caught,
      ):
        experiment.run_program(main)
    finally:
      jax.config.update("jax_default_matmul_precision", precision)
    out, err = capfd.readouterr()
    return caught.value.code or 0, out, err, list(compiled)

  yield run
  jax.monitoring.unregister_event_duration_listener(listen)


WRONG = {
    "--core=foo": "core",
    "--num_heads=0": "num_heads",
    "--batch_size=0": "batch_size",
    "--batch_size=many": "batch_size",
    "--batch_size=12": "multiple of the 8 devices, got 12",
    "--learning_rate=-1": "learning_rate",
    "--learning_rate=nan": "learning_rate",
    "--learning_rate=inf": "learning_rate",
    "--checkpoint_minutes=-1": "checkpoint_minutes",
    "--checkpoint_minutes=nan": "checkpoint_minutes=nan: must be a finite",
    "--seed=4294967296": "not an integer in the range [0, 4294967295]",
    "--min_learning_rate=1": "--min_learning_rate must be at most",
    "--max_grad_norm=nan": "max_grad_norm",
    "--lr_decay_rate=2": "lr_decay_rate",
    "--steps=0": "steps",
    "--scan_unroll=0": "scan_unroll",
    "--no_such_flag=1": "no_such_flag",
    "stray": "'stray' is not a flag",
    "--workdir=/dev/null/run": "--workdir=/dev/null/run must be a directory",
    "--workdir=gs://bucket/run": "mounted file system",
    "--flagfile=/nowhere.flags": "/nowhere.flags",
    "--flagfile=/proc/self/exe": "codec can't decode",
    "--warmup_steps=3000000000": "warmup_steps",
    "--lr_decay_steps=3000000000": "lr_decay_steps",
    "--parallel=foo": "parallel",
    "--matmul_precision=foo": "matmul_precision",
    "--num_objects=1": "num_objects must be at least 2, got 1",
    "--num_features=0": "num_features",
    "--order=foo": "order",
    "--attention=a.png": "--attention=a.png goes with --mode=eval",
    "--mode=eval --attention=nowhere/a.png": "in a folder that exists",
    "--mode=eval --attention=a.xyz": "a.xyz must end like one of [",
    "--curriculum=3": "as in 3x2 or 3x2x8@0.8, got '3'",
    "--curriculum=3x4": "a stage must have 2 objects or more",
    "--curriculum=2x1 --curriculum_threshold=0": "threshold must be above 0",
    "--curriculum=2x1 --curriculum_review=1": "review must be from 0",
    "--mlp_sizes=8,x": "--mlp_sizes=8,x must be positive integers",
    "--mlp_sizes=0": "--mlp_sizes",
    "--eval_examples=1": "eval_examples",
    "--process_id=0": "must be given together",
    "--num_processes=2": "must be given together",
    "--process_id=-1": "process_id",
    "--coordinator_address=127.0.0.1:1 --num_processes=2": "together",
    "--coordinator_address=127.0.0.1:1 --num_processes=2 --process_id=2": (
        "process_id must be from 0 to 1"
    ),
    "--coordinator_address=foo --num_processes=2 --process_id=1": (
        "coordinator_address must be host:port, got 'foo'"
    ),
    "--core=dnc --dnc_num_reads=0": "dnc_num_reads",
    "--core=dnc --dnc_num_writes=0": "dnc_num_writes",
    "--core=dnc --dnc_clip_value=-1": "dnc_clip_value",
    "--core=dnc --dnc_clip_value=nan": "dnc_clip_value",
    "--core=dnc --dnc_controller=gru": "dnc_controller",
    "--core=entnet --entnet_num_cells=0": "entnet_num_cells",
    "--coordinator_timeout=0": "coordinator_timeout",
    "--mode=foo": "mode",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_flag_is_one_line_and_status_2(program, tmp_path, wrong):
  workdir = tmp_path / "run"
  status, out, err, compiled = program(
      *TINY, f"--workdir={workdir}", *wrong.split()
  )
  assert status == 2
  assert err.startswith("train_nth_farthest: ") and err.count("\n") == 1, err
  assert WRONG[wrong] in err
  assert "Traceback" not in err and out == ""
  assert compiled == []
  assert not (workdir / "checkpoints").exists()


def test_no_workdir(program):
  status, _, err, compiled = program(*TINY)
  assert (status, compiled, err.count("\n")) == (2, [], 1)
  assert "--workdir" in err


def test_evaluation_needs_a_checkpoint(program, tmp_path):
  workdir = tmp_path / "nowhere"
  status, out, err, _ = program(*TINY, f"--workdir={workdir}", "--mode=eval")
  assert (status, out, err.count("\n")) == (2, "", 1)
  assert f"needs a checkpoint, and --workdir={workdir} has none" in err
  assert not workdir.exists()


def test_too_little_memory(program, tmp_path):
  """What JAX raises then is one line; whatever else it raises is not."""
  status, _, err, _ = program(
      *TINY,
      f"--workdir={tmp_path}",
      main=lambda: jax.block_until_ready(jnp.zeros([2**50], jnp.uint8)),
  )
  assert (status, err.count("\n")) == (1, 1)
  assert "Out of memory" in err and "A smaller --batch_size needs less" in err

  with (
      pytest.raises(Failure, match="allocate .*; smaller sizes"),
      experiment.memory_errors(),
  ):
    np.empty([2**60], np.uint8)

  with (
      pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"),
      experiment.memory_errors(),
  ):
    raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_flags_that_differ_are_listed(program, finished):
  files = contents(finished)
  status, _, err, compiled = program(
      *TINY,
      f"--workdir={finished}",
      "--num_heads=4",
      "--learning_rate=0.5",
      "--steps=90",
      "--log_every=7",
  )
  assert (status, err.count("\n")) == (2, 1)
  # Keys are split, but no network is initialised.
  assert not any("init" in name or "update" in name for name in compiled)
  assert "num_heads was 2 and is 4" in err
  assert "learning_rate was 0.01 and is 0.5" in err
  assert "steps" not in err and "log_every" not in err
  assert contents(finished) == files


# What a run leaves.


def test_files(finished):
  names = {path.name for path in finished.iterdir()}
  events = {name for name in names if name.startswith("events.")}
  assert len(events) == 1
  assert names - events == {
      ".lock",
      "attention.png",
      "checkpoints",
      "flags.txt",
      "learning_curve.png",
      "metrics.jsonl",
      "summary.json",
  }
  for name in ("attention.png", "learning_curve.png"):
    assert (finished / name).read_bytes().startswith(b"\x89PNG")
  records = records_of(finished)
  assert [r["step"] for r in records] == [10, 20, 30, 40, 45]
  assert ["eval_accuracy" in r for r in records] == [False, True] * 2 + [True]
  assert steps_of(finished) == [30, 40, 45]
  summary = json.loads((finished / "summary.json").read_text())
  params = training.load_params(finished)
  assert summary["parameters"] == sum(x.size for x in jax.tree.leaves(params))
  assert summary["device"] and summary["devices"] == 1
  assert summary["matmul_precision"] == "default"
  assert summary["steps_per_second"] > 0
  assert summary["plateau"] == pytest.approx(2 / 3)


def test_output_without_a_terminal(finished):
  out = (finished.parents[1] / "out").read_text()
  err = (finished.parents[1] / "err").read_text()
  assert err == ""
  assert "sequence_classifier/~/logits" in out and "\nall " in out
  lines = re.findall(r"^step (\d+)/45 .*loss=.* s left\]$", out, re.MULTILINE)
  assert lines == ["10", "20", "30", "40", "45"]


def test_its_flagfile_repeats_the_run(finished, tmp_path):
  workdir = tmp_path / "again"
  finish(
      start(f"--flagfile={finished / 'flags.txt'}", f"--workdir={workdir}")
  )
  assert_same_run(workdir, finished)
  assert (workdir / "flags.txt").read_text() == (
      finished / "flags.txt"
  ).read_text()


def test_evaluation_prints_figures(program, finished, tmp_path):
  files = contents(finished)
  status, out, err, _ = program(f"--workdir={finished}", "--mode=eval")
  assert (status, err) == (0, "")
  figures = json.loads(out)
  last = records_of(finished)[-1]
  assert figures == pytest.approx({name: last[name] for name in figures})
  assert set(figures) >= {"step", "eval_loss", "eval_accuracy", "plateau"}
  again = tmp_path / "again.png"
  status, again_out, err, _ = program(
      f"--workdir={finished}", "--mode=eval", f"--attention={again}"
  )
  assert (status, again_out, err) == (0, out, "")
  assert again.read_bytes() == (finished / "attention.png").read_bytes()
  status, _, err, _ = program(
      f"--workdir={finished}", "--mode=eval", "--head_size=5"
  )
  assert status == 2 and err.count("\n") == 1 and "not the one of" in err
  assert contents(finished) == files


def test_evaluation_in_parts(experiment_of, monkeypatch):
  """The same examples, each once, however many are read at a time."""
  with experiment_of(train_nth_farthest, *TINY, *SMALL_LSTM) as run:
    state = run.init()
    whole = run.evaluate(state)
    monkeypatch.setattr(train_nth_farthest, "_EVAL_BATCH", 30)
    assert run.evaluate(state) == pytest.approx(whole, rel=1e-5)
  share = whole["eval_accuracy"]
  assert whole["eval_accuracy_standard_error"] == pytest.approx(
      np.sqrt(share * (1 - share) / 100)
  )


def test_seed(experiment_of):
  """Of parameters, of training's examples and of those of evaluation."""
  found, params = [], None
  for seed in (0, 3):
    with experiment_of(
        train_nth_farthest, *TINY, *SMALL_LSTM, f"--seed={seed}"
    ) as run:
      state = run.init()
      params = params or state.params  # Evaluated are those of the first.
      figures = run.evaluate(state._replace(params=params))
    weights = state.params["sequence_classifier/~/logits"]["w"]
    found.append((weights, state.key, figures["eval_loss"]))
  for x, y in zip(*jax.device_get(found), strict=True):
    assert np.any(x != y)


def test_a_run_that_is_not_finite_can_go_on(program, tmp_path):
  """As its message says."""
  wild = (f"--workdir={tmp_path}", "--learning_rate=1e30", "--steps=4")
  wild += ("--checkpoint_every=1", "--eval_every=0", "--log_every=1")
  status, _, err, _ = program(*TINY, *wild)
  assert status == 1 and err.count("\n") == 1
  assert "not finite at step 2" in err and "skip_nonfinite" in err
  status, _, err, _ = program(*TINY, *wild, "--skip_nonfinite")
  assert (status, err) == (0, "")
  assert [r["step"] for r in records_of(tmp_path)] == [1, 2, 3, 4, 4]
  assert summary_of(tmp_path)["skipped_updates"] == 1


@pytest.mark.parametrize(
    "options",
    [
        "--core=lstm --hidden_size=4 --parallel=jit --warmup_steps=2",
        "--gate_style=none --remat --scan_unroll=2 --parallel=pmap "
        "--matmul_precision=highest --skip_nonfinite --deterministic",
        "--gate_style=memory --num_blocks=2 --key_size=3 --order=nearest "
        "--attention_mlp_layers=1 --max_grad_norm=1 --lr_decay_rate=0.5 "
        "--parallel=jit",
        "--core=dnc --dnc_memory_size=3 --dnc_word_size=2 --dnc_num_reads=2 "
        "--dnc_num_writes=2 --dnc_controller=feedforward --dnc_clip_value=0 "
        "--dnc_controller_layers=1 --dnc_hidden_size=4 --remat "
        "--parallel=pmap",
        "--core=entnet --entnet_num_cells=2 --entnet_hidden_size=3 "
        "--parallel=jit",
    ],
)
def test_options(program, tmp_path, monkeypatch, options):
  """On 8 devices; the flags are those that the next run would go on with."""
  monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
  short = ("--steps=3", "--eval_every=0", "--log_every=2")
  status, _, err, _ = program(
      *TINY, *short, f"--workdir={tmp_path}", *options.split()
  )
  assert (status, err) == (0, "")
  assert [r["step"] for r in records_of(tmp_path)] == [2, 3]
  summary = summary_of(tmp_path)
  assert summary["devices"] == 8
  assert np.isfinite(summary["eval_loss"])
  highest = "--matmul_precision=highest" in options
  assert (summary["matmul_precision"] == "highest") == highest
  deterministic = "xla_gpu_deterministic_ops" in os.environ["XLA_FLAGS"]
  assert deterministic == ("--deterministic" in options)
  saved = (tmp_path / "flags.txt").read_text().split()
  for option in options.split():
    name, _, value = option.partition("=")
    if re.fullmatch(r"[\d.]+", value):
      (line,) = (x for x in saved if x.startswith(name + "="))
      assert float(line.partition("=")[2]) == float(value)
    else:
      assert option in saved
  assert (tmp_path / "attention.png").exists() == ("--core" not in options)


def test_a_curriculum_resumes_in_a_stage_and_is_split_over_devices(
    program, tmp_path
):
  """In one go, in two, and split by pmap: the same stages and numbers.

  All stages share one compiled update.
  """
  curriculum = (
      *TINY,
      "--core=lstm",
      "--hidden_size=8",
      "--curriculum=2x1,2x2,3x1",
      "--curriculum_threshold=0.3",
      "--curriculum_review=0.25",
      "--log_every=1",
      "--eval_every=0",
      "--eval_examples=2",
  )
  for name, *options in (
      ("whole", "--parallel=jit"),
      ("halves", "--parallel=jit", "--steps=25"),
      ("halves", "--parallel=jit"),
      ("split", "--parallel=pmap"),
  ):
    status, _, err, compiled = program(
        *curriculum, f"--workdir={tmp_path / name}", *options
    )
    assert (status, err) == (0, "")
    if "--parallel=jit" in options:
      assert compiled.count("jit(update)") == 1
  whole, halves, split = (
      [r for r in records_of(tmp_path / name) if "stage" in r]
      for name in ("whole", "halves", "split")
  )
  stages = [record["stage"] for record in whole]
  assert len(set(stages)) > 2
  assert 0 < stages[24] == stages[26] < 3  # Interrupted inside a stage.
  assert [r["loss"] for r in halves] == [r["loss"] for r in whole]
  assert_same_bits(
      training.load_params(tmp_path / "halves"),
      training.load_params(tmp_path / "whole"),
  )
  assert [record["stage"] for record in split] == stages
  np.testing.assert_allclose(
      [record["loss"] for record in split],
      [record["loss"] for record in whole],
      rtol=1e-4,
  )


def test_a_curriculum_is_evaluated_on_the_whole_task(program, tmp_path):
  """Without an update, as a run of the same seed without a curriculum is."""
  for name, *curriculum in (
      ("without",),
      ("with", "--curriculum=2x1,2x2", "--curriculum_threshold=0.99"),
  ):
    status, _, err, _ = program(
        *TINY,
        "--steps=1",
        "--learning_rate=1e-30",
        f"--workdir={tmp_path / name}",
        *curriculum,
    )
    assert (status, err) == (0, "")
  with_curriculum = summary_of(tmp_path / "with")
  without = summary_of(tmp_path / "without")
  assert with_curriculum["stage"] == 0
  assert with_curriculum["loss"] != without["loss"]
  for name in ("eval_loss", "eval_accuracy", "plateau"):
    assert with_curriculum[name] == without[name]


def test_what_counts_in_a_stage(experiment_of):
  """Sequences are read to their last object, and those that are drawn from an
  earlier stage do not count for going on.
  """
  indices = jnp.arange(16, dtype=jnp.int32)
  with experiment_of(
      train_nth_farthest,
      *TINY,
      *SMALL_LSTM,
      "--parallel=jit",
      "--curriculum=2x1,2x2",
      "--curriculum_review=0.9",
  ) as run:
    state = run.init()
    loss_fn = jax.jit(run.loss_fn)
    loss, (_, carry) = loss_fn(state.params, indices, state.carry, state.key)
    assert np.all(carry.accuracy > 0)

    # By hand: two of three objects, to the end.
    stages = parse_stages(["2x1", "2x2"])
    curriculum = StageCurriculum(NthFarthest(3, 2), stages)
    network = hk.without_apply_rng(
        hk.transform(
            lambda x: rmc.SequenceClassifier(
                cores.make_core, 3, core_flags.mlp_sizes()
            )(x)
        )
    )

    @jax.jit
    def expected(params, key):
      inputs, labels, *_ = jax.vmap(curriculum.sample, in_axes=(0, None))(
          training.example_keys(key, indices), jnp.int32(0)
      )
      logits = network.apply(params, jnp.swapaxes(inputs[:, :2], 0, 1))
      return jnp.mean(
          optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      )

    np.testing.assert_allclose(
        loss, expected(state.params, state.key), rtol=1e-5
    )

    # In the second stage: a running mean's first value is at most 0.05.
    second = state.carry._replace(stage=jnp.ones_like(state.carry.stage))
    found = [
        loss_fn(state.params, indices, second, key)[1][1].accuracy[0]
        for key in jax.random.split(jax.random.key(1), 20)
    ]
    assert 0 < max(found) < 0.0501


@pytest.mark.parametrize("core", ["rmc", "lstm", "dnc", "entnet"])
@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets(program, tmp_path, path, core):
  """They parse, and task, curriculum and network can be made."""
  status, out, err, compiled = program(
      f"--flagfile={path}",
      f"--core={core}",
      f"--workdir={tmp_path / 'nowhere'}",
      "--mode=eval",
  )
  assert (status, out) == (2, "")
  assert "needs a checkpoint" in err
  assert not any("init" in name for name in compiled)


@pytest.mark.parametrize("features", [16, 32])
def test_presets_are_the_papers(features):
  """Section 5.1 and appendix A.1; what it swept is within the sweep."""
  name = "paper" if features == 16 else f"paper_{features}"
  with parsed(f"--flagfile={ROOT}/scripts/presets/nth_farthest/{name}.flags"):
    assert (FLAGS.num_objects, FLAGS.num_features) == (8, features)
    assert (FLAGS.order, FLAGS.curriculum) == ("farthest", [])
    assert FLAGS.mem_slots * FLAGS.num_heads * FLAGS.head_size == 2048
    assert FLAGS.mem_slots in (1, 8, 16) and FLAGS.num_heads in (1, 8, 16)
    assert FLAGS.gate_style in ("unit", "memory") and FLAGS.num_blocks == 1
    assert 64 <= FLAGS.hidden_size <= 4096
    assert (FLAGS.batch_size, FLAGS.learning_rate) == (1600, 1e-4)
    assert FLAGS.dnc_memory_size in (1, 8, 16)
    assert FLAGS.dnc_word_size == FLAGS.dnc_hidden_size
    assert FLAGS.dnc_word_size in (128, 512, 1024)
    assert FLAGS.dnc_num_reads == FLAGS.dnc_num_writes
    assert FLAGS.dnc_num_reads in (1, 2, 4)
    assert (FLAGS.dnc_controller, FLAGS.dnc_controller_layers) == ("lstm", 2)
    assert core_flags.mlp_sizes() == [256] * 4


def test_sonnets_preset():
  """The values of its example program's flags."""
  with parsed(f"--flagfile={ROOT}/scripts/presets/nth_farthest/sonnet.flags"):
    assert (FLAGS.num_objects, FLAGS.num_features) == (4, 4)
    assert (FLAGS.order, FLAGS.gate_style) == ("nearest", "unit")
    assert (FLAGS.mem_slots, FLAGS.head_size) == (4, 2048)
    assert (FLAGS.batch_size, FLAGS.learning_rate) == (1600, 1e-4)
    assert (FLAGS.lr_decay_rate, FLAGS.lr_decay_steps) == (0.9, 10_000)
    assert FLAGS.min_learning_rate == 8e-5


# Faults.


def test_a_killed_run_goes_on(finished, tmp_path):
  command = [*TINY, f"--workdir={tmp_path / 'run'}"]
  process = start(*command)
  wait_until(process, (tmp_path / "run" / "checkpoints" / "10").exists)
  process.kill()
  process.communicate()
  assert not (tmp_path / "run" / "summary.json").exists()
  finish(start(*command))
  assert_same_run(tmp_path / "run", finished)


def test_a_stopped_run_says_how_to_go_on(tmp_path, program):
  """Before that, a second run in its directory is refused."""
  workdir = tmp_path / "run"
  command = [*TINY, "--steps=1000000", f"--workdir={workdir}"]
  process = start(*command)
  wait_until(process, lambda: len(training.read_metrics(workdir)) > 1)
  status, _, err, _ = program(*command)
  assert (status, err.count("\n")) == (2, 1)
  assert f"another run is using the working directory {workdir}" in err
  process.send_signal(signal.SIGTERM)
  _, err = finish(process, status=128 + signal.SIGTERM)
  lines = err.splitlines()
  assert lines[0] == "stopping after this step; once more to stop now"
  match = re.fullmatch(
      r"train_nth_farthest: stopped after step (\d+) of 1000000 and saved; "
      r"run the same command again to go on\.",
      lines[1],
  )
  assert match and len(lines) == 2
  assert steps_of(workdir)[-1] == int(match[1])


def test_ctrl_c_twice_is_one_line(program, tmp_path):
  def interrupted():
    raise KeyboardInterrupt

  status, _, err, _ = program(
      *TINY, f"--workdir={tmp_path}", main=interrupted
  )
  assert (status, err.count("\n")) == (130, 1)
  assert "stopped at once; the last checkpoint is kept" in err


def test_a_full_disk_is_one_line_and_status_1(tmp_path):
  """The system's limit on the size of files stands for it."""
  workdir = tmp_path / "run"
  process = start(
      *TINY,
      "--steps=1000000",
      "--log_every=1",
      "--eval_every=0",
      f"--workdir={workdir}",
      before=(
          "import resource\n"
          "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))"
      ),
  )
  _, err = finish(process, status=1)
  assert err.startswith("train_nth_farthest: ") and err.count("\n") == 1, err
  assert "File too large" in err
  assert steps_of(workdir)[-1] >= 10
  training.load_params(workdir)
