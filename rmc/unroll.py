"""A core over a sequence: lengths, resets and work done once.

Glossary of shapes:
  - T: steps.
  - B: batch size.
"""

from collections.abc import Callable
import functools
import math
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from rmc import _hoisting


def unroll(
    core: hk.RNNCore,
    inputs: Any,
    initial_state: Any,
    *,
    lengths: jax.Array | None = None,
    should_reset: jax.Array | None = None,
    time_major: bool = True,
    remat: bool = False,
    unroll: int = 1,
    return_all_states: bool = False,
) -> tuple[Any, Any]:
  """Unrolls a core over a sequence with `hk.dynamic_unroll`.

  A core may offer to do what does not depend on its state once for the whole
  sequence. It then has two more methods, such that `core(inputs, state)`
  equals `core.advance(core.precompute(inputs), state)`:

    - `precompute(inputs)` takes the inputs of many steps as one batch and
      returns a nest of arrays with that batch axis first;
    - `advance(precomputed, state)` takes a step on one step's part of that
      nest and returns `(output, next_state)` as a call does.

  Its `initial_state(None)` must work, since it tells whether the given state
  has a batch axis. A core that wraps another shares in this by passing both
  methods on.

  Of two sequences the second is shorter, so that its state rests at the end::

    >>> def network(inputs):
    ...   core = hk.VanillaRNN(4)
    ...   return unroll(
    ...       core, inputs, core.initial_state(2), lengths=jnp.array([5, 3]),
    ...       return_all_states=True)
    >>> network = hk.without_apply_rng(hk.transform(network))
    >>> inputs = jnp.ones([5, 2, 3])
    >>> params = network.init(jax.random.key(0), inputs)
    >>> outputs, states = network.apply(params, inputs)
    >>> outputs.shape, bool(jnp.any(outputs[3:, 1]))
    ((5, 2, 4), False)
    >>> bool(jnp.all(states[4, 1] == states[2, 1]))
    True

  For the backward pass each step keeps the results of its matrix products and
  convolutions, and what is cheap is computed anew from them: on CPU this is
  faster than to write and read everything, and takes half the memory. If the
  core is a Haiku module, the gradients of large weights are made at the end,
  from all steps at once. JAX then refuses forward-mode derivatives (`jax.jvp`)
  of the unroll itself, though not of its gradients; `hk.dynamic_unroll` has
  them. A core that draws random numbers draws others here than there, and again
  others with `remat`. In `jax.shard_map` give `check_vma=False`.

  Args:
    core: any `hk.RNNCore`, or a function `(inputs, state) -> (output, state)`
      if there is nothing to reset.
    inputs: a nest of `[T, B, ...]`, or of `[T, ...]` without a batch.
    initial_state: the core's state before the first step, a nest of
      `[B, ...]`, or without a batch.
    lengths: integers `[B]`, or one without a batch, the number of steps of each
      example. Past its length an example's output is zero and its state is
      carried over. None: all steps of all examples.
    should_reset: booleans `[T, B]`, or `[T]` without a batch; where true, the
      step begins an episode, from the core's own initial state. It comes before
      the length is looked at. None: never.
    time_major: whether the time axis of inputs, `should_reset`, outputs and
      all states is the first; otherwise it is the second, after the batch,
      which there must be then.
    remat: whether the backward pass computes everything anew, in chunks of
      about the square root of T steps, from the state before each chunk and
      its inputs: memory grows as that root, and the numbers are the same.
    unroll: how many steps the compiled loop takes at a time.
    return_all_states: whether to return the state after each step.

  Returns:
    A pair of the outputs, a nest of `[T, B, ...]`, and the final state, or all
    states, a nest of `[T, B, ...]`.

  Raises:
    ValueError: if the inputs have no steps or differ in their number, if
      `lengths` or `should_reset` have a wrong shape or type, or if
      `time_major` is false, the core offers `precompute` and there is no batch.
  """
  if should_reset is not None:
    should_reset = jnp.asarray(should_reset)
  if not time_major:
    inputs = _swap_time(inputs)
    should_reset = _swap_time(should_reset)
  num_steps = _num_steps(inputs)
  reset_state = running = None
  if should_reset is not None:
    reset_state = _reset_state(core, should_reset, initial_state, num_steps)
  if lengths is not None:
    running = _running(jnp.asarray(lengths), num_steps)  # [T, B]
  prepare, core_step = None, core
  if hasattr(core, "precompute"):
    prepare = _preparation(core, initial_state, running, time_major)
    core_step = core.advance

  def step(inputs, state):
    return _guarded_step(core_step, reset_state, inputs, state)

  def unroll_all(inputs, initial_state):
    inputs, *switches = inputs
    if prepare is not None:
      inputs = prepare(inputs)
    inputs = (inputs, *switches)
    policy = jax.checkpoint_policies.dots_saveable
    options = {"unroll": unroll, "return_all_states": return_all_states}
    if _hoisting.applies_to(core):
      return _hoisting.dynamic_unroll(
          step, inputs, initial_state, policy=policy, **options
      )
    return hk.dynamic_unroll(
        _remat(step, policy=policy), inputs, initial_state, **options
    )

  inputs = (inputs, should_reset, running)
  if remat:
    outputs, states = _unroll_chunks(
        unroll_all, inputs, initial_state, num_steps, return_all_states
    )
  else:
    outputs, states = unroll_all(inputs, initial_state)
  if not time_major:
    outputs = _swap_time(outputs)
    states = _swap_time(states) if return_all_states else states
  return outputs, states


def _guarded_step(
    core_step: Callable[[Any, Any], tuple[Any, Any]],
    reset_state: Any,
    inputs: tuple[Any, jax.Array | None, jax.Array | None],
    state: Any,
) -> tuple[Any, Any]:
  """Takes a step after the reset, if it is due, and within the length.

  Args:
    core_step: takes the step.
    reset_state: the state that a reset begins with, a nest of `[B, ...]`.
    inputs: those of the core; whether each example is reset, `[B]` or None;
      and whether it is still running, `[B]` or None.
    state: the state before the step.

  Returns:
    The output and the next state.
  """
  inputs, should_reset, running = inputs
  if should_reset is not None:
    state = _where(should_reset, reset_state, state)
  output, next_state = core_step(inputs, state)
  if running is not None:
    output = _where(running, output, jax.tree.map(jnp.zeros_like, output))
    next_state = _where(running, next_state, state)
  return output, next_state


def _preparation(
    core: hk.RNNCore,
    initial_state: Any,
    running: jax.Array | None,
    time_major: bool,
) -> Callable[[Any], Any]:
  """Returns the function that `core` applies to the inputs of all steps.

  Args:
    core: has a method `precompute`.
    initial_state: as in `unroll`.
    running: as `_running` returns it, or None.
    time_major: as in `unroll`.

  Raises:
    ValueError: if there is no batch, and an argument of `unroll` needs one.
  """
  ranks = jax.tree.map(jnp.ndim, initial_state)
  if ranks != jax.tree.map(jnp.ndim, core.initial_state(None)):
    return functools.partial(over_steps, core.precompute)
  if not time_major:
    raise ValueError(
        "time_major=False needs a batch, and initial_state has none."
    )
  if running is not None and running.ndim > 1:
    shapes = jax.tree.map(jnp.shape, initial_state)
    raise _wrong_batch(running.shape[1:], shapes)
  return core.precompute


def over_steps(function: Callable[[Any], Any], inputs: Any) -> Any:
  """Applies a function of `[B, ...]` to all steps at once.

  They are merged batch first. Where a compiler splits the batch over devices,
  so are the merged rows; with the steps first, as `hk.BatchApply` would have
  them, each device would gather and do them all.

  Args:
    function: takes and returns nests of `[B * T, ...]`, row by row.
    inputs: a nest of `[T, B, ...]`.

  Returns:
    A nest of `[T, B, ...]`.

  Raises:
    ValueError: if the inputs have no batch axis.
  """
  for x in jax.tree.leaves(inputs):
    if jnp.ndim(x) < 2:
      raise ValueError(
          "inputs must have shape [T, B, ...], as the state has a batch, got "
          f"{list(jnp.shape(x))}."
      )
  swap = functools.partial(jnp.swapaxes, axis1=0, axis2=1)
  results = hk.BatchApply(function)(jax.tree.map(swap, inputs))
  return jax.tree.map(swap, results)


def _unroll_chunks(
    unroll_all: Callable[[Any, Any], tuple[Any, Any]],
    inputs: Any,
    state: Any,
    num_steps: int,
    return_all_states: bool,
) -> tuple[Any, Any]:
  """Unrolls some steps at a time and keeps the states between for the backward.

  Args:
    unroll_all: unrolls all inputs that it is given.
    inputs: a nest of `[T, ...]`.
    state: the state before the first step.
    num_steps: T.
    return_all_states: whether `unroll_all` returns the state after each step.

  Returns:
    What `unroll_all` would return.
  """
  root = math.isqrt(num_steps)
  divisors = (n for n in range(root, root // 2, -1) if num_steps % n == 0)
  size = next(divisors, root)
  end = num_steps - num_steps % size

  def unroll_chunk(inputs, state):
    outputs, states = unroll_all(inputs, state)
    if not return_all_states:
      return (outputs, None), states
    return (outputs, states), jax.tree.map(lambda x: x[-1], states)

  chunks = jax.tree.map(
      lambda x: jnp.reshape(x[:end], (-1, size, *x.shape[1:])), inputs
  )
  results, state = hk.dynamic_unroll(_remat(unroll_chunk), chunks, state)
  results = jax.tree.map(lambda x: jax.lax.collapse(x, 0, 2), results)
  if end < num_steps:
    rest = jax.tree.map(lambda x: x[end:], inputs)
    last, state = unroll_chunk(rest, state)
    results = jax.tree.map(lambda *x: jnp.concatenate(x), results, last)
  outputs, states = results
  return outputs, states if return_all_states else state


def _remat(step, policy=None):
  """Applies `hk.remat`, or JAX's own where there is no transform around it."""
  try:
    hk.running_init()
    remat = hk.remat
  except ValueError:
    remat = jax.checkpoint
  # What prevent_cse prevents cannot happen across the steps of a loop.
  return remat(step, prevent_cse=False, policy=policy)


def _swap_time(nest):
  for x in jax.tree.leaves(nest):
    if jnp.ndim(x) < 2:
      raise ValueError(
          "time_major=False needs inputs and should_reset of shape "
          f"[B, T, ...], got {list(jnp.shape(x))}."
      )
  return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), nest)


def _num_steps(inputs: Any) -> int:
  """Returns T, which all inputs share."""
  leaves = jax.tree.leaves(inputs)
  sizes = {jnp.shape(x)[0] if jnp.ndim(x) else 0 for x in leaves}
  if len(sizes) != 1 or 0 in sizes:
    raise ValueError(
        "inputs must have a time axis of one and the same size, at least 1, "
        f"got shapes {[jnp.shape(x) for x in leaves]}."
    )
  return sizes.pop()


def _reset_state(
    core: hk.RNNCore, should_reset: jax.Array, state: Any, num_steps: int
) -> Any:
  """Returns the core's own initial state, of the types of the given state."""
  if should_reset.ndim not in (1, 2) or should_reset.shape[0] != num_steps:
    raise ValueError(
        f"should_reset must have shape [T, B] with T = {num_steps} steps, or "
        f"[T] without a batch, got {list(should_reset.shape)} (time first)."
    )
  if should_reset.dtype != jnp.bool_:
    raise ValueError(
        f"should_reset must be boolean, got {should_reset.dtype}."
    )
  batch = should_reset.shape[1:]

  def cast(reset, state):
    if reset.shape != jnp.shape(state):
      raise _wrong_batch(batch, jnp.shape(state))
    return reset.astype(jnp.result_type(state))

  return jax.tree.map(cast, core.initial_state(*(batch or (None,))), state)


def _running(lengths: jax.Array, num_steps: int) -> jax.Array:
  """Returns whether each step is within each example's length, `[T, B]`."""
  if lengths.ndim > 1 or not jnp.issubdtype(lengths.dtype, jnp.integer):
    raise ValueError(
        "lengths must be integers of shape [B], or a single one without a "
        f"batch, got {lengths.dtype} of shape {list(lengths.shape)}."
    )
  # A small type, such as uint8, might hold all lengths but not all steps.
  lengths = lengths.astype(jnp.int32)
  steps = jnp.arange(num_steps, dtype=jnp.int32)
  return jnp.expand_dims(steps, range(1, 1 + lengths.ndim)) < lengths[None]


def _where(condition: jax.Array, x: Any, y: Any) -> Any:
  """Chooses between nests by a `[B]` condition on their first axes."""

  def choose(x, y):
    for shape in (x.shape, y.shape):
      if shape[: condition.ndim] != condition.shape:
        raise _wrong_batch(condition.shape, shape)
    axes = range(condition.ndim, x.ndim)
    return jnp.where(jnp.expand_dims(condition, axes), x, y)

  return jax.tree.map(choose, x, y)


def _wrong_batch(batch: tuple[int, ...], shape: Any) -> ValueError:
  return ValueError(
      "lengths and should_reset must have the batch axis of every state and "
      f"output, got {list(batch)} for one of shape {list(shape)}."
  )
