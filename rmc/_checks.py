"""Checks of arguments that the modules share."""

from typing import Any

import jax
import jax.numpy as jnp


def at_least(least: int, **arguments: int):
  """Checks the sizes that a core is made of.

  Args:
    least: the smallest value allowed.
    **arguments: values by the name of the argument.

  Raises:
    ValueError: if a value is below that.
  """
  for argument, value in arguments.items():
    if value < least:
      raise ValueError(f"{argument} must be at least {least}, got {value}.")


def array(inputs: Any) -> jax.Array:
  """Checks that one array enters a core; several would be stacked to one.

  Args:
    inputs: the inputs of a core.

  Returns:
    An array of JAX.

  Raises:
    ValueError: if they are a nest.
  """
  if not jax.tree_util.all_leaves([inputs]):
    raise ValueError(
        f"inputs must be one array, got a {type(inputs).__name__}; join what "
        "it holds, or wrap the core in hk.ResetCore if it holds where episodes "
        "begin."
    )
  return jnp.asarray(inputs)


def floating(inputs: jax.Array):
  """Checks what enters a core.

  Args:
    inputs: an array.

  Raises:
    ValueError: if they are not of a floating type.
  """
  if not jnp.issubdtype(inputs.dtype, jnp.floating):
    raise ValueError(
        f"inputs must be of a floating type, got {inputs.dtype}; embed or "
        "one-hot encode integers first."
    )


def integers(**arguments: jax.Array) -> tuple[jax.Array, ...]:
  """Checks tokens, and widens them to hold more than their own values.

  Of uint8 are all words of 256, but not their number, which they are held to.

  Args:
    **arguments: arrays by the name of the argument.

  Returns:
    The arrays, of 32 bits or more.

  Raises:
    ValueError: if one is not of an integer type.
  """
  arrays = {name: jnp.asarray(x) for name, x in arguments.items()}
  for name, x in arrays.items():
    if not jnp.issubdtype(x.dtype, jnp.integer):
      raise ValueError(f"{name} must be of an integer type, got {x.dtype}.")
    if x.dtype.itemsize < 4:
      arrays[name] = x.astype(jnp.int32)
  return tuple(arrays.values())


def batched(inputs: jax.Array, batch_size: int):
  """Checks what enters a core whose state has a batch.

  Args:
    inputs: an array.
    batch_size: that of the state.

  Raises:
    ValueError: if the inputs are not `[B, ...]`.
  """
  if inputs.ndim < 2 or inputs.shape[0] != batch_size:
    raise ValueError(
        "inputs must have shape [B, ...] with the batch size of the state, "
        f"{batch_size}, or both no batch, got {list(inputs.shape)}."
    )
