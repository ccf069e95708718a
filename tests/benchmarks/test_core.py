"""The benchmark of the core: its columns, its counts, its flags."""

import json
import re
import subprocess
import sys

from absl import flags
from absl.testing import flagsaver
import haiku as hk
import jax
import pytest

from benchmarks import core
from benchmarks.products import products

# B, T, D, N, H, V and the layers of the MLP.
TINY = core.Shape(2, 3, 5, 2, 2, 4, 1)


def test_row():
  paths = {"hk.dynamic_unroll": core.PATHS["hk.dynamic_unroll"]}
  (row,) = core.measure("tiny", TINY, paths, repetitions=1)
  assert list(row) == [
      "shape",
      "path",
      "forward_ms",
      "forward_backward_ms",
      "peak_bytes",
      "flops",
      "fraction_of_matmul",
  ]
  assert row["shape"] == "tiny"
  assert row["path"] == "hk.dynamic_unroll"
  assert all(row[name] > 0 for name in list(row)[2:])
  json.dumps(row)


@pytest.mark.parametrize("path", ["rmc.unroll", "reference"])
def test_flops(path):
  """Counted by hand, in multiplications and additions of one step."""
  width, rows = 8, 3  # H * V, and N + 1.
  by_row = 2 * width * (3 * width)  # q, k, v
  mlp = 2 * width * width
  attended = 2 * 2 * rows * width  # Scores, and the mean of the values.
  gates = 2 * width * (2 * width)
  example = 2 * 5 * width + rows * by_row + gates + 2 * gates
  # The yardstick also attends from the row of the input and lets it through
  # the MLP.
  asking = rows if path == "reference" else 2
  example += asking * (attended + mlp)
  run = core.Program(TINY, core.PATHS[path])
  jaxpr = jax.make_jaxpr(run.forward_fn)(run.init(), run.inputs())
  counted = products(jaxpr.jaxpr).items()
  flops = sum(product.flops * n for product, n in counted)
  assert flops == TINY.steps * TINY.batch * example


def test_prints_rows_in_json(monkeypatch, capsys):
  monkeypatch.setitem(core.SHAPES, "A", TINY)
  paths = {"rmc.unroll": core.PATHS["rmc.unroll"]}
  monkeypatch.setattr(core, "PATHS", paths)
  with flagsaver.flagsaver():
    flags.FLAGS(
        ["core", "--shapes=A", "--nogrowth", "--repetitions=1", "--json"]
    )
    core.main()
  (row,) = json.loads(capsys.readouterr().out)
  assert (row["shape"], row["path"]) == ("A", "rmc.unroll")


def test_lstm_has_as_many_parameters():
  ours, lstm = (
      hk.data_structures.tree_size(
          jax.eval_shape(core.Program(core.SHAPES["B"], core.PATHS[path]).init)
      )
      for path in ("rmc.unroll", "hk.LSTM")
  )
  assert abs(lstm / ours - 1) < 0.01


@pytest.mark.parametrize(
    "program, argument, message",
    [
        ("core", "--shapes=A,Z", "core: .*--shapes.*Z.*must be among A, B"),
        ("core", "--repetitions=0", "core: .*--repetitions=0"),
        ("training", "--benchmark=chess", "training: .*--benchmark=chess"),
        ("operations", "--shape=Z", "operations: .*--shape=Z"),
        ("learn_to_execute", "now", "learn_to_execute: 'now' is not a flag"),
    ],
)
def test_wrong_flags(program, argument, message):
  done = _run(program, argument)
  assert done.returncode == 2
  assert done.stdout == ""
  assert done.stderr.count("\n") == 1
  assert re.match(message, done.stderr)


@pytest.mark.slow
def test_training():
  done = _run(
      *("training", "--json", "--seconds=0.1", "--benchmark=nth_farthest"),
      *("--core=lstm", "--hidden_size=3", "--mlp_sizes=4", "--batch_size=4"),
  )
  assert done.returncode == 0, done.stderr
  (row,) = json.loads(done.stdout)
  assert row["benchmark"] == "nth_farthest"
  assert (row["core"], row["batch_size"]) == ("lstm", 4)
  assert row["updates_per_second"] > 0
  assert row["batches_per_second"] > 0


def _run(program, *arguments):
  return subprocess.run(
      [sys.executable, "-m", f"benchmarks.{program}", *arguments],
      capture_output=True,
      text=True,
      timeout=240,
  )
