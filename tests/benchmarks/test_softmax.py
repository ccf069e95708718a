"""The benchmark of softmaxes, run as its users run it."""

from tests.helpers.programs import run


def test_table():
  done = run(
      "benchmarks.softmax",
      *("--words=200", "--steps=3", "--batch=2", "--size=64", "--rounds=1"),
  )
  assert (done.returncode, done.stderr) == (0, "")
  head, _, *rows = (line.split() for line in done.stdout.splitlines())
  table = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
  assert [*table] == ["dense", "recomputed", "chunked", "adaptive"]
  # The adaptive softmax has smaller embeddings for rarer words.
  parameters = [int(row["parameters"].replace(",", "")) for row in
                table.values()]  # fmt: skip
  full = 200 * 64 + 200
  assert parameters[:3] == [full] * 3
  assert parameters[3] < full
  assert {row["logits_bytes"] for row in table.values()} == {"4,800"}


def test_wrong_flag():
  done = run("benchmarks.softmax", "--words=3")
  assert (done.returncode, done.stderr.count("\n")) == (2, 1)
  assert "--words=3" in done.stderr
