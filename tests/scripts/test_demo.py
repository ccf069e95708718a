"""The demo: a signal to it."""

import signal
import subprocess
import sys

from tests.helpers.programs import ROOT


def test_sigterm_ends_the_training_too(tmp_path):
  """Which saves its state, so that the same command goes on."""
  command = [
      *(sys.executable, "-m", "scripts.demo", "--cores=lstm", "--seeds=0"),
      f"--demo_dir={tmp_path}",
  ]
  with subprocess.Popen(
      command,
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
  ) as process:
    for line in process.stdout:
      if line.startswith("step "):
        break
    process.terminate()
    _, errors = process.communicate(timeout=120)
  assert process.returncode == 128 + signal.SIGTERM
  assert "stopped after step" in errors
  assert any((tmp_path / "lstm_seed0" / "checkpoints").iterdir())
