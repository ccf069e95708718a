"""The EntNet: a bank of LSTMs whose states are summed."""

import haiku as hk
import jax
import numpy as np
import pytest

from rmc.baselines import EntNet
from tests.helpers.small_cores import BATCH, apply, assert_close, draw_params


def inputs(*leading):
  draw = np.random.default_rng(0).normal(size=(*leading, 5))
  return draw.astype(np.float32)


def unroll(inputs):
  core = EntNet(num_cells=3, hidden_size=4)
  return hk.dynamic_unroll(core, inputs, core.initial_state(BATCH))


def test_is_the_sum_of_its_cells():
  """Each is Haiku's LSTM, with parameters of its own."""
  xs = inputs(4, BATCH)
  params = draw_params(unroll, xs)
  assert {name: bundle["w"].shape for name, bundle in params.items()} == {
      f"entnet/~/lstm_{j}/linear": (9, 16)
      for j in range(3)
  }
  outputs, state = apply(unroll, params, xs)
  assert outputs.shape == (4, BATCH, 4)

  def lstm(inputs):
    core = hk.LSTM(4, name="lstm")
    return hk.dynamic_unroll(core, inputs, core.initial_state(BATCH))

  total = np.zeros_like(outputs)
  for j in range(3):
    own = {"lstm/linear": params[f"entnet/~/lstm_{j}/linear"]}
    hidden, last = apply(lstm, own, xs)
    total += hidden
    assert_close(state[j], last)
  assert_close(np.asarray(outputs), total)


def test_initial_state():
  def start(batch_size):
    fn = hk.transform(lambda: EntNet(2, 3).initial_state(batch_size))
    return fn.apply({}, None)

  assert jax.tree.map(np.shape, start(BATCH)) == (((BATCH, 3),) * 2,) * 2
  assert jax.tree.map(np.shape, start(None)) == (((3,),) * 2,) * 2
  assert not any(np.any(x) for x in jax.tree.leaves(start(BATCH)))


@pytest.mark.parametrize("name", ["num_cells", "hidden_size"])
def test_wrong_arguments(name):
  arguments = {"num_cells": 2, "hidden_size": 3, name: 0}
  with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
    hk.transform(lambda: EntNet(**arguments)).apply({}, None)


def test_a_state_of_another_number_of_cells():
  def fn(inputs):
    return EntNet(3, 4)(inputs, EntNet(2, 4).initial_state(BATCH))

  with pytest.raises(ValueError, match="state must have 3 cells, got 2"):
    draw_params(fn, inputs(BATCH))


@pytest.mark.parametrize(
    "shape, dtype, batch_size, message",
    [
        ((3, 5), "float32", 2, r"batch size of the state, 2.*got \[3, 5\]"),
        ((5,), "float32", 2, r"shape \[B, ...\].*got \[5\]"),
        ((2, 5), "float32", None, r"shape \[D\].*got \[2, 5\]"),
        ((2, 5), "int32", 2, "floating type, got int32"),
    ],
)
def test_wrong_inputs(shape, dtype, batch_size, message):
  def fn(inputs):
    core = EntNet(2, 3)
    return core(inputs, core.initial_state(batch_size))

  with pytest.raises(ValueError, match=f"inputs must .*{message}"):
    hk.transform(fn).init(jax.random.key(0), np.ones(shape, dtype))
