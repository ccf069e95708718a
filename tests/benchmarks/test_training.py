"""The benchmark of training programs, run as its users run it."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("name", ["box_world", "mini_pacman"])
def test_agents_beside_their_environments_alone(name):
  done = subprocess.run(
      [
          *(sys.executable, "-m", "benchmarks.training", f"--benchmark={name}"),
          *("--core=lstm", "--seconds=0.5", "--json"),
      ],
      capture_output=True,
      text=True,
      timeout=300,
  )
  assert done.returncode == 0, done.stderr
  (row,) = json.loads(done.stdout)
  assert (row["benchmark"], row["core"]) == (name, "lstm")
  assert 0 < row["updates_per_second"] < row["batches_per_second"]
