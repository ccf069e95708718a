"""The benchmark of training programs, run as its users run it."""

import json
import os
import re
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


def test_products_of_an_update_are_counted():
  """An MLP's are 2 M K N forward, and as many for each gradient."""
  done = subprocess.run(
      [
          *(sys.executable, "-m", "benchmarks.training", "--json"),
          *("--benchmark=nth_farthest", "--core=lstm", "--seconds=0"),
          *("--hidden_size=7", "--mlp_sizes=5", "--batch_size=2"),
      ],
      capture_output=True,
      text=True,
      check=True,
  )
  (row,) = json.loads(done.stdout)
  features, steps = 11, 3  # 2 coordinates; label, m and n one-hot.
  # The input's gradient is nobody's, but XLA is to find that out.
  lstm = steps * 3 * 2 * 2 * (features + 7) * 4 * 7
  mlp = 3 * 2 * 2 * (7 * 5 + 5 * 3)
  assert row["gflop"] == pytest.approx(1e-9 * (lstm + mlp))
  assert "updates_per_second" not in row


def test_devices_share_the_work():
  """Each draws its own examples, and none works on those of another."""
  done = subprocess.run(
      [
          *(sys.executable, "-m", "benchmarks.training", "--json"),
          *("--benchmark=nth_farthest", "--core=lstm", "--seconds=0"),
          *("--hidden_size=64", "--mlp_sizes=64", "--batch_size=64"),
          "--parallel=jit",
      ],
      capture_output=True,
      text=True,
      check=True,
      env=os.environ
      | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
  )
  (row,) = json.loads(done.stdout)
  assert 25 <= row["share"] < 30


# A process of its own, since other benchmarks define the same flags.
_PRECISION = """
import haiku as hk
from benchmarks import training
for precision in ("bfloat16", "float32"):
  training.measure("nth_farthest", [
      "--core=lstm", "--seconds=0", f"--precision={precision}",
      "--hidden_size=2", "--mlp_sizes=2", "--batch_size=2"])
  print("policy:", hk.mixed_precision.get_policy(hk.Linear))
"""


def test_precision_is_that_of_the_program():
  done = subprocess.run(
      [sys.executable, "-c", _PRECISION],
      capture_output=True,
      text=True,
      check=True,
  )
  first, second = re.findall("policy: (.*)", done.stdout)
  assert first == "p=full,c=bf16,o=full"  # Parameters, computing, outputs.
  assert second == "None"
