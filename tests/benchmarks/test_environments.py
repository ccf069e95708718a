"""The benchmark of the environments, run as its users run it."""

import pytest

from tests.helpers.in_process import own_process


@pytest.fixture(scope="module")
def benchmark():
  with own_process("benchmarks.environments") as benchmark:
    yield benchmark


@pytest.mark.parametrize(
    "arguments, rows",
    [
        ([], 1),
        # The ways to begin episodes are found to play the same.
        pytest.param(["--resets", "--steps=70"], 4, marks=pytest.mark.slow),
    ],
)
def test_table(benchmark, arguments, rows):
  status, out, err = benchmark(
      *("--steps=3", "--env=box_world", "--num_envs=40", "--runs=1"),
      *arguments,
  )
  assert status == 0, err
  table = [line.split("  ") for line in out.splitlines()[2:]]
  assert [row[0] for row in table] == ["box_world"] * rows
  assert all(float(row[-1].replace(",", "")) > 0 for row in table)
