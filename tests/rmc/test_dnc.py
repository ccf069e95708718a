"""The DNC: recorded vectors, invariants, and what is wrong with arguments."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rmc
from rmc.baselines import DNC, DNCState, dnc
from tests.helpers import golden_vectors
from tests.helpers.golden_vectors import assert_near
from tests.helpers.small_cores import apply, assert_close, draw_params

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
    # XLA's newer code, which rounds less, whatever other tests are run with.
    options = {"xla_cpu_use_fusion_emitters": True}
    (loss, (outputs, states)), grads = jax.jit(
        grad_fn, compiler_options=options
    )(params_from_variables(variables), arrays["inputs"], state)

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


def call(inputs, state, **overrides):
  return DNC(**(SMALL | overrides))(inputs, state)


def start(batch_size=BATCH, **overrides):
  arguments = SMALL | overrides
  fn = hk.transform(lambda: DNC(**arguments).initial_state(batch_size))
  return fn.apply({}, None)


def inputs(*shape, seed=0):
  draw = np.random.default_rng(seed).normal(size=shape)
  return draw.astype(np.float32)


def param_shapes(**overrides):
  fn = hk.transform(lambda x, s: call(x, s, **overrides))
  params = jax.eval_shape(
      fn.init,
      jax.random.key(0),
      inputs(BATCH, FEATURES),
      start(**overrides),
  )
  return {name: bundle["w"].shape for name, bundle in params.items()}


def test_parameters():
  """Each layer of the controller sees the input; all of them are put out."""
  # 2 write heads of 3 * 3 + 3 numbers, 2 read heads of 3 + 2 + 5.
  assert param_shapes(controller_layers=2) == {
      "dnc/~/lstm_0/linear": (FEATURES + 6 + 6, 24),
      "dnc/~/lstm_1/linear": (FEATURES + 6 + 6 + 6, 24),
      "dnc/~/interface": (12, 44),
      "dnc/~/output": (12 + 6, 4),
  }
  assert param_shapes(controller="feedforward", controller_layers=2) == {
      "dnc/~/mlp/~/linear_0": (FEATURES + 6, 6),
      "dnc/~/mlp/~/linear_1": (6, 6),
      "dnc/~/interface": (6, 44),
      "dnc/~/output": (6 + 6, 4),
  }


def test_a_feedforward_controller_ends_with_a_relu():
  """What is below 0 before its last ReLU is as good as 0."""
  options = {"controller": "feedforward"}
  x, state = inputs(BATCH, FEATURES), start(**options)
  fn = functools.partial(call, **options)
  network = jax.jit(hk.without_apply_rng(hk.transform(fn)).apply)
  params, found = draw_params(fn, x, state), []
  layer = params["dnc/~/mlp/~/linear_0"]
  for bias in (0.0, -1.0):
    params["dnc/~/mlp/~/linear_0"] = {
        "w": np.zeros_like(layer["w"]),
        "b": np.full_like(layer["b"], bias),
    }
    found.append(network(params, x, state))
  assert_close(*found, atol=0)


def test_initial_state():
  state = start()
  assert all(not np.any(x) for x in jax.tree.leaves(state))
  assert jax.tree.map(jnp.shape, state) == DNCState(
      controller=(hk.LSTMState((3, 6), (3, 6)),),
      memory=(3, 5, 3),
      usage=(3, 5),
      link=(3, 2, 5, 5),
      precedence=(3, 2, 5),
      write_weights=(3, 2, 5),
      read_weights=(3, 2, 5),
      read_words=(3, 2, 3),
  )
  assert_close(jax.tree.map(lambda x: x[0], state), start(None))
  assert start(controller="feedforward").controller == ()


@pytest.mark.parametrize("controller", ["lstm", "feedforward"])
def test_invariants(controller):
  """Over many steps that write, free and read as hard as they can.

  Weights are not negative and sum to at most 1, usage is from 0 to 1, rows and
  columns of links sum to at most 1, and no slot follows itself.
  """
  batch, steps = 16, 40

  def fn(inputs):
    core = DNC(**SMALL, controller=controller)
    return hk.dynamic_unroll(
        core, inputs, core.initial_state(batch), return_all_states=True
    )[1]

  xs = inputs(steps, batch, FEATURES)
  params = draw_params(fn, xs)
  interface = params["dnc/~/interface"]
  interface["w"] *= 20
  interface["b"] *= 0  # So that it depends on the step what the heads do.
  states = jax.tree.map(np.asarray, apply(fn, params, xs))
  rounding = 1e-5
  sums = {
      "usage": states.usage[..., None],
      "precedence": states.precedence,
      "write_weights": states.write_weights,
      "read_weights": states.read_weights,
      "link": states.link,
      "link, columns": np.swapaxes(states.link, -1, -2),
  }
  for name, weights in sums.items():
    assert np.all(weights >= -rounding), name
    totals = weights.sum(axis=-1)
    assert np.all(totals <= 1 + rounding), name
    assert totals.min() < 0.3 and totals.max() > 0.9, name
  assert not np.any(np.diagonal(states.link, axis1=-2, axis2=-1))
  assert np.all(np.isfinite(states.memory))


def allocation_by_sorting(usage):
  """The formula of the paper, one slot after the other."""
  usage = 1e-6 + (1 - 1e-6) * usage
  weights, product = np.zeros_like(usage), 1.0
  for slot in np.argsort(usage, kind="stable"):
    weights[slot] = (1 - usage[slot]) * product
    product *= usage[slot]
  return weights


def test_allocation():
  """With ties, and with slots that are not or wholly in use."""
  usage = np.random.default_rng(0).uniform(size=(50, 7)).round(1)
  expected = np.array([allocation_by_sorting(u) for u in usage])
  with jax.enable_x64(True):
    np.testing.assert_allclose(dnc._allocation(usage), expected, atol=1e-12)
    # All free: the first slot. All in use: nothing.
    ends = dnc._allocation(np.array([[0.0] * 3, [1.0] * 3]))
  np.testing.assert_allclose(ends, [[1, 0, 0], [0, 0, 0]], atol=2e-6)


def test_own_gradients():
  """Those of links and erasures are what JAX derives from the formulas."""
  weights = inputs(BATCH, 2, 5)
  precedence = inputs(BATCH, 2, 5, seed=1)
  of_link = inputs(BATCH, 2, 5, 5), precedence, weights

  def link(links, precedence, weights):
    to, since = weights[..., None], weights[..., None, :]
    links = (1 - to - since) * links + to * precedence[..., None, :]
    return links * (1 - jnp.eye(5))[None, None]

  def erase(memory, weights, erase):
    return memory * (1 - weights[:, :, None] * erase[:, None])

  of_erase = inputs(BATCH, 5, 3), weights[:, 0], inputs(BATCH, 3)
  for ours, plain, values in (
      (dnc._link, link, of_link),
      (dnc._erase, erase, of_erase),
  ):

    def loss(*values, fn):
      return jnp.sum(jnp.sin(fn(*values)))

    actual, expected = (
        jax.jit(jax.value_and_grad(functools.partial(loss, fn=fn), (0, 1, 2)))(
            *values
        )
        for fn in (ours, plain)
    )
    assert_close(actual, expected, atol=1e-5)


def test_second_derivatives():
  """Forward over reverse, which the own gradients allow, is reverse twice."""
  x, state = inputs(BATCH, FEATURES), start()
  params = draw_params(call, x, state)
  network = hk.without_apply_rng(hk.transform(call))

  def loss(x):
    _, state_ = network.apply(params, x, state)
    output, _ = network.apply(params, x, state_)  # Something to erase.
    return jnp.sum(jnp.sin(output))

  def products(x):
    grad, along = jax.grad(loss), jnp.cos(x)
    slope = jax.grad(lambda x: jnp.vdot(grad(x), along))
    return jax.jvp(grad, (x,), (along,))[1], slope(x)

  assert_close(*jax.jit(products)(x), atol=1e-5)


def test_reads_in_the_order_of_writing():
  """Written slots are found again forwards and backwards."""
  links, precedence = jnp.zeros((1, 1, 4, 4)), jnp.zeros((1, 1, 4))
  for slot in (2, 0, 3):
    weights = jax.nn.one_hot(jnp.array([[slot]]), 4)
    links = dnc._link(links, precedence, weights)
    precedence = weights
  expected = np.zeros((4, 4))
  expected[0, 2] = expected[3, 0] = 1  # To, from.
  np.testing.assert_array_equal(links[0, 0], expected)


@pytest.mark.parametrize("num_writes", [2, 4])
def test_more_write_heads_than_slots(num_writes):
  """The paper's sweep of Nth Farthest has 1 slot with 2 and 4 of them."""
  sizes = {"memory_size": 1, "num_writes": num_writes}

  def unrolled(x):
    core = DNC(**(SMALL | sizes))
    return hk.dynamic_unroll(core, x, core.initial_state(BATCH))

  x = inputs(STEPS, BATCH, FEATURES)
  params = draw_params(unrolled, x)

  def loss(params):
    return jnp.sum(jnp.square(apply(unrolled, params, x)[0]))

  grads = jax.grad(loss)(params)
  assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))
  _, state = apply(unrolled, params, x)
  assert state.write_weights.shape == (BATCH, num_writes, 1)
  assert np.all((state.write_weights > 0) & (state.write_weights < 1))
  assert np.all((state.usage > 0) & (state.usage < 1))


def test_inputs_are_flattened():
  x = inputs(BATCH, 2, 3)
  flat = x.reshape(BATCH, 6)
  state = start()
  params = draw_params(call, flat, state)
  expected = apply(call, params, flat, state)
  assert_close(apply(call, params, x, state), expected)


WRONG = {
    **{f"{name}=0": f"{name} must be at least 1, got 0" for name in SMALL},
    "controller_layers=0": "controller_layers must be at least 1, got 0",
    "clip_value=-1": "clip_value must be above 0, or None .* got -1",
    "clip_value=0": "clip_value must be above 0, or None .* got 0",
    "clip_value=float('nan')": "clip_value must be above 0, or None .* got nan",
    "controller='gru'": "controller must be one of .*'feedforward'.* got 'gru'",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments(wrong):
  overrides = eval(f"dict({wrong})")
  with pytest.raises(ValueError, match=WRONG[wrong]):
    start(**overrides)


def test_wrong_inputs_and_states():
  good = inputs(BATCH, FEATURES)
  for x, state, message in (
      (good[:2], start(), r"inputs must .* state, 3, .* got \[2, 5\]"),
      (good[0, 0], start(), r"inputs must .* got \[\]"),
      (good.astype(int), start(), "inputs must be of a floating type, got int"),
      (
          good,
          start()._replace(usage=jnp.zeros((BATCH, 4))),
          r"state\.usage must have shape \[3, 5\], got \[3, 4\]",
      ),
      (
          good,
          start(hidden_size=5),
          r"state\.controller\[0\]\.hidden must have shape \[3, 6\], got",
      ),
      (
          good,
          start(controller_layers=2),
          r"state\.controller must have 1 layers, got 2",
      ),
  ):
    with pytest.raises(ValueError, match=message):
      draw_params(call, x, state)
