"""A core over a sequence: the same numbers as so many steps, and options."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rmc
from rmc import baselines
from tests.helpers import jaxprs
from tests.helpers.small_cores import (
  BATCH,
  CASES,
  apply,
  assert_close,
  draw_params,
)

STEPS = 4
DEFAULT = CASES["default"]
RESETS = np.array(
    [[False, True], [False, False], [True, False], [False, False]]
)
LENGTHS = np.array([3, 1], np.int32)


class Counter(hk.RNNCore):
  """Adds its input to a count and puts out ten times that."""

  def __call__(self, inputs, state):
    state = state + inputs
    return 10 * state, state

  def initial_state(self, batch_size):
    return jnp.zeros([] if batch_size is None else [batch_size], jnp.int32)


class Wrapper(hk.RNNCore):
  """Passes on what lets `rmc.unroll` do work beforehand, and takes notes."""

  def __init__(self, core):
    super().__init__()
    self.core = core
    self.notes = []

  def __call__(self, inputs, state):
    raise AssertionError("to be stepped by advance")

  def initial_state(self, batch_size):
    return self.core.initial_state(batch_size)

  def precompute(self, inputs):
    self.notes.append(inputs.shape)
    return self.core.precompute(inputs)

  def advance(self, precomputed, state):
    output, state = self.core.advance(precomputed, state)
    return -output, state


def deep_rnn():
  """Layers of two kinds with skip connections, so with a nest of states."""
  return hk.deep_rnn_with_skip_connections(
      [hk.LSTM(3), rmc.RelationalMemory(2, 3)]
  )


CORES = {
    "rmc": DEFAULT.core,
    "rmc_blocks": CASES["blocks"].core,
    "rmc_matrix": CASES["matrix"].core,
    "lstm": lambda: hk.LSTM(3),
    "gru": lambda: hk.GRU(3),
    "deep_rnn": deep_rnn,
    "dnc": lambda: baselines.DNC(3, 3, 4, 2, num_reads=2, clip_value=0.5),
    "entnet": lambda: baselines.EntNet(2, 3),
}
# One of each kind of state.
NESTS = ["rmc", "rmc_matrix", "lstm", "deep_rnn", "dnc", "entnet"]


def inputs_for(name, *leading):
  return CASES["matrix" if name == "rmc_matrix" else "default"].inputs(*leading)


def unroll_of(make_core, way=rmc.unroll, batch_size=BATCH, **kwargs):
  """Returns a function that unrolls a core from its start, moved a little.

  No two entries are moved alike: a DNC goes by which slot is used least.
  """

  def move(x):
    by = jnp.linspace(0.1, 0.5, x.size, dtype=x.dtype)
    moved = x + jnp.reshape(by, x.shape)
    batch = () if batch_size is None else (batch_size,)
    return jnp.broadcast_to(moved, (*batch, *x.shape))

  def fn(inputs):
    core = make_core()
    start = jax.tree.map(move, core.initial_state(None))
    return way(core, inputs, start, **kwargs)

  return fn


def params_of(name):
  return draw_params(unroll_of(CORES[name]), inputs_for(name, STEPS, BATCH))


def run(name, inputs, way=rmc.unroll, **kwargs):
  """Unrolls a core of `CORES`; all runs share the parameters."""
  return apply(unroll_of(CORES[name], way, **kwargs), params_of(name), inputs)


@functools.cache
def plain(name):
  return run(name, inputs_for(name, STEPS, BATCH))


# The same numbers as Haiku's own.


@pytest.mark.parametrize("name", CORES)
def test_equals_dynamic_unroll(name):
  """Outputs, states after each step, and all gradients."""

  def everything(unroll):
    fn = unroll_of(CORES[name], unroll, return_all_states=True)

    def loss(params, inputs):
      outputs, states = hk.transform(fn).apply(params, None, inputs)
      total = sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(states))
      return total + jnp.sum(jnp.cos(outputs)), (outputs, states)

    grad = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    return jax.jit(grad)(params, inputs)

  with jax.enable_x64(True):
    inputs, params = inputs_for(name, 3, BATCH), params_of(name)
    ours, haikus = everything(rmc.unroll), everything(hk.dynamic_unroll)
  assert all(x.dtype == np.float64 for x in jax.tree.leaves(ours))
  assert_close(ours, haikus, atol=1e-10)


def test_gradient_of_the_initial_state():
  params, memory = DEFAULT.params(), DEFAULT.memory(BATCH)
  inputs = DEFAULT.inputs(2, BATCH)

  def gradient(unroll):
    def loss(memory):
      fn = hk.transform(lambda m: unroll(DEFAULT.core(), inputs, m))
      return jnp.sum(jnp.sin(fn.apply(params, None, memory)[0]))

    return jax.jit(jax.grad(loss))(memory)

  actual = gradient(rmc.unroll)
  assert np.abs(actual).max() > 0.01
  assert_close(actual, gradient(hk.dynamic_unroll))


@pytest.mark.parametrize("name", ["rmc", "rmc_matrix", "lstm", "deep_rnn"])
def test_batch_major(name):
  """Inputs, resets, outputs and all states; a final state has no time."""
  inputs = inputs_for(name, STEPS, BATCH)
  options = {"lengths": LENGTHS, "return_all_states": True}
  time_major = run(name, inputs, should_reset=RESETS, **options)
  batch_major = run(
      name,
      np.swapaxes(inputs, 0, 1),
      should_reset=RESETS.T,
      time_major=False,
      **options,
  )
  swapped = jax.tree.map(lambda x: np.swapaxes(x, 0, 1), batch_major)
  assert_close(swapped, time_major)


def test_final_state_of_batch_major():
  inputs = np.swapaxes(DEFAULT.inputs(STEPS, BATCH), 0, 1)
  outputs, state = run("rmc", inputs, time_major=False)
  assert_close((np.swapaxes(outputs, 0, 1), state), plain("rmc"))


@pytest.mark.parametrize("name", NESTS)
def test_without_a_batch(name):
  """One example alone is a row of the batch, lengths and resets included."""
  inputs = inputs_for(name, STEPS, BATCH)
  outputs, state = run(name, inputs, lengths=LENGTHS, should_reset=RESETS)
  for b in range(BATCH):
    actual = run(
        name,
        inputs[:, b],
        batch_size=None,
        lengths=LENGTHS[b],
        should_reset=RESETS[:, b],
    )
    expected = outputs[:, b], jax.tree.map(lambda x, b=b: x[b], state)
    assert_close(actual, expected)


@pytest.mark.parametrize("name", ["rmc", "lstm", "dnc", "entnet"])
@pytest.mark.parametrize(
    "option", [{"remat": True}, {"unroll": 2}, {"unroll": 3}], ids=str
)
def test_same_numbers(name, option):
  actual = run(name, inputs_for(name, STEPS, BATCH), **option)
  assert_close(actual, plain(name))


# Lengths and resets.


def count(inputs, start, **kwargs):
  fn = lambda x, s: rmc.unroll(Counter(), x, s, **kwargs)  # noqa: E731
  inputs, start = np.asarray(inputs, np.int32), np.asarray(start, np.int32)
  outputs, states = apply(fn, {}, inputs, start)
  return np.asarray(outputs).T.tolist(), np.asarray(states).T.tolist()


# Example 0 counts by 1 from 5, example 1 by 2 from 7.
BY = [[1, 2]] * STEPS
START = [5, 7]


def test_table():
  outputs, state = count(BY, START)
  assert outputs == [[60, 70, 80, 90], [90, 110, 130, 150]]
  assert state == [9, 15]


def test_table_of_all_states():
  _, states = count(BY, START, return_all_states=True)
  assert states == [[6, 7, 8, 9], [9, 11, 13, 15]]


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int8])
def test_table_of_lengths(dtype):
  lengths = np.array([3, 0], dtype)
  outputs, states = count(BY, START, lengths=lengths, return_all_states=True)
  assert outputs == [[60, 70, 80, 0], [0, 0, 0, 0]]
  assert states == [[6, 7, 8, 8], [7, 7, 7, 7]]


def test_lengths_beyond_the_end():
  assert count(BY, START, lengths=[STEPS, 99]) == count(BY, START)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_lengths_of_a_type_too_small_for_the_steps(dtype):
  """The steps are more than the type of the lengths can count."""
  steps = np.iinfo(dtype).max + 10
  _, state = count([[1, 1]] * steps, [0, 0], lengths=np.array([3, 9], dtype))
  assert state == [3, 9]


def test_table_of_resets():
  """A reset goes to the core's own start, 0, and before the step."""
  outputs, states = count(
      BY, START, should_reset=RESETS, return_all_states=True
  )
  assert outputs == [[60, 70, 10, 20], [20, 40, 60, 80]]
  assert states == [[6, 7, 1, 2], [2, 4, 6, 8]]


def test_table_of_lengths_and_resets():
  """The reset first: also past the length, where it is then carried over."""
  resets = RESETS.copy()
  resets[3] = True
  outputs, states = count(
      BY, START, lengths=[3, 2], should_reset=resets, return_all_states=True
  )
  assert outputs == [[60, 70, 10, 0], [20, 40, 0, 0]]
  assert states == [[6, 7, 1, 0], [2, 4, 4, 0]]


def test_resets_as_lists():
  expected = run("rmc", DEFAULT.inputs(STEPS, BATCH), should_reset=RESETS)
  outputs, state = run(
      "rmc",
      np.swapaxes(DEFAULT.inputs(STEPS, BATCH), 0, 1),
      should_reset=RESETS.T.tolist(),
      time_major=False,
  )
  assert_close((np.swapaxes(outputs, 0, 1), state), expected)


@pytest.mark.parametrize("name", ["rmc", "lstm", "deep_rnn", "dnc", "entnet"])
def test_lengths(name):
  """Each example ends as if its sequence had been cut there."""
  inputs = inputs_for(name, STEPS, BATCH)
  outputs, state = run(name, inputs, lengths=LENGTHS)
  all_outputs, all_states = run(name, inputs, return_all_states=True)
  for b, length in enumerate(LENGTHS):
    assert_close(outputs[:length, b], all_outputs[:length, b])
    np.testing.assert_array_equal(outputs[length:, b], 0)
    assert_close(
        jax.tree.map(lambda x, b=b: x[b], state),
        jax.tree.map(lambda x, t=length - 1, b=b: x[t, b], all_states),
    )


@pytest.mark.parametrize("name", NESTS)
def test_equals_reset_core(name):
  inputs = inputs_for(name, STEPS, BATCH)

  def with_reset_core(core, inputs, state, **kwargs):
    wrapped = hk.ResetCore(core)
    return hk.dynamic_unroll(wrapped, (inputs, RESETS), state, **kwargs)

  assert_close(
      run(name, inputs, should_reset=RESETS, return_all_states=True),
      run(name, inputs, with_reset_core, return_all_states=True),
  )


def test_reset_is_a_fresh_start_for_that_example_only():
  inputs, at = DEFAULT.inputs(STEPS, BATCH), 2
  resets = np.zeros((STEPS, BATCH), bool)
  resets[at, 0] = True
  outputs, state = run("rmc", inputs, should_reset=resets)

  def fresh(inputs):
    core = DEFAULT.core()
    return rmc.unroll(core, inputs, core.initial_state(BATCH))

  fresh_outputs, fresh_state = apply(fresh, params_of("rmc"), inputs[at:])
  undisturbed, other_state = plain("rmc")
  assert_close(outputs[:, 1], undisturbed[:, 1])
  assert_close(outputs[:at, 0], undisturbed[:at, 0])
  assert_close(outputs[at:, 0], fresh_outputs[:, 0])
  assert_close((state[0], state[1]), (fresh_state[0], other_state[1]))
  assert np.abs(outputs[at:, 0] - undisturbed[at:, 0]).max() > 0.01


def test_no_gradient_passes_a_reset_or_the_end():
  """What is before a reset and what is past the length do not matter."""
  params, at = params_of("rmc"), 2
  resets = np.zeros((STEPS, BATCH), bool)
  resets[at] = True
  lengths = np.full(BATCH, STEPS - 1, np.int32)

  def loss(inputs):
    fn = unroll_of(CORES["rmc"], should_reset=resets, lengths=lengths)
    outputs, state = hk.transform(fn).apply(params, None, inputs)
    return jnp.sum(jnp.sin(outputs[at:])) + jnp.sum(state)

  grad = jax.jit(jax.grad(loss))(DEFAULT.inputs(STEPS, BATCH))
  assert [bool(np.any(g)) for g in grad] == [False, False, True, False]


def test_resets_keep_the_type_of_the_state():
  """As `hk.ResetCore` does, and whatever the type of the core's own start."""

  def fn(inputs):
    core = DEFAULT.core()
    state = core.initial_state(BATCH).astype(jnp.bfloat16)
    return rmc.unroll(core, inputs, state, should_reset=RESETS)

  inputs = DEFAULT.inputs(STEPS, BATCH).astype(jnp.bfloat16)
  narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), DEFAULT.params())
  apply = hk.without_apply_rng(hk.transform(fn)).apply
  outputs, state = jax.eval_shape(apply, narrow, inputs)
  assert outputs.dtype == state.dtype == jnp.bfloat16


# Options of the loop, and work done beforehand.


def jaxpr_of(fn, inputs):
  params = draw_params(fn, inputs)
  apply = hk.without_apply_rng(hk.transform(fn)).apply
  return jax.make_jaxpr(apply)(params, inputs)


def test_unroll_reaches_the_loop():
  inputs = DEFAULT.inputs(STEPS, BATCH)
  for steps in (1, 2):
    jaxpr = jaxpr_of(unroll_of(CORES["rmc"], unroll=steps), inputs)
    assert f"unroll={steps}" in str(jaxpr)


@pytest.mark.parametrize("steps", [64, 61], ids=["square", "prime"])
def test_remat_saves_memory_and_keeps_the_gradients(steps):
  inputs, params = DEFAULT.inputs(steps, BATCH), params_of("rmc")

  def gradient(remat):
    fn = hk.transform(unroll_of(CORES["rmc"], remat=remat))

    def loss(params, inputs):
      return jnp.sum(jnp.sin(fn.apply(params, None, inputs)[0]))

    compiled = jax.jit(jax.grad(loss)).lower(params, inputs).compile()
    memory = compiled.memory_analysis().temp_size_in_bytes
    return compiled(params, inputs), memory

  kept, memory_kept = gradient(remat=False)
  anew, memory_anew = gradient(remat=True)
  assert_close(anew, kept, atol=1e-5)
  assert 3 * memory_anew < memory_kept


def test_remat_with_other_options():
  """In chunks of 2, 2 and 1 steps."""
  inputs = DEFAULT.inputs(5, BATCH)
  options = {
      "lengths": LENGTHS + 1,
      "should_reset": np.concatenate([RESETS, RESETS[:1]]),
      "return_all_states": True,
  }
  assert_close(
      run("rmc", inputs, remat=True, **options), run("rmc", inputs, **options)
  )


# The names of `jax.checkpoint` in a jaxpr, in older and in newer JAX.
_REMAT = ("remat2", "checkpoint")


@pytest.mark.parametrize("steps", [61, 62, 64])
def test_chunks_are_of_about_the_root_of_all_steps(steps):
  """Their number too, whatever divides the steps."""
  jaxpr = jaxpr_of(
      unroll_of(CORES["lstm"], remat=True), DEFAULT.inputs(steps, BATCH)
  )
  lengths = {
      equation.params["length"]
      for equation in jaxprs.equations(jaxpr.jaxpr)
      if equation.primitive.name == "scan"
  }
  assert max(lengths) <= steps**0.5 + 2


def unroll_function(core, *arguments, **options):
  """Unrolls a core that is hidden in a function."""
  return rmc.unroll(lambda x, state: core(x, state), *arguments, **options)


@pytest.mark.parametrize("way", [rmc.unroll, unroll_function])
@pytest.mark.parametrize("name", ["lstm", "rmc"])
def test_products_are_kept_for_the_backward_pass(name, way):
  """Nothing else is; with remat, nothing at all inside a chunk."""
  inputs = DEFAULT.inputs(STEPS, BATCH)
  for remat in (False, True):
    jaxpr = jaxpr_of(unroll_of(CORES[name], way, remat=remat), inputs)
    policies = [
        equation.params["policy"]
        for equation in jaxprs.equations(jaxpr.jaxpr)
        if equation.primitive.name in _REMAT
    ]
    assert jax.checkpoint_policies.dots_saveable in policies
    assert (None in policies) == remat


def shapes_in_loops(jaxpr):
  """Returns the shapes of all arrays that equations inside a loop see."""

  def walk(jaxpr, inside):
    for equation in jaxpr.eqns:
      # hk.remat hands all parameters on, also those that it does not use.
      if inside and equation.primitive.name not in _REMAT:
        for variable in (*equation.invars, *equation.outvars):
          yield variable.aval.shape
      deeper = inside or equation.primitive.name == "scan"
      for value in equation.params.values():
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns"):
          yield from walk(inner, deeper)

  return set(walk(jaxpr.jaxpr, False))


def test_input_work_is_done_beforehand():
  """Nothing inside the loop has the width of the input."""
  width = 29
  inputs = np.zeros((STEPS, BATCH, width), np.float32)
  for way, inside in ((rmc.unroll, False), (hk.dynamic_unroll, True)):
    shapes = shapes_in_loops(jaxpr_of(unroll_of(CORES["rmc"], way), inputs))
    assert len(shapes) > 5
    assert any(width in shape for shape in shapes) == inside


def test_export_for_any_length_and_batch():
  """Lowered once, a gradient is right for sizes that were symbols then."""
  steps, batch = jax.export.symbolic_shape("t, b")

  def loss(inputs):
    core = hk.LSTM(24)  # Large enough for its gradient to be made at the end.
    start = core.initial_state(inputs.shape[1])
    return jnp.sum(rmc.unroll(core, inputs, start)[0] ** 2)

  inputs = DEFAULT.inputs(STEPS, BATCH)
  params = draw_params(loss, inputs)
  transformed = hk.without_apply_rng(hk.transform(loss))
  grad = jax.jit(jax.grad(transformed.apply))
  symbols = jax.ShapeDtypeStruct((steps, batch, inputs.shape[-1]), np.float32)
  exported = jax.export.export(grad)(params, symbols)
  assert_close(exported.call(params, inputs), grad(params, inputs))


def test_wrapper_shares_the_work_done_beforehand():
  """It is asked once, about all steps, and never called."""
  notes = []

  def wrapped():
    wrapper = Wrapper(DEFAULT.core())
    wrapper.notes = notes
    return wrapper

  inputs = DEFAULT.inputs(STEPS, BATCH)
  outputs, state = plain("rmc")
  params = params_of("rmc")
  actual = apply(unroll_of(wrapped), params, inputs)
  assert_close(actual, (-outputs, state))
  assert notes == [(STEPS * BATCH, *DEFAULT.input_shape)]

  notes.clear()
  actual = apply(unroll_of(wrapped, batch_size=None), params, inputs[:, 1])
  assert_close(actual, (-outputs[:, 1], state[1]))
  assert notes == [(STEPS, *DEFAULT.input_shape)]


def test_function_in_place_of_a_core():
  """Outside a transform too."""

  def step(inputs, state):
    return {"sum": inputs["a"] + state}, state * inputs["b"]

  inputs = {
      "a": np.array([[1.0], [2.0], [3.0]], np.float32),
      "b": np.array([[2.0], [3.0], [4.0]], np.float32),
  }
  start = np.ones(1, np.float32)
  outputs, state = rmc.unroll(step, inputs, start, lengths=[2])
  np.testing.assert_array_equal(outputs["sum"], [[2], [4], [0]])
  np.testing.assert_array_equal(state, [6])


@pytest.mark.parametrize("remat", [False, True])
def test_haiku_state_and_randomness(remat):
  """A core may keep Haiku's state and draw anew at each step."""

  def step(inputs, state):
    calls = hk.get_state("calls", [], jnp.int32, init=jnp.zeros)
    hk.set_state("calls", calls + 1)
    noise = jax.random.uniform(hk.next_rng_key(), inputs.shape)
    return inputs + noise, state

  def fn(inputs):
    return rmc.unroll(step, inputs, jnp.zeros(BATCH), remat=remat)

  inputs = np.zeros((STEPS, BATCH), np.float32)
  transformed = hk.transform_with_state(fn)
  key = jax.random.key(0)
  _, state = transformed.init(key, inputs)
  state = jax.tree.map(jnp.zeros_like, state)
  (outputs, _), state = transformed.apply({}, state, key, inputs)
  assert jax.tree.leaves(state) == [STEPS]
  assert np.unique(outputs).size == STEPS * BATCH


# What is wrong with the arguments.


@pytest.mark.parametrize(
    "inputs, message",
    [
        (np.zeros((0, 2, 5)), r"inputs.*at least 1.*\(0, 2, 5\)"),
        (np.float32(1), r"inputs.*time axis.*\(\)"),
        ([np.zeros((2, 2)), np.zeros((3, 2))], r"inputs.*\(2, 2\), \(3, 2\)"),
        ((), r"inputs.*time axis.*\[\]"),
    ],
    ids=["no_steps", "scalar", "unequal", "empty"],
)
def test_wrong_inputs(inputs, message):
  with pytest.raises(ValueError, match=message):
    rmc.unroll(lambda inputs, state: (inputs, state), inputs, np.zeros(BATCH))


@pytest.mark.parametrize("one_step", [True, False])
@pytest.mark.parametrize("name", ["rmc", "rmc_matrix", "dnc", "entnet"])
def test_inputs_of_several_arrays(name, one_step):
  """As many as examples, so that NumPy could make one array of them."""
  leading = (BATCH,) if one_step else (STEPS, BATCH)
  parts = (inputs_for(name, *leading),) * BATCH

  def fn(parts):
    core = CORES[name]()
    state = core.initial_state(BATCH)
    return core(parts, state) if one_step else rmc.unroll(core, parts, state)

  with pytest.raises(ValueError, match="inputs must be one array, got a tuple"):
    hk.transform(fn).init(jax.random.key(0), parts)


def test_inputs_without_the_batch():
  message = r"\[T, B, ...\], as the state has a batch, got \[4\]"
  with pytest.raises(ValueError, match=message):
    draw_params(unroll_of(CORES["rmc"]), np.zeros(STEPS, np.float32))


@pytest.mark.parametrize(
    "should_reset, message",
    [
        (RESETS[:3], r"\[T, B\] with T = 4 .*got \[3, 2\]"),
        (RESETS.T, r"\[T, B\] with T = 4 .*got \[2, 4\]"),
        (RESETS[..., None], r"\[T, B\].*got \[4, 2, 1\]"),
        (np.bool_(True), r"\[T, B\].*got \[\]"),
        (RESETS.astype(np.int32), r"must be boolean, got int32"),
        (RESETS[:, :1], r"batch axis of every state.*got \[1\].*\[2, 3, 4\]"),
        (RESETS[:, [0, 1, 0]], r"batch axis of every state.*got \[3\]"),
    ],
    ids=["steps", "swapped", "rank", "scalar", "type", "one", "batch"],
)
def test_wrong_resets(should_reset, message):
  with pytest.raises(ValueError, match=f"should_reset.*{message}"):
    draw_params(
        unroll_of(CORES["rmc"], should_reset=should_reset),
        DEFAULT.inputs(STEPS, BATCH),
    )


@pytest.mark.parametrize(
    "lengths, message",
    [
        (np.array([1.0, 2.0], np.float32), r"integers.*got float32 of .*\[2\]"),
        (np.array([[1, 2]], np.int32), r"shape \[B\].*int32 of shape \[1, 2\]"),
        (np.array([True, False]), r"integers.*got bool"),
        (np.array([1], np.int32), r"batch axis of every state.*got \[1\]"),
        (np.array([1, 2, 3], np.int32), r"batch axis.*got \[3\] .*\[2, 12\]"),
    ],
    ids=["type", "rank", "bool", "one", "batch"],
)
def test_wrong_lengths(lengths, message):
  with pytest.raises(ValueError, match=f"lengths.*{message}"):
    draw_params(
        unroll_of(CORES["rmc"], lengths=lengths), DEFAULT.inputs(STEPS, BATCH)
    )


@pytest.mark.parametrize("name", ["rmc", "lstm", "gru", "deep_rnn"])
def test_resets_without_the_batch(name):
  """As many examples as steps: `[B]` is no `[T]`."""
  with pytest.raises(ValueError, match=r"should_reset.*batch axis.*got \[\]"):
    draw_params(
        unroll_of(CORES[name], should_reset=RESETS[:, 0]),
        inputs_for(name, STEPS, BATCH),
    )
  with pytest.raises(ValueError, match=r"time_major=False.*got \[4\]"):
    draw_params(
        unroll_of(CORES[name], should_reset=RESETS[:, 0], time_major=False),
        inputs_for(name, BATCH, STEPS),
    )


def test_lengths_without_a_batch():
  """As many slots as lengths."""
  with pytest.raises(ValueError, match=r"batch axis.*got \[3\] .*\[3, 4\]"):
    draw_params(
        unroll_of(
            CORES["rmc"], batch_size=None, lengths=np.array([1, 2, 3])
        ),
        DEFAULT.inputs(STEPS),
    )


def test_wrong_state():
  """The core's own complaint comes through."""
  with pytest.raises(ValueError, match="same batch size, got 2 and 3"):
    draw_params(
        unroll_of(CORES["rmc"], batch_size=3), DEFAULT.inputs(STEPS, BATCH)
    )
  memory = np.zeros((BATCH, 3, 5), np.float32)
  with pytest.raises(ValueError, match="memory must have shape"):
    draw_params(
        lambda x: rmc.unroll(DEFAULT.core(), x, memory),
        DEFAULT.inputs(STEPS, BATCH),
    )


def test_batch_major_without_a_batch():
  """Time and features would change places."""

  def fn(x):
    core = DEFAULT.core()
    return rmc.unroll(core, x, core.initial_state(None), time_major=False)

  with pytest.raises(ValueError, match="time_major=False needs a batch"):
    hk.transform(fn).init(jax.random.key(0), DEFAULT.inputs(STEPS, BATCH)[:, 0])
