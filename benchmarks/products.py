"""The dot products of a program, counted."""

from collections import Counter
from collections.abc import Iterator
import math
from typing import NamedTuple

from jax.extend import core as jax_core


class Product(NamedTuple):
  """A dot product `[batch, M, K] x [batch, K, N]`."""

  batch: int
  m: int
  k: int
  n: int

  @property
  def flops(self) -> int:
    """Returns its multiplications and additions."""
    return 2 * math.prod(self)


def products(jaxpr: jax_core.Jaxpr, times: int = 1) -> Counter[Product]:
  """Counts the dot products of a program, in a loop once for each turn.

  Args:
    jaxpr: what `jax.make_jaxpr` makes of it, without its constants.
    times: how often all of it is done.

  Returns:
    How often each is done. Convolutions are not among them.
  """
  found = Counter()
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      x, y = (variable.aval.shape for variable in equation.invars)
      contracting, batch = equation.params["dimension_numbers"]
      k = math.prod(x[axis] for axis in contracting[0])
      b = math.prod(x[axis] for axis in batch[0])
      m, n = math.prod(x) // (b * k), math.prod(y) // (b * k)
      found[Product(b, m, k, n)] += times
    for inner in _inner_jaxprs(equation):
      found += products(inner, times * equation.params.get("length", 1))
  return found


def _inner_jaxprs(equation) -> Iterator[jax_core.Jaxpr]:
  for value in equation.params.values():
    if isinstance(value, jax_core.ClosedJaxpr):
      yield value.jaxpr
    elif isinstance(value, jax_core.Jaxpr):
      yield value
