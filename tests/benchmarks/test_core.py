"""The benchmark of the core: its columns and its counts; and flags of all."""

import json
import re

import haiku as hk
import jax
import pytest

from benchmarks import (
  core,
  language_model,
  learn_to_execute,
  operations,
  training,
)
from benchmarks.products import products
from tests.helpers.in_process import exit_of

# B, T, D, N, H, V and the layers of the MLP.
TINY = core.Shape(2, 3, 5, 2, 2, 4, 1)


def test_row(monkeypatch):
  monkeypatch.setitem(core.SHAPES, "A", TINY)
  paths = {"hk.dynamic_unroll": core.PATHS["hk.dynamic_unroll"]}
  monkeypatch.setattr(core, "PATHS", paths)
  status, out, err = exit_of(
      core, "--shapes=A", "--nogrowth", "--repetitions=1", "--json"
  )
  assert (status, err) == (0, "")
  (row,) = json.loads(out)
  assert list(row) == [
      "shape",
      "path",
      "forward_ms",
      "forward_backward_ms",
      "peak_bytes",
      "flops",
      "fraction_of_matmul",
  ]
  assert (row["shape"], row["path"]) == ("A", "hk.dynamic_unroll")
  assert all(row[name] > 0 for name in list(row)[2:])


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
  params = jax.eval_shape(run.init)
  jaxpr = jax.make_jaxpr(run.forward_fn)(params, run.inputs())
  counted = products(jaxpr.jaxpr).items()
  flops = sum(product.flops * n for product, n in counted)
  assert flops == TINY.steps * TINY.batch * example


def test_lstm_has_as_many_parameters():
  ours, lstm = (
      hk.data_structures.tree_size(
          jax.eval_shape(core.Program(core.SHAPES["B"], core.PATHS[path]).init)
      )
      for path in ("rmc.unroll", "hk.LSTM")
  )
  assert abs(lstm / ours - 1) < 0.01


@pytest.mark.parametrize(
    "benchmark, argument, message",
    [
        (core, "--shapes=A,Z", "core: .*--shapes.*Z.*must be among A, B"),
        (core, "--repetitions=0", "core: .*--repetitions=0"),
        (training, "--programs=chess", "training: .*--programs=chess"),
        (operations, "--shape=Z", "operations: .*--shape=Z"),
        (learn_to_execute, "now", "learn_to_execute: 'now' is not a flag"),
        (
            language_model,
            "--preset=lm_nothing",
            "language_model: .*--preset=lm_nothing: must be one of demo, ",
        ),
        (language_model, "--preset=base", "language_model: .*--preset=base"),
    ],
)
def test_wrong_flags(benchmark, argument, message):
  status, out, err = exit_of(benchmark, argument)
  assert (status, out, err.count("\n")) == (2, "", 1)
  assert re.match(message, err)
