"""Operations by time: what it reads out of traces and programs."""

import jax
import jax.numpy as jnp

from benchmarks import operations


def test_durations_are_summed_by_operation():
  events = [
      {"ph": "X", "dur": 2.0, "args": {"hlo_op": "dot.1"}},
      {"ph": "X", "dur": 3.0, "args": {"hlo_op": "dot.1"}},
      {"ph": "X", "dur": 4.0, "args": {"hlo_op": "add"}},
      {"ph": "X", "dur": 9.0, "args": {"hlo_op": "while.2"}},  # All of these.
      {"ph": "X", "dur": 9.0, "args": {}},
      {"ph": "M", "name": "thread_name"},
  ]
  assert operations.durations(events) == {"dot.1": 5.0, "add": 4.0}


def test_origins_are_read_from_a_compiled_program():
  def function(x):
    with jax.named_scope("outer"):
      return jnp.sin(x) @ x

  compiled = jax.jit(function).lower(jnp.ones([4, 4])).compile()
  found = operations.origins(compiled.as_text())
  products = [x for x in found.items() if operations.is_product(*x)]
  assert "outer/dot_general" in products[0][1]
  assert len(products) < len(found)
