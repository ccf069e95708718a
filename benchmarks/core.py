"""Speed and memory of the core over a sequence, on whatever device JAX sees.

    python -m benchmarks.core
    python -m benchmarks.core --shapes=A,B --growth=false --json

All paths of a shape are timed in turn within one run, so that ratios hold on a
busy machine where times do not. A loss of the outputs is differentiated with
respect to the parameters.

Columns:
  - forward_ms, forward_backward_ms: medians of one call.
  - peak_bytes: the temporary memory XLA sets aside for forward and backward.
  - flops: of all dot products of the forward pass, 2 M K N each.
  - fraction_of_matmul: the forward pass's FLOP/s in dot products over the
    FLOP/s of its products with weights alone, of the same [M, K, N] and as
    many, timed in the same rounds.
"""

from collections.abc import Callable
import dataclasses
import functools
import json
import math
from typing import Any, NamedTuple

from absl import flags
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import output_flags, reference, timing
from benchmarks.products import products
import rmc
from scripts.lib import program


@dataclasses.dataclass(frozen=True)
class Shape:
  """Sizes of a core and of what it is unrolled over."""

  batch: int
  steps: int
  features: int
  mem_slots: int
  num_heads: int
  head_size: int
  attention_mlp_layers: int = 2
  key_size: int | None = None

  def core_arguments(self) -> dict[str, Any]:
    """Returns the arguments of the core's constructor."""
    arguments = dataclasses.asdict(self)
    for name in ("batch", "steps", "features"):
      del arguments[name]
    return arguments


SHAPES = {
    # Nth Farthest, a word-level language model and a larger one.
    "A": Shape(64, 8, 40, 8, 8, 32),
    "B": Shape(16, 35, 256, 1, 4, 64, 5),
    "C": Shape(64, 50, 192, 1, 4, 192, 3, 64),
    "D": Shape(32, 25, 512, 4, 4, 256),
    # The paper's own sizes: for an accelerator.
    "nth_farthest_paper": Shape(1600, 8, 40, 8, 1, 256),
    "language_model_paper": Shape(64, 100, 512, 1, 4, 625, 5),
}
_BASE = Shape(16, 16, 64, 4, 4, 32)
GROWTH = {"base": _BASE} | {
    f"{field} x {factor}": dataclasses.replace(
        _BASE, **{field: factor * getattr(_BASE, field)}
    )
    for field in ("steps", "mem_slots", "batch", "head_size")
    for factor in (2, 4)
}
LONG = {"T=512": dataclasses.replace(_BASE, steps=512)}


class Path(NamedTuple):
  """A way to run a sequence.

  Attributes:
    core: makes the core for a shape.
    unroll: takes the core, inputs `[T, B, D]` and the initial state.
  """

  core: Callable[[Shape], hk.RNNCore]
  unroll: Callable[..., tuple[Any, Any]]


def _relational_memory(shape: Shape) -> hk.RNNCore:
  return rmc.RelationalMemory(**shape.core_arguments())


def _reference(shape: Shape) -> hk.RNNCore:
  return reference.ReferenceCore(**shape.core_arguments())


def _lstm(shape: Shape) -> hk.RNNCore:
  """Returns the LSTM with as many parameters, to the nearest unit."""
  parameters = hk.data_structures.tree_size(
      jax.eval_shape(Program(shape, PATHS["rmc.unroll"]).init)
  )
  # Its 4h(d + h) + 4h parameters, solved for h.
  half = (shape.features + 1) / 2
  return hk.LSTM(round(math.sqrt(half**2 + parameters / 4) - half))


def _dnc(shape: Shape) -> hk.RNNCore:
  """Returns the DNC with a controller as wide as a slot and the paper's memory.

  That is the one of Learning to Execute: 80 slots of 64, 4 heads to read, 1 to
  write.
  """
  width = shape.num_heads * shape.head_size
  return rmc.baselines.DNC(width, width, 80, 64, num_reads=4, num_writes=1)


PATHS = {
    "rmc.unroll": Path(_relational_memory, rmc.unroll),
    "hk.dynamic_unroll": Path(_relational_memory, hk.dynamic_unroll),
    "reference": Path(_reference, hk.dynamic_unroll),
    "hk.LSTM": Path(_lstm, hk.dynamic_unroll),
    "DNC": Path(_dnc, rmc.unroll),
}
LONG_PATHS = {
    "rmc.unroll": PATHS["rmc.unroll"],
    "rmc.unroll, remat": Path(
        _relational_memory, functools.partial(rmc.unroll, remat=True)
    ),
}


class Program:
  """A path on a shape, with its inputs, compiled forward and backward."""

  def __init__(self, shape: Shape, path: Path):
    def forward(inputs):
      core = path.core(shape)
      state = core.initial_state(shape.batch)
      return path.unroll(core, inputs, state)

    def loss(params, inputs):
      outputs, _ = self._transformed.apply(params, inputs)
      return jnp.mean(jnp.square(outputs))

    self._transformed = hk.without_apply_rng(hk.transform(forward))
    self._sizes = (shape.steps, shape.batch, shape.features)
    self.forward_fn = self._transformed.apply
    self.forward_backward_fn = jax.value_and_grad(loss)

  def inputs(self) -> jax.Array:
    """Returns random inputs, `[T, B, D]`."""
    return jax.random.normal(jax.random.key(0), self._sizes)

  def init(self) -> hk.Params:
    """Returns initial parameters."""
    return self._transformed.init(jax.random.key(1), self.inputs())


def _multiply(xs: list[jax.Array], weights: list[jax.Array]):
  """Multiplies the stacks `[times, M, K]` by their `[K, N]`, one at a time."""

  def multiply_all(x, w):
    y = jnp.zeros((x.shape[1], w.shape[1]))
    return jax.lax.scan(lambda _, x: (x @ w, None), y, x)[0]

  return [multiply_all(x, w) for x, w in zip(xs, weights, strict=True)]


def measure(
    name: str, shape: Shape, paths: dict[str, Path], repetitions: int
) -> list[dict[str, Any]]:
  """Measures paths on one shape in one run.

  Args:
    name: of the shape, for the rows.
    shape: the sizes.
    paths: the paths by name.
    repetitions: how many rounds are timed.

  Returns:
    A row for each path, by column.
  """
  rows, functions, weight_flops = [], [], []
  for path_name, path in paths.items():
    run = Program(shape, path)
    arguments = (run.init(), run.inputs())
    jaxpr = jax.make_jaxpr(run.forward_fn)(*arguments).jaxpr
    found = products(jaxpr)
    forward, forward_backward = (
        jax.jit(f).lower(*arguments).compile()
        for f in (run.forward_fn, run.forward_backward_fn)
    )
    by_weights = {p: times for p, times in found.items() if p.batch == 1}
    xs = [jnp.ones((times, p.m, p.k)) for p, times in by_weights.items()]
    weights = [jnp.ones((p.k, p.n)) for p in by_weights]
    multiply = jax.jit(_multiply).lower(xs, weights).compile()

    memory = forward_backward.memory_analysis()
    rows.append({
        "shape": name,
        "path": path_name,
        "forward_ms": None,
        "forward_backward_ms": None,
        "peak_bytes": memory.temp_size_in_bytes,
        "flops": sum(p.flops * times for p, times in found.items()),
        "fraction_of_matmul": None,
    })
    weight_flops.append(sum(p.flops * n for p, n in by_weights.items()))
    functions += [
        functools.partial(forward, *arguments),
        functools.partial(forward_backward, *arguments),
        functools.partial(multiply, xs, weights),
    ]
  times = timing.interleaved_medians(functions, repetitions)
  times = np.reshape(times, (-1, 3)).tolist()
  for row, flops, (forward_ms, forward_backward_ms, multiply_ms) in zip(
      rows, weight_flops, times, strict=True
  ):
    row["forward_ms"] = forward_ms
    row["forward_backward_ms"] = forward_backward_ms
    rate = row["flops"] / forward_ms
    row["fraction_of_matmul"] = rate / (flops / multiply_ms)
  return rows


_HEADER = (
    f"{'shape':<20} {'path':<18} {'forward':>9} {'+backward':>10} "
    f"{'peak':>9} {'GFLOP':>8} {'GFLOP/s':>8} {'of matmul':>9}"
)


def _line(row: dict[str, Any]) -> str:
  giga = 1e-9 * row["flops"]
  return (
      f"{row['shape']:<20} {row['path']:<18} {row['forward_ms']:>6.1f} ms "
      f"{row['forward_backward_ms']:>7.1f} ms "
      f"{1e-6 * row['peak_bytes']:>6.1f} MB {giga:>8.3f} "
      f"{1e3 * giga / row['forward_ms']:>8.1f} "
      f"{row['fraction_of_matmul']:>9.0%}"
  )


_SHAPES = flags.DEFINE_list(
    "shapes",
    ["A", "B", "C", "D"],
    f"Which shapes, of {', '.join(SHAPES)}.",
)
_GROWTH = flags.DEFINE_boolean(
    "growth", True, "Also grow one shape in steps, slots, batch and width."
)
_REPETITIONS = flags.DEFINE_integer(
    "repetitions", 11, "Rounds that are timed.", lower_bound=1
)
flags.adopt_module_key_flags(output_flags)
flags.register_validator(
    "shapes",
    lambda names: set(names) <= set(SHAPES),
    f"must be among {', '.join(SHAPES)}",
)


def main():
  """Measures what the flags ask for and prints it."""
  groups = [({name: SHAPES[name] for name in _SHAPES.value}, PATHS)]
  if _GROWTH.value:
    groups += [(GROWTH, {"rmc.unroll": PATHS["rmc.unroll"]})]
    groups += [(LONG, LONG_PATHS)]
  rows = []
  if not output_flags.JSON.value:
    print(_HEADER)
  for shapes, paths in groups:
    for name, shape in shapes.items():
      rows += measure(name, shape, paths, _REPETITIONS.value)
      if not output_flags.JSON.value:
        print(*map(_line, rows[-len(paths) :]), sep="\n", flush=True)
  if output_flags.JSON.value:
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
  program.run(main)
