"""The demo."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from rmc import training
from scripts import demo
from scripts.lib import cores
from tests.helpers.in_process import exit_of
from tests.helpers.programs import ROOT, run

# Every training that the demo starts, in small.
SMALL = """
--flagfile={preset}
--batch_size=8
--num_heads=1
--head_size=4
--hidden_size=4
--log_every=5
--eval_examples=100
"""


@pytest.fixture
def small(tmp_path, monkeypatch):
  """Makes the demo of Nth Farthest small; returns its preset, to add to."""
  large = demo._DEMOS["nth_farthest"]
  path = tmp_path / "small.flags"
  path.write_text(SMALL.format(preset=demo._PRESETS / large.preset))
  monkeypatch.setitem(
      demo._DEMOS, "nth_farthest", large._replace(preset=str(path))
  )
  return path


def await_report(workdir):
  """Waits until a run has reported."""
  path = workdir / "metrics.jsonl"
  for _ in range(1200):
    if path.exists() and path.read_text():
      return
    time.sleep(0.1)


def check_saved(status, errors, signum, workdir):
  assert status == 128 + signum, errors
  assert "and saved; run the same command again to go on" in errors
  assert "Traceback" not in errors
  (report, *_) = training.read_metrics(workdir)
  assert training.latest_step(workdir) >= report["step"]


@pytest.mark.parametrize(
    "flag, message",
    [
        (
            "--cores=foo",
            f"--cores=foo must be a list of {sorted(cores.names_for('flat'))}",
        ),
        ("--cores=rmc,conv_lstm", "--cores=rmc,conv_lstm must be a list of"),
        ("--seeds=", "--seeds= must be a list of numbers from 0"),
    ],
)
def test_wrong_flags(tmp_path, flag, message):
  status, out, err = exit_of(demo, f"--demo_dir={tmp_path / 'demo'}", flag)
  assert (status, out, err.count("\n")) == (2, "", 1)
  assert message in err
  assert not (tmp_path / "demo").exists()


def test_sigterm_ends_the_training_too(tmp_path, small, capfd):
  """Which saves its state, so that the same command goes on."""

  def stop():
    await_report(tmp_path / "lstm_seed0")
    os.kill(os.getpid(), signal.SIGTERM)

  def never(*_):
    raise AssertionError("the demo must take the signal")

  small.write_text(small.read_text() + "--steps=1000000\n")
  handler = signal.signal(signal.SIGTERM, never)
  stopping = threading.Thread(target=stop)
  stopping.start()
  try:
    status, _, _ = exit_of(demo, f"--demo_dir={tmp_path}", "--cores=lstm")
    stopping.join()
  finally:
    signal.signal(signal.SIGTERM, handler)
  errors = capfd.readouterr().err  # Those of the training.
  check_saved(status, errors, signal.SIGTERM, tmp_path / "lstm_seed0")


def test_ctrl_c_of_a_demo_saves(tmp_path):
  """The terminal sends the signal to the training program too."""
  # Whoever runs the tests may ignore it, which a new program inherits; one that
  # is handled it begins with by default, and JAX warns of forks (preexec_fn).
  handler = signal.signal(signal.SIGINT, signal.default_int_handler)
  process = subprocess.Popen(
      [
          *(sys.executable, "-m", "scripts.demo", "--cores=lstm,rmc"),
          f"--demo_dir={tmp_path}",
      ],
      cwd=ROOT,
      start_new_session=True,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
  )
  signal.signal(signal.SIGINT, handler)
  await_report(tmp_path / "lstm_seed0")
  os.killpg(process.pid, signal.SIGINT)
  _, errors = process.communicate(timeout=120)
  check_saved(
      process.returncode, errors, signal.SIGINT, tmp_path / "lstm_seed0"
  )
  assert not (tmp_path / "rmc_seed0").exists()


@pytest.mark.slow
def test_demo(tmp_path):
  """The whole demo: the RMC learns what the LSTM does not."""
  result = run("scripts.demo", f"--demo_dir={tmp_path}")
  assert result.returncode == 0, result.stderr
  summaries = {
      core: json.loads((tmp_path / f"{core}_seed0/summary.json").read_text())
      for core in ("rmc", "lstm")
  }
  assert summaries["rmc"]["eval_accuracy"] >= 0.9
  assert abs(summaries["lstm"]["eval_accuracy"] - 2 / 3) < 0.02
  assert summaries["lstm"]["parameters"] >= summaries["rmc"]["parameters"]
  assert (tmp_path / "learning_curves.png").exists()
  assert (tmp_path / "rmc_seed0/attention.png").exists()
  assert "without comparing distances one reaches 0.667" in result.stdout
