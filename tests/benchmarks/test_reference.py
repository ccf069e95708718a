"""Gradients of every path are the same, in float64."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import reference
import rmc
from tests.helpers.small_cores import BATCH, case, draw_params

STEPS = 3
RESETS = np.array([[False, True], [False, False], [True, False]])
LENGTHS = np.array([3, 2], np.int32)

CASES = {
    "blocks": case(
        5, num_heads=2, num_blocks=3, key_size=3, attention_mlp_layers=3
    ),
    # Wide enough for the gradients of its weights to be made after the loop.
    "one_slot": case(5, mem_slots=1, head_size=12, num_heads=2),
    "matrix": case(2, 5, num_heads=2, treat_input_as_matrix=True),
    "matrix_blocks": case(2, 5, num_blocks=2, treat_input_as_matrix=True),
}


def ours(make_core, inputs, state, masked):
  options = {}
  if masked:
    options = {"lengths": LENGTHS, "should_reset": RESETS}
  return rmc.unroll(make_core(), inputs, state, **options)


def plainly(make_core, inputs, state, masked):
  """Steps with `hk.dynamic_unroll`, and resets and ends by `where`."""
  core = make_core()

  def step(inputs, state):
    inputs, reset, running = inputs
    start = core.initial_state(BATCH)
    state = jnp.where(reset[:, None, None], start, state)
    output, next_state = core(inputs, state)
    output = jnp.where(running[:, None], output, 0.0)
    return output, jnp.where(running[:, None, None], next_state, state)

  resets = RESETS if masked else np.zeros_like(RESETS)
  running = np.arange(STEPS)[:, None] < (LENGTHS if masked else STEPS)
  running = np.broadcast_to(running, RESETS.shape)
  return hk.dynamic_unroll(step, (inputs, resets, running), state)


@pytest.mark.parametrize(
    "name, masked",
    [
        ("blocks", False),
        ("one_slot", True),
        ("matrix", False),
        ("matrix_blocks", True),
    ],
)
def test_gradients_agree(name, masked):
  """Of the parameters, the inputs and the initial state."""
  config = CASES[name]

  def gradients(unroll, make_core):
    def fn(inputs, state):
      outputs, states = unroll(make_core, inputs, state, masked)
      return jnp.sum(jnp.sin(outputs)) + jnp.sum(jnp.cos(states))

    loss = hk.without_apply_rng(hk.transform(fn)).apply
    return jax.jit(jax.grad(loss, (0, 1, 2)))(params, inputs, state)

  with jax.enable_x64(True):
    inputs, state = config.inputs(STEPS, BATCH), config.memory(BATCH)
    params = draw_params(
        lambda x, state: config.core()(x, state), inputs[0], state
    )
    expected = gradients(plainly, config.core)
    others = [gradients(ours, config.core)]
    if not name.startswith("matrix"):  # The yardstick takes one row.
      others.append(
          gradients(
              plainly, lambda: reference.ReferenceCore(**config.arguments)
          )
      )
  for actual in others:
    jax.tree.map(_assert_near, actual, expected)


def _assert_near(actual, expected):
  """To 1e-10 of the largest entry."""
  assert actual.dtype == np.float64
  largest = np.max(np.abs(expected))
  assert largest > 1e-3
  np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-10 * largest)
