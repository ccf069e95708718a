"""Reads programs of JAX, whose parameters differ from version to version."""

from collections.abc import Iterator

from jax.extend import core


def equations(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
  """Yields all equations, those inside others too."""
  for equation in jaxpr.eqns:
    yield equation
    for value in equation.params.values():
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        yield from equations(inner)


def carries(equation: core.JaxprEqn) -> list:
  """Returns what a scan hands from step to step, as abstract values.

  Of a scan's outputs these come first and have the shapes that they have
  inside it; the others are stacked.
  """
  inner = equation.params["jaxpr"]
  inner = getattr(inner, "jaxpr", inner)
  return [
      outside.aval
      for outside, inside in zip(
          equation.outvars, inner.outvars, strict=True
      )
      if outside.aval.shape == inside.aval.shape
  ]
