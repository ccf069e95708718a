"""Gradients of weights that are made after the loop: as if made inside it."""

import sys
import types

import haiku as hk
import jax
import jax.numpy as jnp
import jmp
import numpy as np
import pytest

import rmc
from tests.helpers import jaxprs
from tests.helpers.small_cores import assert_close, case, draw_params

STEPS, BATCH = 3, 2
CASE = case(
    5, mem_slots=1, head_size=12, num_heads=2, attention_mlp_layers=1
)
INPUTS = CASE.inputs(STEPS, BATCH)
RESETS = np.array([[False, True], [False, False], [True, False]])
LENGTHS = np.array([3, 2], np.int32)


class Conditioned(hk.RNNCore):
  """An LSTM that also reads what it was made with."""

  def __init__(self, context):
    super().__init__()
    self._context = context
    self._lstm = hk.LSTM(12)

  def __call__(self, inputs, state):
    return self._lstm(jnp.concatenate([inputs, self._context], axis=-1), state)

  def initial_state(self, batch_size):
    return self._lstm.initial_state(batch_size)


class Nested(Conditioned):
  """Calls its LSTM inside other transformations: of JAX, and of Haiku."""

  def __call__(self, inputs, state):
    call = jax.vmap(self._lstm)
    inputs = jnp.concatenate([inputs, self._context], axis=-1)
    output, state = call(inputs, state)
    again, state = hk.remat(self._lstm)(inputs, state)
    return output + again, state


class Noisy(hk.RNNCore):
  """Has an LSTM, and puts out coins."""

  def __init__(self):
    super().__init__()
    self._lstm = hk.LSTM(12)

  def __call__(self, inputs, state):
    kept = jax.random.bernoulli(hk.next_rng_key(), shape=inputs.shape)
    self._lstm(inputs, state)
    return kept.astype(inputs.dtype), state

  def initial_state(self, batch_size):
    return self._lstm.initial_state(batch_size)


def once(make_core, **options):
  def network(inputs, unroll):
    core = make_core()
    kwargs = {} if unroll is hk.dynamic_unroll else options
    return unroll(core, inputs, core.initial_state(BATCH), **kwargs)

  return network


def twice(inputs, unroll):
  """One core encodes and decodes, and what it closes over is learned."""
  core = Conditioned(jnp.tanh(hk.Linear(4)(inputs[0])))
  _, state = unroll(core, inputs, core.initial_state(BATCH))
  return unroll(core, inputs[::-1], state)


def loss_of(network, unroll):
  """Returns a loss of `(params, inputs)`."""

  def fn(inputs):
    outputs, state = network(inputs, unroll)
    return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves((outputs, state)))

  return hk.without_apply_rng(hk.transform(fn)).apply


def params_of(network, inputs=INPUTS):
  return draw_params(lambda x: network(x, hk.dynamic_unroll), inputs)


def gradient(network, unroll):
  grad = jax.grad(loss_of(network, unroll), argnums=(0, 1))
  return jax.jit(grad)(params_of(network), INPUTS)


def carries(jaxpr):
  """Yields the shapes of what loops hand from step to step."""
  for equation in jaxpr.eqns:
    params = equation.params
    if equation.primitive.name == "scan":
      yield from (aval.shape for aval in jaxprs.carries(equation))
    for value in params.values():
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        yield from carries(inner)


def accumulated(batch_size):
  """Returns the shapes that loops hand on in the gradient of an LSTM."""

  def network(inputs, unroll):
    core = hk.LSTM(12)
    return unroll(core, inputs, core.initial_state(batch_size))

  inputs = CASE.inputs(STEPS, batch_size)
  params = draw_params(lambda x: network(x, rmc.unroll), inputs)
  grad = jax.make_jaxpr(jax.grad(loss_of(network, rmc.unroll)))(params, inputs)
  return set(carries(grad.jaxpr))


@pytest.mark.parametrize("batch_size, hoisted", [(2, True), (3, False)])
def test_large_weights_are_not_accumulated_step_by_step(batch_size, hoisted):
  """The weight is [17, 48]: 2 rows of 17 + 48 are less than a sixth of it."""
  shapes = accumulated(batch_size)
  assert ((17, 48) not in shapes) == hoisted
  assert (48,) in shapes  # That of the bias is.


@pytest.mark.parametrize(
    "module",
    [
        None,  # An ImportError.
        types.SimpleNamespace(),
        types.SimpleNamespace(interceptor_stack=[]),
    ],
    ids=["no_module", "no_stack", "no_peek"],
)
def test_a_haiku_of_other_internals_takes_the_plain_path(monkeypatch, module):
  monkeypatch.setitem(sys.modules, "haiku._src.module", module)
  assert (17, 48) in accumulated(batch_size=2)


def test_the_plain_path_gives_the_same_numbers(monkeypatch):
  """Outputs, states and gradients."""
  network = once(CASE.core, lengths=LENGTHS, should_reset=RESETS)
  params = params_of(network)

  def results():
    fn = hk.without_apply_rng(hk.transform(lambda x: network(x, rmc.unroll)))

    def loss(*at):
      results = fn.apply(*at)
      return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(results)), results

    grad = jax.grad(loss, argnums=(0, 1), has_aux=True)
    return jax.jit(grad)(params, INPUTS)

  hoisted = results()
  monkeypatch.setitem(sys.modules, "haiku._src.module", None)
  assert_close(results(), hoisted)


@pytest.mark.parametrize(
    "network",
    [once(lambda: hk.LSTM(12), unroll=2), twice],
    ids=["once", "twice"],
)
def test_derivatives(network):
  """First and second, the latter by both orders of modes, in float64."""
  with jax.enable_x64(True):
    inputs = INPUTS.astype(np.float64)
    at = (params_of(network, inputs), inputs)
    along = jax.tree.map(jnp.cos, at)

    def derivatives(unroll):
      grad = jax.grad(loss_of(network, unroll), argnums=(0, 1))

      def slope(*at):
        products = jax.tree.map(jnp.vdot, grad(*at), along)
        return sum(jax.tree.leaves(products))

      def everything(*at):
        forward_over_reverse = jax.jvp(grad, at, along)[1]
        return grad(*at), jax.grad(slope, (0, 1))(*at), forward_over_reverse

      return jax.jit(everything)(*at)

    ours = derivatives(rmc.unroll)
    assert_close(ours, derivatives(hk.dynamic_unroll), atol=1e-10)
    assert_close(ours[1], ours[2], atol=1e-10)


@pytest.mark.parametrize("core", [CASE.core, lambda: hk.LSTM(12)])
def test_lengths_and_resets(core):
  """Against a function, which is not hoisted."""
  options = {"lengths": LENGTHS, "should_reset": RESETS}

  def as_inner_loop(inputs, unroll):
    del unroll
    core_ = core()
    return rmc.unroll(
        core_, inputs, core_.initial_state(BATCH), remat=True, **options
    )

  assert_close(
      gradient(once(core, **options), rmc.unroll),
      gradient(as_inner_loop, None),
  )


def test_mapped():
  """A batch of inputs, in which what the core closes over differs too."""
  params, batch = params_of(twice), CASE.inputs(2, STEPS, BATCH)

  def gradients(unroll):
    grad = jax.grad(loss_of(twice, unroll), argnums=(0, 1))
    return jax.jit(jax.vmap(grad, in_axes=(None, 0)))(params, batch)

  assert_close(gradients(rmc.unroll), gradients(hk.dynamic_unroll))


def test_split_over_devices():
  """The mean over devices is the gradient of the mean loss."""
  params, batch = params_of(twice), CASE.inputs(2, STEPS, BATCH)

  def split(params, inputs):
    grads = jax.grad(loss_of(twice, rmc.unroll))(params, inputs)
    return jax.lax.pmean(grads, "devices")

  ours = jax.pmap(split, "devices", in_axes=(None, 0), out_axes=None)(
      params, batch
  )

  def mean_loss(params, batch):
    losses = jax.vmap(loss_of(twice, hk.dynamic_unroll), in_axes=(None, 0))
    return jnp.mean(losses(params, batch))

  assert_close(ours, jax.jit(jax.grad(mean_loss))(params, batch))


def test_layers_inside_other_transformations():
  network = once(lambda: Nested(jnp.ones([BATCH, 4])))
  assert_close(
      gradient(network, rmc.unroll), gradient(network, hk.dynamic_unroll)
  )


class Attending(Conditioned):
  """Closes over a mask and a number of steps too."""

  def __init__(self, context, mask):
    super().__init__(context)
    self._mask = mask

  def __call__(self, inputs, state):
    lstm_state, count = state
    weights = jnp.where(self._mask, jnp.float32(count)[:, None], 0)
    output, lstm_state = super().__call__(inputs * weights, lstm_state)
    return output, (lstm_state, count + 1)

  def initial_state(self, batch_size):
    count = jnp.zeros(batch_size, jnp.int32)
    return super().initial_state(batch_size), count


class Doubled(hk.RNNCore):
  """Doubles what its layer puts out, by an interceptor of its own."""

  def __init__(self):
    super().__init__()
    self._layer = hk.Linear(40, with_bias=False)

  def __call__(self, inputs, state):
    def double(next_call, args, kwargs, context):
      output = next_call(*args, **kwargs)
      is_layer = type(context.module) is hk.Linear
      return 2 * output if is_layer else output

    with hk.intercept_methods(double):
      state = jnp.tanh(self._layer(state) + inputs[:, :1])
    return state, state

  def initial_state(self, batch_size):
    return jnp.full([batch_size, 40], 0.1)


def test_interceptors_inside_the_step():
  network = once(Doubled)
  assert_close(
      gradient(network, rmc.unroll), gradient(network, hk.dynamic_unroll)
  )


def test_what_has_no_gradient_does_not_outlive_its_trace():
  """As a mask that an outer jit gets, or a state of integers begun anew."""

  def network(inputs, context, mask, resets):
    core = Attending(context, mask)
    state = core.initial_state(BATCH)
    return rmc.unroll(core, inputs, state, should_reset=resets)[0]

  transformed = hk.without_apply_rng(hk.transform(network))
  arguments = INPUTS, INPUTS[0], INPUTS[0] > 0, jnp.asarray(RESETS)
  params = draw_params(network, *arguments)

  def loss(params, *arguments):
    return jnp.sum(jnp.sin(transformed.apply(params, *arguments)))

  expected = jax.jit(jax.grad(loss))(params, *arguments)
  for function in (jax.jit(loss), jax.checkpoint(loss)):
    assert_close(jax.grad(function)(params, *arguments), expected)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_gradients_have_the_type_of_their_weights(dtype):
  """Of a state that is wider, as JAX's own with 64 bits."""

  def network(inputs):
    core = rmc.RelationalMemory(1, 64, 1)
    state = jnp.zeros([1, 1, 64], jnp.float32)
    if dtype == jnp.float32:
      state = jnp.zeros([1, 1, 64], jnp.float64)
    return rmc.unroll(core, inputs, state)[0]

  transformed = hk.without_apply_rng(hk.transform(network))
  with jax.enable_x64(dtype == jnp.float32), jax.numpy_dtype_promotion(
      "standard"
  ):
    inputs = jnp.ones([3, 1, 5], jnp.float32)
    params = transformed.init(jax.random.key(0), inputs)
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    grads = jax.grad(lambda p: transformed.apply(p, inputs).sum())(params)
    assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype(dtype)}


def test_forward_mode_is_refused():
  params = params_of(twice)
  loss = loss_of(twice, rmc.unroll)
  with pytest.raises(TypeError, match="forward-mode"):
    jax.jvp(loss, (params, INPUTS), (params, INPUTS))


def test_weights_that_are_changed_before_their_use():
  """By a policy, and by a getter that is not even linear."""
  network = once(lambda: hk.LSTM(12))

  def squared(inputs, unroll):
    def getter(next_getter, value, context):
      del context
      return jnp.square(next_getter(value))

    with hk.custom_getter(getter):
      return network(inputs, unroll)

  assert_close(*(gradient(squared, u) for u in (rmc.unroll, hk.dynamic_unroll)))

  policy = jmp.get_policy("params=float32,compute=bfloat16,output=float32")
  with hk.mixed_precision.push_policy(hk.Linear, policy):
    ours, haikus = (
        gradient(network, u) for u in (rmc.unroll, hk.dynamic_unroll)
    )
  assert_close(ours, haikus, atol=0.02)


def test_randomness():
  """Each step and each example draws anew."""
  network = once(Noisy)
  fn = hk.transform(lambda x: network(x, rmc.unroll)[0])
  params = draw_params(lambda x: network(x, rmc.unroll), INPUTS)
  inputs = np.ones((40, BATCH, 5), np.float32)
  outputs = jax.jit(fn.apply)(params, jax.random.key(0), inputs)[..., 0]
  assert set(np.unique(outputs)) == {0.0, 1.0}
  assert 0.2 < np.mean(outputs) < 0.8
  assert np.any(outputs[:, 0] != outputs[:, 1])


def test_nothing_is_hoisted_where_haiku_keeps_state():
  class Counting(Conditioned):

    def __call__(self, inputs, state):
      calls = hk.get_state("calls", [], jnp.int32, init=jnp.zeros)
      hk.set_state("calls", calls + 1)
      return super().__call__(inputs, state)

  def fn(inputs):
    core = Counting(inputs[0])
    return rmc.unroll(core, inputs, core.initial_state(BATCH))[0]

  transformed = hk.transform_with_state(fn)
  params, state = transformed.init(jax.random.key(0), INPUTS)
  _, state = transformed.apply(params, state, None, INPUTS)
  assert jax.tree.leaves(state) == [STEPS]
