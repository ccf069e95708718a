"""Where the time of forward and backward goes, operation by operation.

    python -m benchmarks.operations --shape=A --path=rmc.unroll
    taskset -c 0 python -m benchmarks.operations --shape=A  # On one core.

Milliseconds are those of one call. On one core they add up to the time that
passes; on several, operations run side by side and one may use all cores, so
that only shares tell. A loop is what happens in it. A name is XLA's for the
compiled operation, beside the JAX operation that it comes from.
"""

from collections import Counter
from collections.abc import Iterable
import gzip
import json
import pathlib
import re
import tempfile
from typing import Any

from absl import flags
import jax
import tabulate

from benchmarks import core
from scripts.lib import program

FLAGS = flags.FLAGS

_CALLS = 5

flags.DEFINE_enum("shape", "A", list(core.SHAPES), "What to run.")
flags.DEFINE_enum("path", "rmc.unroll", list(core.PATHS), "How to run it.")
flags.DEFINE_integer("rows", 20, "Operations to show.", lower_bound=1)


def durations(events: Iterable[dict[str, Any]]) -> Counter[str]:
  """Returns microseconds by operation.

  Args:
    events: of a trace that `jax.profiler` wrote.
  """
  total = Counter()
  for event in events:
    name = event.get("args", {}).get("hlo_op")
    if event.get("ph") == "X" and name and not name.startswith("while"):
      total[name] += event["dur"]
  return total


def origins(hlo: str) -> dict[str, str]:
  """Returns the JAX operation that each compiled one comes from.

  Args:
    hlo: a compiled program as text.
  """
  return dict(
      re.findall(
          r"^\s*(?:ROOT )?%?([\w.-]+) = .*op_name=\"([^\"]*)\"", hlo, re.M
      )
  )


def is_product(name: str, origin: str) -> bool:
  """Returns whether an operation is a dot product, alone or with what follows.

  Args:
    name: XLA's.
    origin: the JAX operation that it comes from.
  """
  return name.startswith("dot") or origin.endswith("dot_general")


def main():
  """Runs, traces and prints a table."""
  run = core.Program(core.SHAPES[FLAGS.shape], core.PATHS[FLAGS.path])
  arguments = run.init(), run.inputs()
  compiled = jax.jit(run.forward_backward_fn).lower(*arguments).compile()
  jax.block_until_ready(compiled(*arguments))
  with tempfile.TemporaryDirectory() as directory:
    with jax.profiler.trace(directory):
      for _ in range(_CALLS):
        jax.block_until_ready(compiled(*arguments))
    (path,) = pathlib.Path(directory).rglob("*.trace.json.gz")
    with gzip.open(path) as file:
      total = durations(json.load(file)["traceEvents"])
  if not total:
    raise program.Failure("the profiler of this device names no operations")
  names = origins(compiled.as_text())
  scale = 1e-3 / _CALLS
  rows = [
      (scale * microseconds, name, names.get(name, "")[-70:])
      for name, microseconds in total.most_common(FLAGS.rows)
  ]
  products = sum(
      microseconds
      for name, microseconds in total.items()
      if is_product(name, names.get(name, ""))
  )
  rows.append((scale * products, "all dot products", ""))
  rows.append((scale * sum(total.values()), "all", ""))
  print(tabulate.tabulate(rows, ["ms", "operation", "of"], floatfmt=".2f"))


if __name__ == "__main__":
  program.run(main)
