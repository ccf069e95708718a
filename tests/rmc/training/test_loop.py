"""The training loop: schedule, exact resume, signals, faults."""

import contextlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rmc import training
from tests.helpers import tiny_training
from tests.helpers.tiny_training import (
  assert_same_run,
  records_of,
  steps_of,
  train,
)

STEPS = 47  # Off every grid, so that the end is a report of its own.


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
  """The directory of a run that nothing disturbed."""
  workdir = tmp_path_factory.mktemp("unbroken")
  train(workdir, STEPS)
  return workdir


def send(signum, at, times=1):
  """Makes a callback that sends this process a signal at a step."""

  def before(step):
    if step == at:
      for _ in range(times):
        os.kill(os.getpid(), signum)

  return before


def fail(at):
  """Makes a callback that fails at a step, as a crash would."""

  def before(step):
    if step == at:
      raise RuntimeError("crash")

  return before


# Schedule and files.


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0,), "num_steps must be at least 1, got 0"),
        ((5, 0), "log_every must be at least 1, got 0"),
        ((5, 1, -1), "eval_every must be at least 0, got -1"),
        ((5, 1, 0, -2), "checkpoint_every must be at least 0, got -2"),
    ],
)
def test_wrong_schedule(arguments, message):
  with pytest.raises(ValueError, match=message):
    training.Schedule(*arguments)


def test_reports_evaluations_and_checkpoints_come_when_they_are_due(unbroken):
  records = records_of(unbroken)
  assert [r["step"] for r in records] == [10, 20, 30, 40, 47]
  assert ["eval_loss" in r for r in records] == [False, True, False, True, True]
  assert [r.get("final", False) for r in records] == 4 * [False] + [True]
  assert [r["eval_at"] for r in records if "eval_at" in r] == [20, 40, 47]
  assert steps_of(unbroken) == [30, 45, 47]
  assert tiny_training.events_of(unbroken) == tiny_training.events_expected(
      records
  )


def test_figures_are_means_since_the_last_report(tmp_path, unbroken):
  train(tmp_path, STEPS, log_every=1)
  single = records_of(tmp_path)
  for record in records_of(unbroken):
    first = max(r["step"] for r in records_of(unbroken) + [{"step": 0}]
                if r["step"] < record["step"])
    losses = [r["loss"] for r in single if first < r["step"] <= record["step"]
              and "loss" in r]
    assert len(losses) == record["step"] - first
    assert record["loss"] == pytest.approx(np.mean(losses), rel=1e-12)


def test_summary_holds_the_last_figures_and_facts_of_the_run(unbroken):
  summary = json.loads((unbroken / "summary.json").read_text())
  last = json.loads((unbroken / "metrics.jsonl").read_text().splitlines()[-1])
  del last["final"]
  assert summary.items() >= last.items()
  assert summary["parameters"] == 4
  assert summary["devices"] == 1
  assert summary["device"] == jax.devices()[0].device_kind
  assert summary["matmul_precision"] == "default"
  assert summary["steps_per_second"] > 0


def test_a_summary_is_of_all_of_a_run(tmp_path):
  """One of a shorter run would belie the flags beside it."""
  path = tmp_path / "summary.json"
  train(tmp_path, 20)
  train(tmp_path, 20)
  assert json.loads(path.read_text())["step"] == 20
  with pytest.raises(RuntimeError, match="crash"):
    train(tmp_path, STEPS, before=fail(25))
  assert not path.exists()
  train(tmp_path, STEPS)
  assert json.loads(path.read_text())["step"] == STEPS


def test_a_run_without_evaluation_and_periodic_checkpoints(tmp_path):
  summary = train(
      tmp_path, 20, evaluate=None, eval_every=0, checkpoint_every=0
  )
  assert [r["step"] for r in records_of(tmp_path)] == [10, 20]
  assert steps_of(tmp_path) == [20]
  assert summary["step"] == 20 and "eval_loss" not in summary


def test_evaluation_at_the_end_alone(tmp_path):
  train(tmp_path, 20, eval_every=0)
  records = records_of(tmp_path)
  assert [r["step"] for r in records] == [10, 20, 20]
  assert ["eval_loss" in r for r in records] == [False, False, True]
  assert tiny_training.summary_of(tmp_path).items() >= (
      records[1] | records[2]
  ).items() - {("final", True)}


def test_metrics_can_be_read_while_the_run_goes_on(tmp_path):
  seen = {}

  def before(step):
    seen[step] = (
        [r["step"] for r in training.read_metrics(tmp_path)],
        len(tiny_training.events_of(tmp_path)),
    )

  train(tmp_path, 25, before=before)
  assert seen[9] == ([], 0)
  assert seen[10][0] == [10] and seen[20][0] == [10, 20]
  # Three figures of training, two more of an evaluation.
  assert seen[10][1] == 3 and seen[20][1] == 3 + 5


# Exact resume.


@pytest.mark.parametrize("k", [3, 10, 20, 30, 38])
def test_k_and_the_rest_equal_all_at_once(tmp_path, unbroken, k):
  train(tmp_path, k)
  assert records_of(tmp_path)[-1]["step"] == k
  train(tmp_path, STEPS)
  assert_same_run(tmp_path, unbroken)


def test_a_finished_run_stays_as_it_is(tmp_path, unbroken):
  train(tmp_path, STEPS)
  train(tmp_path, STEPS)
  assert_same_run(tmp_path, unbroken)


@pytest.mark.parametrize("at", [1, 14, 15, 16, 31, 46])
def test_a_crash_leaves_no_trace(tmp_path, unbroken, at):
  with pytest.raises(RuntimeError, match="crash"):
    train(tmp_path, STEPS, before=fail(at))
  train(tmp_path, STEPS)
  assert_same_run(tmp_path, unbroken)


def test_lines_past_the_checkpoint_and_a_torn_one_are_dropped(
    tmp_path, unbroken
):
  with pytest.raises(RuntimeError, match="crash"):
    train(tmp_path, STEPS, before=fail(43))
  path = tmp_path / "metrics.jsonl"
  assert [r["step"] for r in records_of(tmp_path)] == [10, 20, 30, 40]
  with path.open("a") as file:
    file.write('{"step": 43, "loss": 0.')
  assert len(training.read_metrics(tmp_path)) == 4
  seen = []
  train(
      tmp_path,
      STEPS,
      before=lambda step: seen.append((step, len(records_of(tmp_path)))),
  )
  assert seen[0] == (30, 3)
  assert_same_run(tmp_path, unbroken)


def test_more_devices_or_fewer_when_going_on(tmp_path, unbroken):
  """A checkpoint of 8 devices resumes on 1, the other way, and across modes."""
  plan = [(8, "pmap", 11), (1, "jit", 22), (8, "jit", 33), (4, "pmap", STEPS)]
  for num_devices, mode, steps in plan:
    train(tmp_path, steps, num_devices=num_devices, mode=mode)
  state, _ = tiny_training.state_of(tmp_path)
  expected, _ = tiny_training.state_of(unbroken)
  for x, y in zip(
      jax.tree.leaves(state), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
  for record, other in zip(
      records_of(tmp_path), records_of(unbroken), strict=True
  ):
    assert record.keys() == other.keys()
    for name, value in record.items():
      assert value == pytest.approx(other[name], rel=1e-5), name


def test_times_go_on_counting(tmp_path):
  train(tmp_path, 20)
  first = training.read_metrics(tmp_path)[1]["wall_seconds"]
  train(tmp_path, 40)
  times = [r["wall_seconds"] for r in training.read_metrics(tmp_path)]
  assert times[1] == first and times == sorted(times)


def test_checkpoints_by_the_clock(tmp_path, monkeypatch):
  """With the first report that is so late, and none without a report."""
  now = [0.0]
  monkeypatch.setattr(
      training.loop, "time", types.SimpleNamespace(monotonic=lambda: now[0])
  )
  saved = []

  def before(step):
    directory = tmp_path / "run" / "checkpoints"
    if directory.exists():
      saved.append(max(map(int, os.listdir(directory)), default=0))
    now[0] += 60

  train(
      tmp_path / "run",
      20,
      before=before,
      log_every=4,
      eval_every=0,
      checkpoint_every=0,
      checkpoint_minutes=6,
  )
  # Reports come after 4, 8, 12, 16 minutes; before[i] is seen after i updates.
  assert saved == [0] * 8 + [8] * 8 + [16] * 4
  assert steps_of(tmp_path / "run") == [8, 16, 20]


def test_speed_is_of_updates_alone(tmp_path, monkeypatch, capsys):
  """Neither compiling nor evaluating counts; the time left is of both."""
  now = [0.0]
  monkeypatch.setattr(
      training.loop, "time", types.SimpleNamespace(monotonic=lambda: now[0])
  )

  def before(step):
    now[0] += 0.4 if step else 1000  # The first is compiled.

  def evaluate(state):
    del state
    now[0] += 100
    return {}

  summary = train(
      tmp_path, 40, before=before, evaluate=evaluate, eval_every=10
  )
  assert summary["steps_per_second"] == pytest.approx(2.5, abs=0.001)
  assert summary["compile_seconds"] == 1000
  seconds = 1000 + 39 * 0.4 + 4 * 100
  assert summary["wall_seconds"] == pytest.approx(seconds, abs=0.01)
  assert "[1104 s, 3311 s left]" in capsys.readouterr().out


def test_other_flags_are_listed(tmp_path):
  config = {"batch_size": 8, "core": "rmc", "sizes": [1, 2]}
  train(tmp_path, 15, config=config)
  before = (tmp_path / "metrics.jsonl").read_bytes()
  other = config | {"core": "lstm", "extra": True}
  with pytest.raises(training.CheckpointError) as caught:
    train(tmp_path, 30, config=other)
  assert "core was 'rmc' and is 'lstm'" in str(caught.value)
  assert "extra was not recorded and is True" in str(caught.value)
  assert "batch_size" not in str(caught.value)
  assert "sizes" not in str(caught.value)
  assert (tmp_path / "metrics.jsonl").read_bytes() == before
  train(tmp_path, 30, config=config)


@pytest.mark.parametrize(
    "params, message",
    [
        ((1.0,), "dicts and lists, .*, got a tuple"),
        ({"a": [(1.0,)]}, "dicts and lists, .*, got a tuple"),
        ({"a": {0: 1.0}}, r"strings for names, got \[0\]"),
    ],
)
def test_parameters_that_a_checkpoint_does_not_give_back(
    tmp_path, params, message
):
  """A tuple comes back as a list, and a run could not go on."""
  params = jax.tree.map(jnp.asarray, params)

  def init():
    return training.init_state(params, optax.sgd(0.1), jax.random.key(0))

  with pytest.raises(ValueError, match=message):
    training.train(
        tmp_path,
        init,
        None,
        None,
        training.DataParallel("jit"),
        training.Schedule(1),
    )
  assert steps_of(tmp_path) == []


def test_figures_of_arrays(tmp_path):
  """Of an evaluation, a scalar of JAX or NumPy is as good as a float."""
  figures = {"a": jnp.float32(0.5), "b": np.float32(0.25), "c": 3}
  summary = train(tmp_path, 1, evaluate=lambda state: figures)
  assert {name: summary[name] for name in figures} == figures


@pytest.mark.parametrize(
    "figures, message",
    [
        ({"a": np.ones(3)}, r"one number, .*got 'a' of shape \[3\]"),
        ({"step": 1.0}, "another name than step, .*got 'step'"),
    ],
)
def test_wrong_figures(tmp_path, figures, message):
  with pytest.raises(ValueError, match=message):
    train(tmp_path, 1, evaluate=lambda state: figures)

  def update(state, batch):
    del batch
    return state._replace(step=state.step + 1), figures | {"finite": 1.0}

  parallel = training.DataParallel("jit", jax.devices()[:1])
  with pytest.raises(ValueError, match=message):
    training.train(
        tmp_path / "run",
        lambda: training.init_state({}, optax.sgd(0.1), jax.random.key(0)),
        update,
        lambda step: None,
        parallel,
        training.Schedule(1),
    )


@pytest.mark.parametrize("name", ["run[1]", "a\\b", "a**b"])
def test_a_directory_in_which_checkpoints_would_be_lost(tmp_path, name):
  with pytest.raises(training.CheckpointError, match="must have no .*, got /"):
    train(tmp_path / name / "run", 1)


def test_figures_wait_on_the_device_in_bounded_number(
    tmp_path, unbroken, monkeypatch
):
  monkeypatch.setattr(training.loop, "_MAX_PENDING", 4)
  train(tmp_path, STEPS)
  assert_same_run(tmp_path, unbroken)


def test_fewer_steps_than_are_done_are_refused(tmp_path, unbroken):
  """The flags and the last figures of the longer run stay as they are."""
  train(tmp_path, STEPS)
  files = [tmp_path / name for name in ("flags.txt", "summary.json")]
  texts = [file.read_text() for file in files]
  message = f"has done {STEPS} updates, more than the 20 now asked for"
  with pytest.raises(training.CheckpointError, match=message):
    train(tmp_path, 20)
  assert [file.read_text() for file in files] == texts
  assert_same_run(tmp_path, unbroken)


# Progress.


class Terminal(io.StringIO):
  """A stream that says it is a terminal."""

  def isatty(self):
    return True


def test_progress_on_a_terminal_and_elsewhere(tmp_path, monkeypatch, capsys):
  train(tmp_path / "plain", 20)
  out, err = capsys.readouterr()
  lines = out.splitlines()
  assert err == "" and len(lines) == 2
  assert lines[1].startswith("step 20/20 ")
  assert "loss=" in lines[1] and lines[1].endswith("0 s left]")
  monkeypatch.setattr("sys.stderr", Terminal())
  train(tmp_path / "bar", 20)
  text = sys.stderr.getvalue()
  assert "20/20" in text and "step/s" in text and "loss=" in text
  assert "<" in text  # The time left.
  assert capsys.readouterr().out == ""


# Not finite.


def test_not_finite_names_the_step_and_keeps_the_checkpoint(
    tmp_path, unbroken
):
  with pytest.raises(training.NonFiniteError, match="at step 37: .*'loss'"):
    train(tmp_path, STEPS, spoilt=[37])
  assert steps_of(tmp_path) == [15, 30]
  assert [r["step"] for r in records_of(tmp_path)] == [10, 20, 30]
  state, _ = tiny_training.state_of(tmp_path)
  assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state))
  train(tmp_path, STEPS)
  assert_same_run(tmp_path, unbroken)


def test_not_finite_is_found_before_a_checkpoint_is_written(tmp_path):
  with pytest.raises(training.NonFiniteError, match="at step 14"):
    train(tmp_path, STEPS, spoilt=[14], log_every=1000, eval_every=0)
  assert steps_of(tmp_path) == []


@pytest.mark.parametrize("num_devices", [1, 8])
def test_skipping_drops_and_counts(tmp_path, num_devices):
  states = {}

  def run(spoilt):
    workdir = tmp_path / f"{spoilt}"
    options = dict(num_devices=num_devices, skip_nonfinite=True)
    for steps in (24, 25, 26):
      train(workdir, steps, spoilt=spoilt, **options)
      states[spoilt, steps], _ = tiny_training.state_of(workdir)
    train(workdir, 40, spoilt=spoilt, **options)
    return records_of(workdir)

  records = run((5, 12, 25))
  assert [r.get("skipped_updates", 0) for r in records] == [1, 1, 1, 0]
  assert all(np.isfinite(r["loss"]) for r in records)
  before, after = states[(5, 12, 25), 24], states[(5, 12, 25), 25]
  tiny_training.assert_same_bits(
      after._replace(step=before.step, carry=before.carry), before
  )
  assert int(after.step) == 25
  assert np.all(np.isfinite(after.carry) & (after.carry != before.carry))
  assert not np.array_equal(
      states[(5, 12, 25), 26].params["linear"]["w"],
      after.params["linear"]["w"],
  )


def test_a_report_in_which_all_was_skipped(tmp_path):
  train(tmp_path, 20, spoilt=range(11, 21), skip_nonfinite=True)
  records = records_of(tmp_path)
  assert records[1]["skipped_updates"] == 10
  assert "loss" not in records[1]


def test_skipping_resumes_exactly(tmp_path):
  options = dict(spoilt=(4, 13, 18, 33), skip_nonfinite=True)
  train(tmp_path / "whole", STEPS, **options)
  for steps in (14, 17, STEPS):
    train(tmp_path / "parts", steps, **options)
  assert_same_run(tmp_path / "parts", tmp_path / "whole")


# Signals.


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("at", [0, 17, 19, 29])
def test_a_signal_saves_and_says_how_to_go_on(
    tmp_path, unbroken, signum, at, capfd
):
  handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
  with pytest.raises(training.Interrupted) as caught:
    train(tmp_path, STEPS, before=send(signum, at))
  assert caught.value.signum == signum
  assert f"after step {at + 1} of {STEPS}" in str(caught.value)
  assert "run the same command again" in str(caught.value)
  assert "stopping after this step" in capfd.readouterr().err
  assert steps_of(tmp_path)[-1] == at + 1
  # The report of the last step, which may take long, is left to the next run.
  assert all(r["step"] <= at for r in records_of(tmp_path))
  assert handlers == [
      signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)
  ]
  train(tmp_path, STEPS)
  assert_same_run(tmp_path, unbroken)


def test_a_signal_at_a_report_and_then_a_kill(tmp_path, unbroken):
  """The report that the second run makes is made once more by the third."""
  with pytest.raises(training.Interrupted):
    train(tmp_path, STEPS, before=send(signal.SIGTERM, 9))
  assert records_of(tmp_path) == [] and steps_of(tmp_path) == [10]
  with pytest.raises(RuntimeError, match="crash"):
    train(tmp_path, STEPS, before=fail(12))
  assert [record["step"] for record in records_of(tmp_path)] == [10]
  train(tmp_path, STEPS)
  assert_same_run(tmp_path, unbroken)


def test_a_signal_when_nobody_reads_the_errors(tmp_path, monkeypatch):
  """Ctrl-C ends `tee` behind the pipe too."""

  def write(*_):
    raise BrokenPipeError

  monkeypatch.setattr(os, "write", write)
  with pytest.raises(training.Interrupted):
    train(tmp_path, STEPS, before=send(signal.SIGINT, 17))
  assert steps_of(tmp_path) == [15, 18]


def test_a_signal_from_elsewhere(tmp_path, unbroken):
  """From another thread, at a moment that the loop does not choose."""
  reached = threading.Event()
  sender = threading.Thread(
      target=lambda: (reached.wait(), os.kill(os.getpid(), signal.SIGTERM))
  )
  sender.start()
  stopped_at = []

  def before(step):
    if step == 5:
      reached.set()
      sender.join()
    stopped_at.append(step + 1)

  with pytest.raises(training.Interrupted):
    train(tmp_path, STEPS, before=before)
  assert steps_of(tmp_path)[-1] == stopped_at[-1] < STEPS
  train(tmp_path, STEPS)
  assert_same_run(tmp_path, unbroken)


def test_the_second_ctrl_c_stops_at_once(tmp_path, unbroken):
  with pytest.raises(KeyboardInterrupt):
    train(tmp_path, STEPS, before=send(signal.SIGINT, 17, times=2))
  assert steps_of(tmp_path) == [15]
  train(tmp_path, STEPS)
  assert_same_run(tmp_path, unbroken)


def test_a_second_sigterm_does_not_cut_the_saving_short(tmp_path):
  with pytest.raises(training.Interrupted):
    train(tmp_path, STEPS, before=send(signal.SIGTERM, 17, times=2))
  assert steps_of(tmp_path) == [15, 18]


def test_a_signal_in_the_last_step_is_no_interruption(tmp_path, unbroken):
  train(tmp_path, STEPS, before=send(signal.SIGTERM, STEPS - 1))
  assert_same_run(tmp_path, unbroken)


# One run in a directory.


def test_a_second_run_is_refused(tmp_path, unbroken):
  refused = []

  def before(step):
    if step == 20:
      with pytest.raises(training.CheckpointError, match="another run"):
        train(tmp_path, STEPS)
      refused.append(step)

  train(tmp_path, STEPS, before=before)
  assert refused == [20]
  assert_same_run(tmp_path, unbroken)
  train(tmp_path, STEPS)


# Disks.


@contextlib.contextmanager
def small_disk(directory):
  """Mounts a disk of 2 MiB; yields functions that fill it and make room."""
  directory.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(directory)]
  try:
    done = subprocess.run(mount, capture_output=True, text=True)
  except OSError as error:
    pytest.skip(f"no mount: {error}")
  if done.returncode:
    pytest.skip(f"a small disk needs the right to mount: {done.stderr}")
  ballast = directory / "ballast"

  def fill():
    with ballast.open("wb", buffering=0) as file:
      for size in (1 << 16, 1 << 12, 1):
        with contextlib.suppress(OSError):
          while True:
            file.write(bytes(size))

  try:
    yield fill, ballast.unlink
  finally:
    subprocess.run(["umount", "--lazy", str(directory)], check=True)


def check_fault(workdir, unbroken, make, undo, **options):
  """Makes a fault at step 33, undoes it, and goes on.

  Args:
    workdir: of the run.
    unbroken: the directory of a run without the fault, made here.
    make: called at step 33, with checkpoints at 15 and 30.
    undo: called when the run has failed.
    **options: of the run.

  Returns:
    The error's message.
  """

  def before(step):
    if step == 33:
      make()

  with tiny_training.deadline(60), pytest.raises(OSError) as caught:
    try:
      train(workdir, STEPS, before=before, **options)
    finally:
      undo()
  state, _ = tiny_training.state_of(workdir)
  assert int(state.step) == 30
  train(workdir, STEPS, **options)
  assert steps_of(workdir) == [30, 45, 47]
  train(unbroken, STEPS, **options)
  assert_same_run(workdir, unbroken)
  return str(caught.value)


@pytest.mark.parametrize("log_every", [1, 1000])
def test_full_disk(tmp_path, log_every):
  """Reports meet it first, or a checkpoint does."""
  with small_disk(tmp_path / "disk") as (fill, make_room):
    message = check_fault(
        tmp_path / "disk" / "run",
        tmp_path / "unbroken",
        fill,
        make_room,
        log_every=log_every,
        eval_every=20 if log_every == 1 else 0,
    )
  if log_every == 1000:
    assert "checkpoint of step 45 could not be written" in message
    assert "good ones are kept of steps [15, 30]" in message
  else:
    assert "No space left" in message


@pytest.mark.parametrize("what", ["metrics", "events", "checkpoint"])
def test_a_file_that_may_not_grow(tmp_path, what):
  """The system's limit on the size of files, which no right overrides."""
  workdir = tmp_path / "run"
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  log_every = 1000 if what == "checkpoint" else 1

  def limit():
    (events,) = workdir.glob("events.*")
    metrics = workdir / "metrics.jsonl"
    size = {
        "metrics": metrics.stat().st_size,
        "events": events.stat().st_size,
        "checkpoint": 64,
    }[what]
    if what == "events":
      assert size > metrics.stat().st_size + 2000
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))

  message = check_fault(
      workdir,
      tmp_path / "unbroken",
      limit,
      lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)),
      log_every=log_every,
      evaluate=lambda state: {f"e{i}": 1 for i in range(200)},
      eval_every=0 if what == "checkpoint" else 1,
  )
  if what == "checkpoint":
    assert "checkpoint of step 45 could not be written" in message
  else:
    assert "File too large" in message


def test_lost_right_to_write(tmp_path):
  workdir = tmp_path / "run"
  directory = workdir / "checkpoints"

  def lose():
    directory.chmod(0o555)
    if os.geteuid() == 0:  # Whom no mode keeps out.
      os.seteuid(65534)

  def regain():
    if os.getuid() == 0:
      os.seteuid(0)
    directory.chmod(0o755)

  message = check_fault(
      workdir, tmp_path / "unbroken", lose, regain, log_every=1000, eval_every=0
  )
  assert "checkpoint of step 45 could not be written" in message
  assert "ermission" in message
