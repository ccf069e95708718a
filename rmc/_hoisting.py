"""An unroll that makes the gradients of its weights after the loop.

`dynamic_unroll` traces a step twice: once to find the calls of layers whose
weights are worth it (`_find_calls`), and once into a function in which these
weights, and a number that is added to each of these outputs, are arguments
(`_as_function`). `_with_late_gradients` unrolls that function and has a
backward pass of its own.

Glossary of shapes:
  - T: steps.
  - M: rows that a linear layer gets in one step, as `[..., K]`.
  - K, N: rows and columns of its weight.
"""

from collections.abc import Callable, Sequence
import functools
import math
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.extend.core
import jax.numpy as jnp


class _Call(NamedTuple):
  """A call of a layer whose weight gets its gradient after the loop.

  Attributes:
    name: the layer's name.
    output: the shape and the type of what it returns.
  """

  name: str
  output: jax.ShapeDtypeStruct


# Calls one of these layers: (next_call, inputs, name, weight) -> outputs.
_CallLayer = Callable[
    [Callable[[jax.Array], jax.Array], jax.Array, str, jax.Array], jax.Array
]


def applies_to(core: Any) -> bool:
  """Returns whether `dynamic_unroll` can unroll this core, here and now."""
  # A function may name its parameters after the module that it is called in.
  return (
      isinstance(core, hk.Module)
      and not hk.running_init()
      and not hk.get_current_state()
      and _interceptor_lookup() is not None
  )


def dynamic_unroll(
    step: Callable[[Any, Any], tuple[Any, Any]],
    inputs: Any,
    initial_state: Any,
    *,
    policy: Callable[..., bool],
    return_all_states: bool,
    unroll: int,
) -> tuple[Any, Any]:
  r"""Unrolls a rematerialised step, with a backward pass of its own.

  The gradient of a weight that multiplies rows :math:`x_t` in each step,
  :math:`\sum_t x_t^T \bar{y}_t`, becomes one product of the rows of all steps.
  The transpose of a scan would add, in each step, to an accumulator of the size
  of the weight. In return :math:`x_t` and :math:`\bar{y}_t` of all steps are
  kept until the end. So it is done for those `hk.Linear` for which they are
  small, per step, next to the accumulator: :math:`6 M (K + N) < K N`; and only
  if the weight is used as it is, not cast, for instance, by a policy, and in
  the step itself, not in a loop or a `jax.vmap` inside it, nor under an
  interceptor that the step sets up, which may change the rows or the product.

  Args:
    step: calls modules made outside it, which keep no state in Haiku.
    inputs: a nest of `[T, ...]`.
    initial_state: the state before the first step.
    policy: what the backward pass keeps of a step, as in `jax.checkpoint`.
    return_all_states: as in `hk.dynamic_unroll`.
    unroll: as in `hk.dynamic_unroll`.

  Returns:
    A pair of outputs and states, like `hk.dynamic_unroll`.
  """
  num_steps = jax.tree.leaves(inputs)[0].shape[0]
  key = hk.maybe_next_rng_key()
  keys = None if key is None else jax.random.split(key, num_steps)
  params, inputs = hk.get_params(), (keys, inputs)
  first = jax.tree.map(lambda x: x[0], inputs)
  calls = _find_calls(step, params, first, initial_state)
  tapped_step, closure = _as_function(
      step,
      params,
      _weights(calls, params),
      [call.output for call in calls],
      first,
      initial_state,
  )

  def loop(weights, taps, params, inputs, state, closure):
    def body(state, x):
      outputs, state, rows = tapped_step(params, weights, *x, state, *closure)
      return state, (outputs, state if return_all_states else None, rows)

    # What prevent_cse prevents cannot happen across the steps of a loop.
    body = jax.checkpoint(body, prevent_cse=False, policy=policy)
    state, (outputs, states, rows) = jax.lax.scan(
        body, state, (taps, inputs), unroll=unroll
    )
    return (outputs, states if return_all_states else state), rows

  unrolled = _with_late_gradients(loop, calls, num_steps)
  return unrolled(params, inputs, initial_state, closure)


def _with_late_gradients(
    loop: Callable[..., tuple[Any, list[jax.Array]]],
    calls: Sequence[_Call],
    num_steps: int,
) -> Callable[..., Any]:
  """Returns a loop whose backward pass makes the hoisted gradients at its end.

  Args:
    loop: `(weights, taps, params, *arguments) -> (result, rows)`. It adds the
      taps to the outputs of hoisted layers, and rows are what these layers got,
      both a list of `[T, ...]`.
    calls: what is hoisted.
    num_steps: T.

  Returns:
    A function `(params, *arguments) -> result`.
  """
  precision = jax.config.jax_default_matmul_precision

  def new_taps():
    outputs = (call.output for call in calls)
    return [jnp.zeros((num_steps, *x.shape), x.dtype) for x in outputs]

  @jax.custom_vjp
  def unrolled(params, *args):
    return loop(_weights(calls, params), new_taps(), params, *args)[0]

  def forward(params, *args):
    # As constants, the weights of hoisted layers get no gradient in the loop.
    weights = _weights(calls, params)
    result, vjp, rows = jax.vjp(
        lambda *args: loop(weights, *args),
        new_taps(),
        params,
        *args,
        has_aux=True,
    )
    return result, (vjp, rows)

  def backward(residuals, cotangents):
    vjp, rows = residuals
    taps, params, *others = vjp(cotangents)
    params = {name: dict(bundle) for name, bundle in params.items()}
    for (name, _), x, y in zip(calls, rows, taps, strict=True):
      # Rows are not merged: their batch may be split over devices.
      product = functools.partial(jnp.matmul, x, precision=precision)
      (grad,) = jax.linear_transpose(product, params[name]["w"])(y)
      params[name]["w"] += grad
    return params, *others

  unrolled.defvjp(forward, backward)
  return unrolled


def _find_calls(
    step: Callable[[Any, Any], tuple[Any, Any]],
    params: hk.Params,
    inputs: Any,
    state: Any,
) -> list[_Call]:
  """Returns the calls in a step that are hoisted, in their order."""
  calls = []

  def note(next_call, x, name, weight):
    del weight
    y = next_call(x)
    calls.append(_Call(name, jax.ShapeDtypeStruct(y.shape, y.dtype)))
    return y

  take_step = functools.partial(_take_step, step, note)
  jax.eval_shape(take_step, params, inputs, state)
  return calls


def _as_function(
    step: Callable[[Any, Any], tuple[Any, Any]], *examples: Any
) -> tuple[Callable[..., Any], list[Any]]:
  """Makes `_take_tapped_step` a function of arrays alone.

  What the step closes over, such as the output of an encoder, becomes an
  argument, so that it has a gradient too. (`jax.closure_convert` leaves out
  what has none, such as a mask, which may not outlive an outer trace.)

  Args:
    step: as in `dynamic_unroll`.
    *examples: further arguments of `_take_tapped_step`, or their shapes.

  Returns:
    A function of such arguments and of what the step closes over; and that.
  """
  jaxpr, result = jax.make_jaxpr(
      functools.partial(_take_tapped_step, step), return_shape=True
  )(*examples)

  def function(params, weights, taps, inputs, state, *closure):
    call = jax.extend.core.jaxpr_as_fun(
        jax.extend.core.ClosedJaxpr(jaxpr.jaxpr, closure)
    )
    leaves = jax.tree.leaves((params, weights, taps, inputs, state))
    return jax.tree.unflatten(jax.tree.structure(result), call(*leaves))

  return function, jaxpr.consts


def _take_tapped_step(
    step: Callable[[Any, Any], tuple[Any, Any]],
    params: hk.Params,
    weights: dict[str, jax.Array],
    taps: Sequence[jax.Array],
    inputs: Any,
    state: Any,
) -> tuple[Any, Any, list[jax.Array]]:
  """Takes a step and also returns what hoisted layers got.

  Args:
    step: as in `dynamic_unroll`.
    params: of all layers.
    weights: those of hoisted layers, by the layers' names.
    taps: added to the outputs of the hoisted calls: zeros, whose gradient is
      that of the output.
    inputs: a key or None, and those of the step.
    state: the state before the step.

  Returns:
    The output, the next state, and the inputs of the hoisted calls.
  """
  taps, rows = iter(taps), []

  def call_tapped(next_call, x, name, weight):
    def getter(next_getter, value, context):
      del context
      return next_getter(weights[name] if value is weight else value)

    rows.append(x)
    with hk.custom_getter(getter):
      return next_call(x) + next(taps)

  return *_take_step(step, call_tapped, params, inputs, state), rows


def _take_step(
    step: Callable[[Any, Any], tuple[Any, Any]],
    call_layer: _CallLayer,
    params: hk.Params,
    inputs: Any,
    state: Any,
) -> tuple[Any, Any]:
  """Takes a step in which `call_layer` makes the calls that are hoisted."""
  level, last_interceptor = _trace_level(), _interceptor_lookup()
  key, inputs = inputs

  def intercept(next_call, args, kwargs, context):
    layer = context.module
    if type(layer) is not hk.Linear or context.method_name != "__call__":
      return next_call(*args, **kwargs)
    name = layer.module_name
    weight = params.get(name, {}).get("w")
    if (
        len(args) != 1
        or kwargs
        or weight is None
        or last_interceptor() is not intercept
        or _trace_level() != level
        or hk.get_parameter("w", weight.shape) is not weight
        or not _is_worth_it(args[0].shape, weight.shape)
    ):
      return next_call(*args, **kwargs)
    return call_layer(next_call, args[0], name, weight)

  with hk.intercept_methods(intercept):
    return hk.transform(step).apply(params, key, inputs, state)


def _weights(
    calls: Sequence[_Call], params: hk.Params
) -> dict[str, jax.Array]:
  """Returns the weights of hoisted layers by the layers' names."""
  return {call.name: params[call.name]["w"] for call in calls}


def _interceptor_lookup() -> Callable[[], Any] | None:
  """Returns a function that tells which interceptor of Haiku comes last.

  Haiku has no public way to ask. Returns None for a Haiku whose internals are
  other than expected.
  """
  try:
    from haiku._src.module import interceptor_stack
  except ImportError:
    return None
  peek = getattr(interceptor_stack, "peek", None)
  return peek if callable(peek) else None


def _trace_level() -> Any:
  """Tells inside which transformations of JAX this is called."""
  module = jax.core
  if hasattr(jax.extend.core, "get_opaque_trace_state"):
    module = jax.extend.core
  return module.get_opaque_trace_state(convention="haiku")


def _is_worth_it(inputs: tuple[int, ...], weight: tuple[int, ...]) -> bool:
  """Returns whether the operands of a gradient are small, next to it."""
  if not all(isinstance(size, int) for size in inputs):
    return False  # A symbol of `jax.export`.
  return 6 * math.prod(inputs[:-1]) * sum(weight) < math.prod(weight)
