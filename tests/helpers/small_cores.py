"""Small cores, their inputs and parameters, for tests that compare ways.

A test builds the core inside a function, as any Haiku code does, and applies
that function to parameters that were drawn once, so that two functions can be
held against each other.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

import rmc

BATCH = 2


class Case(NamedTuple):
  """A configuration of the core.

  Attributes:
    arguments: the constructor's.
    input_shape: of one example in one step.
  """

  arguments: dict[str, Any]
  input_shape: tuple[int, ...]

  def core(self) -> rmc.RelationalMemory:
    """Builds the core; inside a transform."""
    return rmc.RelationalMemory(**self.arguments)

  def inputs(self, *leading: int, seed: int = 0) -> np.ndarray:
    """Draws inputs with these axes before those of an example."""
    shape = (*leading, *self.input_shape)
    return _draw(np.random.default_rng(seed), shape)

  def memory(self, *leading: int, seed: int = 1) -> np.ndarray:
    """Draws a memory, unlike the core's own start."""
    arguments = self.arguments
    width = arguments["head_size"] * arguments.get("num_heads", 1)
    shape = (*leading, arguments["mem_slots"], width)
    return _draw(np.random.default_rng(seed), shape)

  def params(self) -> hk.Params:
    """Draws the core's parameters."""
    return draw_params(
        lambda x, memory: self.core()(x, memory),
        self.inputs(BATCH),
        self.memory(BATCH),
    )


def case(*input_shape: int, **arguments) -> Case:
  return Case({"mem_slots": 3, "head_size": 4} | arguments, input_shape)


CASES = {
    "default": case(5),
    "heads": case(5, num_heads=2),
    "blocks": case(5, num_heads=2, num_blocks=2),
    "memory_gate": case(5, num_heads=2, gate_style="memory", input_bias=0.5),
    "no_gate": case(5, num_blocks=2, gate_style=None),
    "key_size": case(5, num_heads=2, key_size=3, forget_bias=-0.5),
    "mlp_layers": case(5, attention_mlp_layers=3),
    "one_slot": case(5, mem_slots=1, num_heads=2, attention_mlp_layers=1),
    "extra_dims": case(2, 3),
    "matrix": case(2, 5, num_heads=2, treat_input_as_matrix=True),
    "matrix_blocks": case(
        3, 2, 2, num_blocks=2, gate_style="memory", treat_input_as_matrix=True
    ),
}


def _draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  return rng.normal(size=shape).astype(jnp.result_type(float))


def draw_params(fn: Callable[..., Any], *args, seed: int = 2) -> hk.Params:
  """Draws parameters for `fn(*args)`, in which every one of them matters.

  Gains are about 1, everything else about 0; nothing is compiled.

  Args:
    fn: uses Haiku modules.
    *args: its arguments.
    seed: of the draw.

  Returns:
    NumPy arrays of JAX's default floating type.
  """
  shapes = jax.eval_shape(hk.transform(fn).init, jax.random.key(0), *args)
  rng = np.random.default_rng(seed)
  return {
      module: {
          name: 0.4 * _draw(rng, value.shape) + (name == "scale")
          for name, value in sorted(bundle.items())
      }
      for module, bundle in sorted(shapes.items())
  }


def apply(fn: Callable[..., Any], params: hk.Params, *args) -> Any:
  """Applies a compiled `fn` to its parameters and arguments."""
  return jax.jit(hk.without_apply_rng(hk.transform(fn)).apply)(params, *args)


def assert_close(actual, expected, atol=1e-6):
  """Asserts nests of equal structure, types, and values to a tolerance.

  Args:
    actual: a nest of arrays.
    expected: another.
    atol: absolute, or of the largest entry where that is above 1.
  """

  def check(a, b):
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    scale = max(1.0, float(np.max(np.abs(b), initial=0)))
    np.testing.assert_allclose(a, b, rtol=0, atol=atol * scale)

  jax.tree.map(check, actual, expected)
