"""The benchmark of softmaxes, run as its users run it."""

import pytest

from tests.helpers.in_process import own_process


@pytest.fixture(scope="module")
def benchmark():
  with own_process("benchmarks.softmax") as benchmark:
    yield benchmark


def test_table(benchmark):
  status, out, err = benchmark(
      "--words=200", "--steps=3", "--batch=2", "--size=64", "--rounds=1"
  )
  assert (status, err) == (0, "")
  head, _, *rows = (line.split() for line in out.splitlines())
  table = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
  assert [*table] == ["dense", "recomputed", "chunked", "adaptive"]
  # The adaptive softmax has smaller embeddings for rarer words.
  parameters = [int(row["parameters"].replace(",", "")) for row in
                table.values()]  # fmt: skip
  full = 200 * 64 + 200
  assert parameters[:3] == [full] * 3
  assert parameters[3] < full
  assert {row["logits_bytes"] for row in table.values()} == {"4,800"}


def test_wrong_flag(benchmark):
  status, out, err = benchmark("--words=3")
  assert (status, out, err.count("\n")) == (2, "", 1)
  assert "--words=3" in err
