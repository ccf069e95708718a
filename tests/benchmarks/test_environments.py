"""The benchmark of the environments, run as its users run it."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "arguments, rows",
    [
        ([], 1),
        # The ways to begin episodes are found to play the same.
        pytest.param(["--resets", "--steps=70"], 4, marks=pytest.mark.slow),
    ],
)
def test_table(arguments, rows):
  done = subprocess.run(
      [
          *(sys.executable, "-m", "benchmarks.environments", "--steps=3"),
          *("--env=box_world", "--num_envs=40", "--runs=1", *arguments),
      ],
      capture_output=True,
      text=True,
      timeout=240,
  )
  assert done.returncode == 0, done.stderr
  table = [line.split("  ") for line in done.stdout.splitlines()[2:]]
  assert [row[0] for row in table] == ["box_world"] * rows
  assert all(float(row[-1].replace(",", "")) > 0 for row in table)
