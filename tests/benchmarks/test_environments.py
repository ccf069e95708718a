"""The benchmark of the environments, run as its users run it."""

import subprocess
import sys


def test_table():
  """The ways to begin episodes are measured, and found to play the same."""
  done = subprocess.run(
      [
          *(sys.executable, "-m", "benchmarks.environments", "--resets"),
          *("--env=box_world", "--num_envs=40", "--steps=70", "--runs=1"),
      ],
      capture_output=True,
      text=True,
      timeout=240,
  )
  assert done.returncode == 0, done.stderr
  rows = [line.split("  ") for line in done.stdout.splitlines()[2:]]
  assert [row[0] for row in rows] == ["box_world"] * 4
  assert all(float(row[-1].replace(",", "")) > 0 for row in rows)
