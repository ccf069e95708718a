"""The benchmark of training programs, run as its users run it."""

import json

from absl.testing import flagsaver
import haiku as hk
import jax
import pytest

from benchmarks import training
from tests.helpers.in_process import exit_of


def measure(name, *arguments, num_devices=1):
  """Returns a row, measured with the first devices."""
  with flagsaver.flagsaver(seconds=0), jax.numpy_dtype_promotion("standard"):
    return training.measure(name, arguments, jax.devices()[:num_devices])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["box_world", "mini_pacman"])
def test_agents_beside_their_environments_alone(name):
  row = measure(name, "--core=lstm", "--seconds=0.5")
  assert (row["benchmark"], row["core"]) == (name, "lstm")
  assert 0 < row["updates_per_second"] < row["batches_per_second"]


@pytest.mark.parametrize("name", ["nth_farthest", "learn_to_execute"])
def test_rates(name):
  """Of a task that is drawn on the device, and of one that is read."""
  status, out, err = exit_of(
      training,
      *("--json", "--seconds=0.1", f"--programs={name}", "--core=lstm"),
      *("--hidden_size=3", "--mlp_sizes=4", "--batch_size=8"),
  )
  assert status == 0, err
  (row,) = json.loads(out)
  assert (row["benchmark"], row["core"]) == (name, "lstm")
  assert row["batch_size"] == 8
  assert row["updates_per_second"] > 0
  assert row["batches_per_second"] > 0


def test_products_of_an_update_are_counted():
  """An MLP's are 2 M K N forward, and as many for each gradient."""
  row = measure(
      "nth_farthest",
      *("--core=lstm", "--hidden_size=7", "--mlp_sizes=5", "--batch_size=2"),
      "--seconds=0",
  )
  features, steps = 11, 3  # 2 coordinates; label, m and n one-hot.
  # The input's gradient is nobody's, but XLA is to find that out.
  lstm = steps * 3 * 2 * 2 * (features + 7) * 4 * 7
  mlp = 3 * 2 * 2 * (7 * 5 + 5 * 3)
  assert row["gflop"] == pytest.approx(1e-9 * (lstm + mlp))
  assert "updates_per_second" not in row


def test_devices_share_the_work():
  """Each draws its own examples, and none works on those of another."""
  row = measure(
      "nth_farthest",
      *("--core=lstm", "--hidden_size=64", "--mlp_sizes=64"),
      *("--batch_size=64", "--parallel=jit", "--seconds=0"),
      num_devices=4,
  )
  assert 25 <= row["share"] < 30


def test_precision_is_that_of_the_program():
  policies = []
  for precision in ("bfloat16", "float32"):
    measure(
        "nth_farthest",
        *("--core=lstm", "--hidden_size=2", "--mlp_sizes=2", "--batch_size=2"),
        *("--seconds=0", f"--precision={precision}"),
    )
    policies.append(str(hk.mixed_precision.get_policy(hk.Linear)))
  # Parameters, computing, outputs.
  assert policies == ["p=full,c=bf16,o=full", "None"]
