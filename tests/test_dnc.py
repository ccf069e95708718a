"""The DNC: recorded vectors, invariants, and what is wrong with arguments."""

import itertools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rmc
from rmc.baselines import DNC, DNCState, dnc
from tests import golden_vectors
from tests.golden_vectors import assert_near
from tests.small_cores import apply, assert_close, draw_params, jit

# The layers of the original that are one layer here, in its order.
INTERFACE = (
    "write_vectors",
    "erase_vectors",
    "write_keys",
    "write_strengths",
    "allocation_gate",
    "write_gate",
    "read_keys",
    "read_strengths",
    "free_gate",
    "read_mode",
)
SMALL = {
    "output_size": 4,
    "hidden_size": 6,
    "memory_size": 5,
    "word_size": 3,
    "num_reads": 2,
    "num_writes": 2,
}
BATCH, STEPS, FEATURES = 3, 6, 5


def params_from_variables(variables):
  """Turns variables of the original into parameters of ours."""

  def interface(kind):
    parts = [variables[f"dnc/memory_access/{x}/{kind}"] for x in INTERFACE]
    return np.concatenate(parts, axis=-1)

  def linear(name):
    return {kind: variables[f"dnc/{name}{kind}"] for kind in "wb"}

  gates = {kind: variables[f"dnc/lstm/{kind}_gates"] for kind in "wb"}
  return {
      "dnc/~/lstm_0/linear": gates,
      "dnc/~/interface": {kind: interface(kind) for kind in "wb"},
      "dnc/~/output": linear("output_linear/"),
  }


def variables_from_params(params, like):
  """And back, with the shapes of the variables `like`."""
  variables = {}
  for kind in "wb":
    names = [f"dnc/memory_access/{name}/{kind}" for name in INTERFACE]
    ends = np.cumsum([like[name].shape[-1] for name in names])
    parts = np.split(params["dnc/~/interface"][kind], ends[:-1], axis=-1)
    variables |= dict(zip(names, parts, strict=True))
    lstm, output = params["dnc/~/lstm_0/linear"], params["dnc/~/output"]
    variables[f"dnc/lstm/{kind}_gates"] = lstm[kind]
    variables[f"dnc/output_linear/{kind}"] = output[kind]
  return variables


def state_from_pieces(pieces):
  """Turns the recorded pieces of a state into our state."""
  return DNCState(
      controller=(
          hk.LSTMState(pieces["controller_hidden"], pieces["controller_cell"]),
      ),
      memory=pieces["memory"],
      usage=pieces["usage"],
      link=pieces["link"],
      precedence=pieces["precedence_weights"],
      write_weights=pieces["write_weights"],
      read_weights=pieces["read_weights"],
      read_words=pieces["access_output"],
  )


def without_ties(states):
  """Leaves out what depends on the order of slots that rounding makes equal.

  After the first step of an empty memory most slots are equally little in use,
  and which of them a float32 takes first is chance.
  """
  first = jax.tree.map(lambda x: x[:, 0], states)
  return first, states.controller, states.read_words


def assert_states_near(actual, expected, atol, **options):
  for (path, x), y in zip(
      jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True
  ):
    assert_near(x, y, atol, jax.tree_util.keystr(path), **options)


@pytest.mark.parametrize(
    "name",
    golden_vectors.with_f64(
        ["dnc_one_write", "dnc_two_writes", "dnc_clip", "dnc_larger"]
    ),
)
def test_recorded_vectors(name):
  """Outputs, states after each step, and all gradients."""
  golden = golden_vectors.load(name)
  arrays, config = golden.arrays, golden.config
  arguments = {
      "output_size": config["output_size"],
      "clip_value": config["clip_value"],
      **config["access_config"],
      **config["controller_config"],
  }
  with golden.precision():

    def loss_fn(inputs, state):
      outputs, states = rmc.unroll(
          DNC(**arguments),
          inputs,
          state,
          time_major=False,
          return_all_states=True,
      )
      loss = jnp.mean(outputs * arrays["output_cotangent"])
      return loss, (outputs, states)

    state = state_from_pieces(golden.under("initial_state"))
    if config["start"] == "initial_state":
      start = hk.transform(
          lambda: DNC(**arguments).initial_state(config["batch"])
      ).apply({}, None)
      jax.tree.map(np.testing.assert_array_equal, start, state)

    transformed = hk.without_apply_rng(hk.transform(loss_fn)).apply
    grad_fn = jax.value_and_grad(transformed, argnums=(0, 1, 2), has_aux=True)
    variables = golden.under("var")
    (loss, (outputs, states)), grads = jit(grad_fn)(
        params_from_variables(variables), arrays["inputs"], state
    )

  atol = 1e-10 if golden.is_float64 else 5e-6
  grad_atol = 1e-9 if golden.is_float64 else 1e-5
  assert outputs.dtype == arrays["inputs"].dtype
  assert_near(loss, arrays["loss"], atol, "loss")
  assert_near(outputs, arrays["outputs"], atol, "outputs")
  expected = state_from_pieces(golden.under("step_state"))
  if name == "dnc_one_write":  # In float32.
    states, expected_states = map(without_ties, (states, expected))
    assert_states_near(states, expected_states, atol)
  else:
    assert_states_near(states, expected, atol)
  assert_states_near(
      jax.tree.map(lambda x: x[:, -1], expected),
      state_from_pieces(golden.under("final_state")),
      0,
  )
  relative = {"relative_to_largest": True}
  for variable, grad in variables_from_params(grads[0], variables).items():
    recorded = arrays[f"grad/{variable}"]
    assert_near(grad, recorded, grad_atol, variable, **relative)
  assert_near(
      grads[1], arrays["grad_inputs"], grad_atol, "grad_inputs", **relative
  )
  if config["start"] == "random":
    recorded = state_from_pieces(golden.under("grad_initial_state"))
    assert_states_near(grads[2], recorded, grad_atol, **relative)
    assert not np.any(grads[2].write_weights)
