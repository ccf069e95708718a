"""Properties of the core, and an independent reckoning of its formula."""

import functools
import json
import re

import haiku as hk
import jax
import jax.numpy as jnp
import jmp
import numpy as np
import pytest

import rmc
from tests.helpers import make_param_tree, small_cores
from tests.helpers.small_cores import (
    BATCH,
    CASES,
    Case,
    apply,
    assert_close,
    case,
    draw_params,
)

DEFAULT = CASES["default"]
MATRIX = CASES["matrix"]

every_case = pytest.mark.parametrize("name", CASES)


def call(case, **kwargs):
  return lambda x, memory: case.core()(x, memory, **kwargs)


def step(case, **kwargs):
  return lambda x, memory: case.core().step(x, memory, **kwargs)


def advance(case, **kwargs):
  def fn(x, memory):
    core = case.core()
    return core.advance(core.precompute(x, **kwargs), memory)

  return fn


def changed(case, **arguments):
  return Case(case.arguments | arguments, case.input_shape)


# The formula, read literally.


def layer_norm(x, variables, name):
  mean = x.mean(-1, keepdims=True)
  variance = ((x - mean) ** 2).mean(-1, keepdims=True)
  x = (x - mean) / np.sqrt(variance + 1e-5)
  return x * variables[f"{name}/gamma"] + variables[f"{name}/beta"]


def linear(x, variables, name):
  return x @ variables[f"{name}/w"] + variables[f"{name}/b"]


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def literal_step(
    variables,
    inputs,
    memory,
    *,
    mem_slots,
    head_size,
    num_heads=1,
    num_blocks=1,
    forget_bias=1.0,
    input_bias=0.0,
    gate_style="unit",
    attention_mlp_layers=2,
    key_size=None,
    treat_input_as_matrix=False,
):
  """One step of one example with nothing spared, in NumPy.

  The input's rows are rows like the memory's from first to last: each is a
  query in every block and goes through every MLP, and they are dropped only
  at the very end. One head, one row, one key at a time where it is about order
  and layout.

  Variables go by Sonnet's names without the module's, and the keywords are the
  core's. Returns the next memory, both gates, and for each block the attention
  weights of all rows, `[H, N + n, N + n]`.
  """
  key_size = key_size or head_size
  num_rows = inputs.shape[0] if treat_input_as_matrix else 1
  projected = linear(inputs.reshape(num_rows, -1), variables, "linear")
  rows = np.concatenate([memory, projected])
  total = mem_slots + num_rows
  all_weights, norm = [], 0

  def next_norm(x):
    nonlocal norm
    name = f"layer_norm_{norm}" if norm else "layer_norm"
    norm += 1
    return layer_norm(x, variables, name)

  for block in range(num_blocks):
    qkv = next_norm(linear(rows, variables, f"linear_{block + 1}"))
    attended, weights = [], np.zeros((num_heads, total, total))
    per_head = 2 * key_size + head_size
    for h in range(num_heads):
      of_head = qkv[:, h * per_head : (h + 1) * per_head]
      query = of_head[:, :key_size] / np.sqrt(key_size)
      key = of_head[:, key_size : 2 * key_size]
      value = of_head[:, 2 * key_size :]
      for i in range(total):
        exponentials = np.exp([query[i] @ key[j] for j in range(total)])
        weights[h, i] = exponentials / exponentials.sum()
      attended.append(weights[h] @ value)
    rows = next_norm(rows + np.concatenate(attended, axis=1))
    hidden = rows
    for layer in range(attention_mlp_layers):
      hidden = linear(hidden, variables, f"mlp/linear_{layer}")
      if layer < attention_mlp_layers - 1:
        hidden = np.maximum(hidden, 0)
    rows = next_norm(hidden + rows)
    all_weights.append(weights)

  attended = rows[:mem_slots]
  if gate_style is None:
    return attended, None, None, all_weights
  of_inputs, of_memory = f"linear_{num_blocks + 1}", f"linear_{num_blocks + 2}"
  gates = np.stack([
      linear(np.tanh(slot), variables, of_memory)
      + linear(projected.ravel(), variables, of_inputs)
      for slot in memory
  ])
  half = gates.shape[1] // 2
  assert half == (1 if gate_style == "memory" else head_size * num_heads)
  input_gate = sigmoid(gates[:, :half] + input_bias)
  forget_gate = sigmoid(gates[:, half:] + forget_bias)
  next_memory = input_gate * np.tanh(attended) + forget_gate * memory
  return next_memory, input_gate, forget_gate, all_weights


def random_case(seed):
  rng = np.random.default_rng(seed)
  as_matrix = bool(rng.integers(2))
  rows = [int(rng.integers(1, 4))] if as_matrix else []
  return case(
      *rows,
      *(int(n) for n in rng.integers(1, 5, size=rng.integers(1, 3))),
      mem_slots=int(rng.integers(1, 6)),
      head_size=int(rng.integers(2, 6)),
      num_heads=int(rng.integers(1, 4)),
      num_blocks=int(rng.integers(1, 4)),
      forget_bias=float(rng.normal()),
      input_bias=float(rng.normal()),
      gate_style=["unit", "memory", None][rng.integers(3)],
      attention_mlp_layers=int(rng.integers(1, 4)),
      key_size=[None, 0, 1, 4, 7][rng.integers(5)],
      treat_input_as_matrix=as_matrix,
  )


LITERAL_CASES = CASES | {f"random_{i}": random_case(i) for i in range(10)}


def test_random_cases_vary():
  arguments = [random_case(i).arguments for i in range(10)]
  assert {a["gate_style"] for a in arguments} == {"unit", "memory", None}
  assert {a["num_blocks"] for a in arguments} == {1, 2, 3}
  assert {a["treat_input_as_matrix"] for a in arguments} == {False, True}


@pytest.mark.parametrize("name", LITERAL_CASES)
def test_formula(name):
  case = LITERAL_CASES[name]
  with jax.enable_x64(True):
    params = case.params()
    inputs, memory = case.inputs(BATCH), case.memory(BATCH)
    output, next_memory, info = apply(step(case), params, inputs, memory)
    variables = rmc.sonnet.variables_from_params(params, **case.arguments)
  variables = {
      key.removeprefix("relational_memory/"): value
      for key, value in variables.items()
  }

  def near(actual, expected):
    assert actual.dtype == expected.dtype == np.float64
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-10)

  for b in range(BATCH):
    expected, input_gate, forget_gate, weights = literal_step(
        variables, inputs[b], memory[b], **case.arguments
    )
    near(next_memory[b], expected)
    near(output[b], expected.ravel())
    for actual, gate in (
        (info.input_gate, input_gate),
        (info.forget_gate, forget_gate),
    ):
      if gate is None:
        assert actual is None
      else:
        near(actual[b], gate)
    assert len(info.attention_weights) == len(weights)
    for actual, of_all_rows in zip(
        info.attention_weights, weights, strict=True
    ):
      near(actual[b], of_all_rows[:, : case.arguments["mem_slots"]])


# Arguments and what is wrong with them.


@pytest.mark.parametrize(
    "argument, value, allowed",
    [
        ("mem_slots", 0, "at least 1"),
        ("mem_slots", -3, "at least 1"),
        ("head_size", 0, "at least 1"),
        ("num_heads", 0, "at least 1"),
        ("num_blocks", 0, "at least 1"),
        ("attention_mlp_layers", 0, "at least 1"),
        ("key_size", -1, "at least 0"),
        ("gate_style", "units", "('unit', 'memory', None)"),
        ("gate_style", "", "('unit', 'memory', None)"),
    ],
)
def test_wrong_argument(argument, value, allowed):
  with pytest.raises(ValueError) as error:
    apply(lambda: changed(DEFAULT, **{argument: value}).core(), {})
  for part in (argument, allowed, repr(value)):
    assert part in str(error.value)


@pytest.mark.parametrize("take_step", [call, step, advance])
@pytest.mark.parametrize(
    "shape",
    [(BATCH, 4, 4), (BATCH, 3, 5), (3, 3), (BATCH, 12), (12,), (1, 2, 3, 4)],
    ids=str,
)
def test_wrong_memory(take_step, shape):
  with pytest.raises(ValueError) as error:
    inputs = DEFAULT.inputs(BATCH)
    draw_params(take_step(DEFAULT), inputs, np.zeros(shape, np.float32))
  for part in ("memory must have shape [B, 3, 4]", f"got {list(shape)}"):
    assert part in str(error.value)


@pytest.mark.parametrize("take_step", [call, step, advance])
@pytest.mark.parametrize(
    "case, shape, message",
    [
        (DEFAULT, (BATCH,), r"\[B, \.\.\.\].* at least 2 .*got 1: \[2\]"),
        (MATRIX, (BATCH, 5), r"\[B, n, \.\.\.\].* at least 3.*got 2: \[2, 5\]"),
        (MATRIX, (BATCH, 0, 5), r"at least 1 row .*got shape \[2, 0, 5\]"),
        (MATRIX, (BATCH, 2, 0), r"at least 1 .*feature.*got shape \[2, 2, 0\]"),
        (DEFAULT, (BATCH, 0), r"at least 1 .*feature.*got shape \[2, 0\]"),
        (DEFAULT, (3, 5), r"inputs and memory .*same batch size, got 3 and 2"),
    ],
    ids=str,
)
def test_wrong_input_shape(take_step, case, shape, message):
  with pytest.raises(ValueError, match=message):
    inputs = np.zeros(shape, np.float32)
    draw_params(take_step(case), inputs, case.memory(BATCH))


@pytest.mark.parametrize("take_step", [call, step, advance])
@pytest.mark.parametrize("dtype", [np.int32, np.uint8, bool, np.complex64])
def test_wrong_input_type(take_step, dtype):
  with pytest.raises(
      ValueError, match=f"inputs must be .*floating.*got {np.dtype(dtype)}"
  ):
    inputs = np.zeros((BATCH, 5), dtype)
    draw_params(take_step(DEFAULT), inputs, DEFAULT.memory(BATCH))


def test_wrong_unbatched_shapes():
  """Without a batch the errors are the same."""
  with pytest.raises(ValueError, match="at least 3 axes"):
    draw_params(call(MATRIX), np.zeros(5, np.float32), MATRIX.memory())
  with pytest.raises(ValueError, match="at least 2 axes"):
    draw_params(call(DEFAULT), np.float32(1), DEFAULT.memory())


# The first state and the first parameters.


@pytest.mark.parametrize(
    "mem_slots, head_size, num_heads",
    [(6, 3, 2), (3, 5, 1), (5, 1, 3), (1, 2, 2)],
    ids=["identity", "padded", "truncated", "one_slot"],
)
def test_initial_state(mem_slots, head_size, num_heads):
  width = head_size * num_heads
  expected = np.zeros((mem_slots, width), np.float32)
  for i in range(min(mem_slots, width)):
    expected[i, i] = 1

  def states():
    core = rmc.RelationalMemory(mem_slots, head_size, num_heads)
    return core.initial_state(None), core.initial_state(3)

  unbatched, batched = apply(states, {})
  np.testing.assert_array_equal(unbatched, expected)
  np.testing.assert_array_equal(batched, np.stack([expected] * 3))
  assert unbatched.dtype == batched.dtype == np.float32


def test_initialisers():
  """Sonnet's: normal of 1/sqrt(fan in), cut at two standard deviations."""
  case_ = case(
      2,
      40,
      head_size=32,
      num_heads=2,
      num_blocks=2,
      treat_input_as_matrix=True,
  )
  fan_in = {"input_projection": 40, "input_gates": 2 * 64}
  init = jax.jit(hk.transform(call(case_)).init)
  params = init(jax.random.key(3), case_.inputs(BATCH), case_.memory(BATCH))
  weights = 0
  for module, bundle in params.items():
    for name, value in bundle.items():
      value = np.asarray(value)
      if name == "w":
        weights += 1
        stddev = fan_in.get(module.split("/")[-1], 64) ** -0.5
        assert value.shape[0] * stddev**2 == pytest.approx(1)
        # Cutting at 2 leaves 0.8796 of the standard deviation.
        assert value.std() == pytest.approx(0.8796 * stddev, rel=0.05)
        assert abs(value.mean()) < 0.06 * stddev
        assert 1.9 * stddev < np.abs(value).max() <= 2 * stddev * (1 + 1e-6)
      else:
        expected = {"b": 0, "scale": 1, "offset": 0}[name]
        np.testing.assert_array_equal(value, expected)
  assert weights == 7


@every_case
def test_parameters(name):
  """However a step is taken, the tree of parameters is the recorded one."""
  case = CASES[name]
  golden = json.loads(make_param_tree.PATH.read_text())[name]
  x, memory = case.inputs(BATCH), case.memory(BATCH)
  xs, resets = case.inputs(3, BATCH), np.zeros((3, BATCH), bool)

  def unrolled(unroll, wrap=lambda core: core, **kwargs):
    return lambda xs, memory: unroll(wrap(case.core()), xs, memory, **kwargs)

  assert make_param_tree.shapes(call(case), x, memory) == golden
  assert make_param_tree.shapes(step(case), x, memory) == golden
  assert make_param_tree.shapes(advance(case), x, memory) == golden
  for fn in (
      unrolled(hk.dynamic_unroll),
      unrolled(hk.dynamic_unroll, hk.remat),
      unrolled(hk.static_unroll),
      unrolled(rmc.unroll),
      unrolled(rmc.unroll, remat=True),
      unrolled(rmc.unroll, should_reset=resets),
  ):
    assert make_param_tree.shapes(fn, xs, memory) == golden
  fn = unrolled(hk.dynamic_unroll, hk.ResetCore)
  assert make_param_tree.shapes(fn, (xs, resets), memory) == golden


def test_all_parameter_trees_are_recorded():
  golden = json.loads(make_param_tree.PATH.read_text())
  networks = {"sequence_classifier", "actor_critic"}
  assert set(golden) == set(CASES) | networks


def test_name():
  def fn(x, memory):
    return rmc.RelationalMemory(3, 4, name="core")(x, memory)

  params = draw_params(fn, DEFAULT.inputs(BATCH), DEFAULT.memory(BATCH))
  assert all(module.startswith("core/") for module in params)


# One step, several ways.


@pytest.mark.parametrize("name", ["blocks", "memory_gate", "no_gate", "matrix"])
def test_ways_agree(name):
  """A call, `step`, `advance`; with a batch and row by row."""
  case = CASES[name]
  params, x, memory = case.params(), case.inputs(BATCH), case.memory(BATCH)

  called = apply(call(case), params, x, memory)
  assert_close(apply(advance(case), params, x, memory), called)
  *stepped, info = apply(step(case), params, x, memory)
  assert_close(tuple(stepped), called)
  output, next_memory = called
  np.testing.assert_array_equal(output.reshape(memory.shape), next_memory)

  def unbatched(x, memory):
    core = case.core()
    precomputed = jax.tree.map(lambda x: x[0], core.precompute(x[None]))
    return (
        core(x, memory),
        core.advance(precomputed, memory),
        core.step(x, memory),
        rmc.unroll(core, x[None], memory),
    )

  row = jax.tree.map(lambda x: x[1], (called, info))
  called, advanced, stepped, unrolled = apply(
      unbatched, params, x[1], memory[1]
  )
  assert_close(called, row[0])
  assert_close(advanced, row[0])
  assert_close((stepped[:2], stepped[2]), row)
  assert_close((unrolled[0][0], unrolled[1]), row[0])


def test_numpy_inputs():
  x, memory = DEFAULT.inputs(BATCH), DEFAULT.memory(BATCH)
  params = DEFAULT.params()
  without_jit = hk.without_apply_rng(hk.transform(call(DEFAULT))).apply
  from_numpy = without_jit(params, x, memory)
  assert isinstance(x, np.ndarray)
  from_jax = without_jit(params, jnp.asarray(x), jnp.asarray(memory))
  assert_close(from_numpy, from_jax, atol=0)
  assert_close(from_numpy, apply(call(DEFAULT), params, x, memory))


@pytest.mark.parametrize("take_step", [call, step, advance])
def test_matrix_by_call(take_step):
  """The call overrules the constructor, both ways."""
  as_vector = changed(MATRIX, treat_input_as_matrix=False)
  x, memory = MATRIX.inputs(BATCH), MATRIX.memory(BATCH)
  for made, as_matrix, same in (
      (as_vector, True, MATRIX),
      (MATRIX, False, as_vector),
      (MATRIX, None, MATRIX),
      (as_vector, None, as_vector),
  ):
    params = same.params()
    expected = apply(take_step(same), params, x, memory)
    by_call = take_step(made, treat_input_as_matrix=as_matrix)
    assert_close(apply(by_call, params, x, memory), expected, atol=0)


def test_extra_dims_are_flattened():
  """Row by row, in the order of memory; a matrix keeps its rows."""
  memory = DEFAULT.memory(BATCH)
  for shape, flat, as_matrix in (
      ((2, 3, 2), (12,), False),
      ((2, 3, 2), (2, 6), True),
  ):
    whole = case(*shape, treat_input_as_matrix=as_matrix)
    flattened = Case(whole.arguments, flat)
    x = whole.inputs(BATCH)
    params = flattened.params()
    expected = apply(call(flattened), params, x.reshape(BATCH, *flat), memory)
    assert_close(apply(call(whole), params, x, memory), expected, atol=0)


@pytest.mark.parametrize("key_size", [None, 0])
def test_key_size_of_head_size(key_size):
  explicit = changed(DEFAULT, key_size=DEFAULT.arguments["head_size"])
  params, x = explicit.params(), DEFAULT.inputs(BATCH)
  memory = DEFAULT.memory(BATCH)
  assert_close(
      apply(call(changed(DEFAULT, key_size=key_size)), params, x, memory),
      apply(call(explicit), params, x, memory),
      atol=0,
  )


# Gates and attention.


@pytest.mark.parametrize(
    "name", ["default", "blocks", "memory_gate", "no_gate", "matrix_blocks"]
)
def test_info(name):
  """Weights are distributions; the gates make up the next memory."""
  case = CASES[name]
  arguments = case.arguments
  params, x, memory = case.params(), case.inputs(BATCH), case.memory(BATCH)
  _, next_memory, info = apply(step(case), params, x, memory)

  slots, heads = arguments["mem_slots"], arguments.get("num_heads", 1)
  as_matrix = arguments.get("treat_input_as_matrix")
  rows = case.input_shape[0] if as_matrix else 1
  assert isinstance(info, rmc.StepInfo)
  assert len(info.attention_weights) == arguments.get("num_blocks", 1)
  for weights in info.attention_weights:
    assert weights.shape == (BATCH, heads, slots, slots + rows)
    assert np.min(weights) > 0
    assert_close(weights.sum(-1), np.ones(weights.shape[:3], np.float32))

  ungated = changed(case, gate_style=None)
  without_gates = {k: v for k, v in params.items() if "_gates" not in k}
  _, attended = apply(call(ungated), without_gates, x, memory)
  gate_style = arguments.get("gate_style", "unit")
  if gate_style is None:
    assert info.input_gate is None
    assert info.forget_gate is None
    assert_close(attended, next_memory)
  else:
    size = 1 if gate_style == "memory" else memory.shape[-1]
    assert info.input_gate.shape == (BATCH, slots, size)
    assert info.forget_gate.shape == (BATCH, slots, size)
    taken = np.asarray(info.input_gate) * np.tanh(attended)
    kept = np.asarray(info.forget_gate) * memory
    assert_close(taken + kept, np.asarray(next_memory))


@pytest.mark.parametrize("gate_style", ["unit", "memory"])
def test_extreme_biases(gate_style):
  """Gates wide open or shut: all is kept, or all is new."""
  params = changed(DEFAULT, gate_style=gate_style).params()
  x, memory = DEFAULT.inputs(BATCH), DEFAULT.memory(BATCH)

  def next_memory(input_bias, forget_bias):
    biased = changed(
        DEFAULT,
        gate_style=gate_style,
        input_bias=input_bias,
        forget_bias=forget_bias,
    )
    return np.asarray(apply(call(biased), params, x, memory)[1])

  ungated = changed(DEFAULT, gate_style=None)
  without_gates = {k: v for k, v in params.items() if "_gates" not in k}
  attended = apply(call(ungated), without_gates, x, memory)[1]
  taken = np.tanh(attended)
  assert_close(next_memory(-50.0, 50.0), memory)
  assert_close(next_memory(50.0, -50.0), taken)


@pytest.mark.parametrize("argument", ["input_bias", "forget_bias"])
def test_bias_adds_to_the_layer_bias(argument):
  """The constant does what a larger bias of the gates' layer does."""
  params, x = DEFAULT.params(), DEFAULT.inputs(BATCH)
  memory = DEFAULT.memory(BATCH)
  plain = changed(DEFAULT, input_bias=0.0, forget_bias=0.0)
  expected = apply(call(changed(plain, **{argument: 0.7})), params, x, memory)
  layer = "relational_memory/~/memory_gates"
  bias = params[layer]["b"].copy()
  half = bias.size // 2
  bias[:half] += np.float32(0.7 * (argument == "input_bias"))
  bias[half:] += np.float32(0.7 * (argument == "forget_bias"))
  params[layer] = params[layer] | {"b": bias}
  assert_close(apply(call(plain), params, x, memory), expected)


def test_default_biases():
  explicit = changed(DEFAULT, forget_bias=1.0, input_bias=0.0)
  params, x = DEFAULT.params(), DEFAULT.inputs(BATCH)
  memory = DEFAULT.memory(BATCH)
  assert_close(
      apply(call(DEFAULT), params, x, memory),
      apply(call(explicit), params, x, memory),
      atol=0,
  )


@pytest.mark.parametrize("name", ["blocks", "memory_gate", "no_gate", "matrix"])
def test_slots_are_equal(name):
  """Another order of the slots before gives another order after, no more."""
  case, order = CASES[name], np.array([2, 0, 1])
  params, x, memory = case.params(), case.inputs(BATCH), case.memory(BATCH)
  _, next_memory = apply(call(case), params, x, memory)
  _, permuted = apply(call(case), params, x, memory[:, order])
  assert_close(permuted, next_memory[:, order])


def test_rows_of_a_matrix_are_equal_without_gates():
  ungated = changed(CASES["matrix_blocks"], gate_style=None)
  params, memory = ungated.params(), ungated.memory(BATCH)
  x = ungated.inputs(BATCH)
  assert_close(
      apply(call(ungated), params, x[:, np.array([1, 2, 0])], memory),
      apply(call(ungated), params, x, memory),
  )


def test_examples_do_not_mix():
  params, x = DEFAULT.params(), DEFAULT.inputs(3)
  memory = DEFAULT.memory(3)
  before, _ = apply(call(DEFAULT), params, x, memory)
  # Not in place: JAX may read a NumPy array after the call has returned.
  changed_one = np.array([0, 1, 0], x.dtype)
  x = x + changed_one[:, None]
  memory = memory - changed_one[:, None, None]
  after, _ = apply(call(DEFAULT), params, x, memory)
  assert_close(after[::2], before[::2], atol=0)
  assert np.all(np.abs(after[1] - before[1]).max() > 0.1)


# What a step costs.


def stripped_step(params, x, memory, num_heads, key_size):
  """One block with gates for each unit and nothing that is not needed."""
  layers = {name.split("/~/", 1)[1]: p for name, p in params.items()}

  def parameter(name, x):
    layer, name = name.split(":")
    return jnp.broadcast_to(layers[layer][name], x.shape)

  def linear(name, x):
    x = jnp.dot(x, layers[name]["w"])
    return x + parameter(f"{name}:b", x)

  def norm(name, x):
    mean = jnp.mean(x, -1, keepdims=True)
    root = jax.lax.rsqrt(jnp.var(x, -1, keepdims=True) + 1e-5)
    x = parameter(f"{name}:scale", x) * root * (x - mean)
    return x + parameter(f"{name}:offset", x)

  def heads(rows):
    qkv = norm("qkv_norm_0", linear("qkv_0", rows))
    qkv = jnp.reshape(qkv, (*qkv.shape[:2], num_heads, -1))
    return jnp.split(qkv, [key_size, 2 * key_size], -1)

  row = linear("input_projection", x)[:, None]
  query, key, value = heads(memory)
  _, key_of_row, value_of_row = heads(row)
  key = jnp.concatenate([key, key_of_row], 1)
  value = jnp.concatenate([value, value_of_row], 1)
  logits = jnp.einsum("bqhk,brhk->bhqr", query * key_size**-0.5, key)
  read = jnp.einsum("bhqr,brhv->bqhv", jax.nn.softmax(logits), value)
  slots = norm("attention_norm_0", memory + jnp.reshape(read, memory.shape))
  hidden = jax.nn.relu(linear("mlp/~/linear_0", slots))
  slots = norm("mlp_norm_0", linear("mlp/~/linear_1", hidden) + slots)
  gates = linear("memory_gates", jnp.tanh(memory))
  gates += linear("input_gates", row[:, 0])[:, None]
  take, keep = jnp.split(gates, 2, -1)
  take, keep = jax.nn.sigmoid(take), jax.nn.sigmoid(keep + 1)
  memory = take * jnp.tanh(slots) + keep * memory
  return jnp.reshape(memory, (memory.shape[0], -1)), memory


def test_info_is_free():
  """Unused, it leaves no trace in the compiled step; used, it is no work."""
  sized = case(12, mem_slots=4, head_size=16, num_heads=4)
  params, x, memory = sized.params(), sized.inputs(8), sized.memory(8)

  def compiled(fn):
    return jax.jit(fn).lower(params, x, memory).compile()

  def of(take_step):
    return compiled(hk.without_apply_rng(hk.transform(take_step(sized))).apply)

  def costs(program):
    analysis = program.cost_analysis()
    return np.array([analysis["flops"], analysis["transcendentals"]])

  def num_outputs(program):
    layout = re.search(r"entry_computation_layout=.*->(.*)", program.as_text())
    return layout[1].split(", entry")[0].count("f32[")

  stripped = compiled(lambda p, x, m: stripped_step(p, x, m, 4, 16))
  called, stepped = of(call), of(step)
  assert_close(
      stripped(params, x, memory), apply(call(sized), params, x, memory)
  )
  assert num_outputs(stripped) == num_outputs(called) == 2
  assert num_outputs(stepped) == 2 + 3
  # To let the input's row attend, too, would be 7% more.
  assert np.all(costs(called) <= 1.01 * costs(stripped))
  assert np.all(costs(stepped) <= 1.01 * costs(called))
  assert called.memory_analysis().output_size_in_bytes == (
      stripped.memory_analysis().output_size_in_bytes
  )


# Transformations and types.


@pytest.mark.parametrize("name", ["blocks", "memory_gate", "matrix"])
def test_gradients(name):
  """Of parameters, inputs and memory, against central differences."""
  case = CASES[name]

  def loss(params, inputs, memory):
    fn = hk.transform(lambda x, m: rmc.unroll(case.core(), x, m))
    outputs, _ = fn.apply(params, None, inputs, memory)
    return jnp.sum(jnp.sin(outputs))

  with jax.enable_x64(True):
    at = (case.params(), case.inputs(2, BATCH), case.memory(BATCH))
    value_and_grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    _, grads = value_and_grad(*at)
    rng, step_size = np.random.default_rng(4), 1e-6
    for _ in range(3):
      direction = jax.tree.map(lambda x: rng.normal(size=x.shape), at)
      ahead, behind = (
          value_and_grad(
              *jax.tree.map(lambda x, d, h=h: x + h * d, at, direction)
          )[0]
          for h in (step_size, -step_size)
      )
      products = jax.tree.map(lambda g, d: np.sum(g * d), grads, direction)
      slope = sum(jax.tree.leaves(products))
      assert abs(slope) > 0.1
      numeric = (ahead - behind) / (2 * step_size)
      assert float(numeric) == pytest.approx(float(slope), rel=1e-6)


@pytest.mark.parametrize("name", ["blocks", "matrix"])
def test_vmap(name):
  """Over examples, inside a transform and outside one."""
  case = CASES[name]
  params, x, memory = case.params(), case.inputs(BATCH), case.memory(BATCH)
  expected = apply(call(case), params, x, memory)

  def inside(x, memory):
    return hk.vmap(case.core(), split_rng=False)(x, memory)

  assert_close(apply(inside, params, x, memory), expected)
  one = hk.without_apply_rng(hk.transform(call(case))).apply
  outside = jax.jit(jax.vmap(one, in_axes=(None, 0, 0)))
  assert_close(outside(params, x, memory), expected)


def test_vmap_over_parameters():
  x, memory = DEFAULT.inputs(BATCH), DEFAULT.memory(BATCH)
  both = [draw_params(call(DEFAULT), x, memory, seed=seed) for seed in (5, 6)]
  stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *both)
  one = hk.without_apply_rng(hk.transform(call(DEFAULT))).apply
  of_all = jax.jit(jax.vmap(one, in_axes=(0, None, None)))
  of_all = of_all(stacked, x, memory)
  for i, params in enumerate(both):
    assert_close(
        jax.tree.map(lambda x, i=i: x[i], of_all),
        apply(call(DEFAULT), params, x, memory),
    )


def with_remat(core, xs, memory):
  return hk.dynamic_unroll(hk.remat(core), xs, memory)


def with_reset_core(core, xs, memory):
  never = jnp.zeros(xs.shape[:2], bool)
  return hk.dynamic_unroll(hk.ResetCore(core), (xs, never), memory)


def by_calls(core, xs, memory):
  outputs = []
  for x in xs:
    output, memory = core(x, memory)
    outputs.append(output)
  return jnp.stack(outputs), memory


@functools.cache
def unrolled_with_gradients(unroll):
  """Returns the loss, what was unrolled, and all gradients."""

  def fn(xs, memory):
    return unroll(MATRIX.core(), xs, memory)

  def loss(*args):
    outputs, memory = hk.without_apply_rng(hk.transform(fn)).apply(*args)
    return jnp.sum(jnp.square(outputs)) + jnp.sum(memory), (outputs, memory)

  grad = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
  xs, memory = MATRIX.inputs(2, BATCH), MATRIX.memory(BATCH)
  return jax.jit(grad)(MATRIX.params(), xs, memory)


@pytest.mark.parametrize(
    "unroll",
    [hk.dynamic_unroll, hk.static_unroll, with_remat, with_reset_core],
    ids=lambda unroll: unroll.__name__,
)
def test_haiku_unrolls(unroll):
  """Haiku's own ways over a sequence are so many calls, with gradients."""
  assert_close(
      unrolled_with_gradients(unroll),
      unrolled_with_gradients(by_calls),
      atol=1e-5,
  )


def test_reset_core_starts_anew():
  """On the example and at the step that says so, from the core's own start."""
  params, memory = DEFAULT.params(), DEFAULT.memory(BATCH)
  x, should_reset = DEFAULT.inputs(BATCH), np.array([False, True])

  def reset(x, memory):
    return hk.ResetCore(DEFAULT.core())((x, should_reset), memory)

  def fresh(x):
    core = DEFAULT.core()
    return core(x, core.initial_state(x.shape[0]))

  output, _ = apply(reset, params, x, memory)
  assert_close(output[0], apply(call(DEFAULT), params, x, memory)[0][0])
  assert_close(output[1], apply(fresh, params, x)[0][1])


def test_transform_with_state():
  """The core keeps nothing in Haiku's state."""
  x, memory = DEFAULT.inputs(BATCH), DEFAULT.memory(BATCH)
  transformed = hk.transform_with_state(call(DEFAULT))
  params, state = jax.jit(transformed.init)(jax.random.key(0), x, memory)
  assert state == {}
  called, state = jax.jit(transformed.apply)(params, state, None, x, memory)
  assert state == {}
  assert_close(called, apply(call(DEFAULT), params, x, memory))


def test_float64():
  """Parameters, states and outputs all follow; float32 is near."""
  x, memory = DEFAULT.inputs(BATCH), DEFAULT.memory(BATCH)
  params = DEFAULT.params()
  single = apply(call(DEFAULT), params, x, memory)
  with jax.enable_x64(True):
    widened = jax.tree.map(np.float64, (params, x, memory))
    double = apply(call(DEFAULT), *widened)
    assert all(leaf.dtype == np.float64 for leaf in double)
    created = jax.eval_shape(
        hk.transform(call(DEFAULT)).init, jax.random.key(0), *widened[1:]
    )
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(created)}
    assert dtypes == {np.dtype(np.float64)}
    start = apply(lambda: DEFAULT.core().initial_state(2), {})
    assert start.dtype == np.float64
  assert_close(single, jax.tree.map(np.float32, double), atol=1e-5)


@pytest.mark.parametrize(
    "unroll", [hk.dynamic_unroll, rmc.unroll], ids=["dynamic_unroll", "rmc"]
)
@pytest.mark.parametrize("name", ["blocks", "memory_gate", "no_gate", "matrix"])
def test_mixed_precision(name, unroll):
  """Computes in bfloat16 within float32 parameters, states and outputs."""
  case = CASES[name]
  xs, params = case.inputs(2, BATCH), case.params()

  def fn(xs):
    core = case.core()
    return unroll(core, xs, core.initial_state(BATCH))

  expected = apply(fn, params, xs)
  policy = jmp.get_policy("p=f32,c=bf16,o=f32")
  with hk.mixed_precision.push_policy(rmc.RelationalMemory, policy):
    created = jax.eval_shape(hk.transform(fn).init, jax.random.key(0), xs)
    actual = apply(fn, params, xs)
    transformed = hk.without_apply_rng(hk.transform(fn))
    jaxpr = str(jax.make_jaxpr(transformed.apply)(params, xs))
  assert hk.mixed_precision.get_policy(rmc.RelationalMemory) is None
  dtypes = {leaf.dtype for leaf in jax.tree.leaves(created)}
  assert dtypes == {np.dtype(np.float32)}
  assert_close(actual, expected, atol=0.05)
  assert np.max(np.abs(actual[0] - expected[0])) > 1e-4
  products = re.findall(r"(\w+)\[[\d,]*\] = dot_general", jaxpr)
  assert len(products) >= 7
  assert set(products) == {"bf16"}


def test_bfloat16():
  """Without a policy, types follow the inputs and the memory."""
  x = DEFAULT.inputs(BATCH).astype(jnp.bfloat16)
  memory = DEFAULT.memory(BATCH).astype(jnp.bfloat16)
  shapes = jax.eval_shape(
      hk.transform_with_state(call(DEFAULT)).init, jax.random.key(0), x, memory
  )
  dtypes = {leaf.dtype for leaf in jax.tree.leaves(shapes)}
  assert dtypes == {jnp.dtype(jnp.bfloat16)}
  params = DEFAULT.params()
  narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
  actual = apply(call(DEFAULT), narrow, x, memory)
  assert {leaf.dtype for leaf in actual} == dtypes
  expected = apply(call(DEFAULT), params, *map(np.float32, (x, memory)))
  assert_close(jax.tree.map(np.float32, actual), expected, atol=0.1)


@pytest.mark.parametrize(
    "unroll", [hk.dynamic_unroll, rmc.unroll], ids=["dynamic_unroll", "rmc"]
)
def test_no_tracer_leaks(unroll):
  xs, memory = DEFAULT.inputs(2, BATCH), DEFAULT.memory(BATCH)

  def loss(xs, memory):
    outputs, _ = unroll(DEFAULT.core(), xs, memory)
    return jnp.sum(outputs)

  transformed = hk.without_apply_rng(hk.transform(loss))
  with jax.checking_leaks():
    jax.make_jaxpr(jax.grad(transformed.apply))(DEFAULT.params(), xs, memory)


def test_cases_are_all_small():
  """Compile times of everything here grow with these."""
  assert all(max(c.input_shape) <= 5 for c in small_cores.CASES.values())


def test_empty_batch():
  params = DEFAULT.params()
  output, memory = apply(
      call(DEFAULT), params, DEFAULT.inputs(0), DEFAULT.memory(0)
  )
  assert output.shape == (0, memory.shape[1] * memory.shape[2])


def test_integer_memory():
  memory = DEFAULT.memory(BATCH).astype(np.int32)
  with pytest.raises(ValueError, match="memory .* floating type, got int32"):
    apply(call(DEFAULT), DEFAULT.params(), DEFAULT.inputs(BATCH), memory)
