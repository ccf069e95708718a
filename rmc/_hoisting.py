"""An unroll that makes the gradients of its weights after the loop.

Glossary of shapes:
  - T: steps.
  - M: rows that a linear layer gets in one step, as `[..., K]`.
  - K, N: rows and columns of its weight.
"""

from collections.abc import Callable
import functools
import math
from typing import Any

import haiku as hk

# Haiku has no public way to ask which interceptor comes last.
from haiku._src.module import interceptor_stack
import jax
import jax.extend.core
import jax.numpy as jnp


def applies_to(core: Any) -> bool:
  """Returns whether `dynamic_unroll` can unroll this core, here and now."""
  # A function may name its parameters after the module that it is called in.
  return (
      isinstance(core, hk.Module)
      and not hk.running_init()
      and not hk.get_current_state()
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
  r"""Is `hk.dynamic_unroll` of a rematerialised step, with its own backward.

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
  precision = jax.config.jax_default_matmul_precision
  calls = []  # The name and the shape of the output, for each hoisted call.

  def pure_step(params, weights, taps, inputs, state):
    """Takes a step and also returns what hoisted layers got.

    Their weights come from `weights`. To their outputs the taps are added,
    zeros with the same gradient. Without weights, the calls are noted.
    """
    taps, rows, level = iter(taps), [], _trace_level()
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
          or interceptor_stack.peek() is not intercept
          or _trace_level() != level
          or hk.get_parameter("w", weight.shape) is not weight
          or not _is_worth_it(args[0].shape, weight.shape)
      ):
        return next_call(*args, **kwargs)
      if weights is None:
        y = next_call(*args)
        calls.append((name, jax.ShapeDtypeStruct(y.shape, y.dtype)))
        return y

      def getter(next_getter, value, context):
        del context
        return next_getter(weights[name] if value is weight else value)

      rows.append(args[0])
      with hk.custom_getter(getter):
        return next_call(*args) + next(taps)

    with hk.intercept_methods(intercept):
      return *hk.transform(step).apply(params, key, inputs, state), rows

  params, inputs = hk.get_params(), (keys, inputs)
  first = jax.tree.map(lambda x: x[0], inputs)
  jax.eval_shape(pure_step, params, None, [], first, initial_state)
  shapes = [shape for _, shape in calls]

  def weights_of(params):
    return {name: params[name]["w"] for name, _ in calls}

  def new_taps():
    return [jnp.zeros((num_steps, *x.shape), x.dtype) for x in shapes]

  # What the step closes over, such as the output of an encoder, is in
  # `closure`, so that it has a gradient too. (`jax.closure_convert` leaves out
  # what has none, such as a mask, which may not outlive an outer trace.)
  jaxpr, result = jax.make_jaxpr(pure_step, return_shape=True)(
      params, weights_of(params), shapes, first, initial_state
  )
  closure = jaxpr.consts

  def tapped_step(params, weights, taps, inputs, state, *closure):
    function = jax.extend.core.jaxpr_as_fun(
        jax.extend.core.ClosedJaxpr(jaxpr.jaxpr, closure)
    )
    leaves = jax.tree.leaves((params, weights, taps, inputs, state))
    return jax.tree.unflatten(jax.tree.structure(result), function(*leaves))

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

  @jax.custom_vjp
  def unrolled(params, *args):
    return loop(weights_of(params), new_taps(), params, *args)[0]

  def forward(params, *args):
    # As constants, the weights of hoisted layers get no gradient in the loop.
    weights = weights_of(params)
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
  return unrolled(params, inputs, initial_state, closure)


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
