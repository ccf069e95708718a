"""Memory and time of a softmax over many words, forward and backward.

    python -m benchmarks.softmax
    python -m benchmarks.softmax --words=33278 --rounds=5

Each way takes outputs [T, B, D] and targets [T, B] to the mean loss and its
gradient with respect to outputs and parameters:

  - dense: all logits at once;
  - recomputed: `rmc.Softmax.log_probs`, some logits at a time, made again for
    the gradient;
  - chunked: `rmc.Softmax.cross_entropy`, some logits at a time, made once;
  - adaptive: `rmc.AdaptiveSoftmax.cross_entropy`, its tails at the paper's
    20,000, 40,000 and 200,000 words, or the same shares of fewer.

Columns:
  - parameters: of the way.
  - logits_bytes: what logits [T, B, V] would take.
  - temporary_bytes: what XLA sets aside beside arguments and results. That is
    known without running anything.
  - result_bytes: the gradients.
  - ms: median of one call, if --rounds is given; all ways in turn.
"""

from collections.abc import Callable
import functools

from absl import flags
import haiku as hk
import jax
import jax.numpy as jnp
import tabulate

from benchmarks import timing
import rmc
from scripts.lib import program

_WORDS = flags.DEFINE_integer("words", 267_735, "V, words.", lower_bound=100)
_STEPS = flags.DEFINE_integer("steps", 100, "T, steps.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 64, "B, streams.", lower_bound=1)
_SIZE = flags.DEFINE_integer(
    "size", 512, "D, size of an embedding.", lower_bound=64
)
_ROUNDS = flags.DEFINE_integer("rounds", 0, "Rounds to time.", lower_bound=0)


def main():
  """Prints a table."""
  words, size, steps = _WORDS.value, _SIZE.value, _STEPS.value
  cutoffs = [words * n // 267_735 for n in (20_000, 40_000, 200_000)]

  def recomputed(outputs, targets):
    return -jnp.mean(rmc.Softmax(words, size).log_probs(outputs, targets))

  ways = {
      "dense": lambda *args: rmc.Softmax(
          words, size, chunk_size=steps
      ).cross_entropy(*args),
      "recomputed": recomputed,
      "chunked": lambda *args: rmc.Softmax(words, size).cross_entropy(*args),
      "adaptive": lambda *args: rmc.AdaptiveSoftmax(
          words, size, cutoffs
      ).cross_entropy(*args),
  }
  rows, calls = [], []
  for name, loss in ways.items():
    row, call = _measure(name, loss)
    rows.append(row)
    calls.append(call)
  if _ROUNDS.value:
    times = timing.interleaved_medians(calls, _ROUNDS.value)
    for row, ms in zip(rows, times, strict=True):
      row["ms"] = round(ms)
  print(tabulate.tabulate(rows, headers="keys", intfmt=","))


def _measure(
    name: str, loss: Callable[[jax.Array, jax.Array], jax.Array]
) -> tuple[dict[str, object], Callable[[], object]]:
  """Returns a row of the table, and a call to time."""
  transformed = hk.without_apply_rng(hk.transform(loss))
  outputs = jax.ShapeDtypeStruct(
      (_STEPS.value, _BATCH.value, _SIZE.value), jnp.float32
  )
  targets = jax.ShapeDtypeStruct(outputs.shape[:2], jnp.int32)
  params = jax.eval_shape(transformed.init, jax.random.key(0), outputs, targets)

  compiled = (
      jax.jit(jax.value_and_grad(transformed.apply, (0, 1)))
      .lower(params, outputs, targets)
      .compile()
  )
  memory = compiled.memory_analysis()
  row = {
      "way": name,
      "parameters": hk.data_structures.tree_size(params),
      "logits_bytes": 4 * targets.size * _WORDS.value,
      "temporary_bytes": memory.temp_size_in_bytes,
      "result_bytes": memory.output_size_in_bytes,
  }

  def arguments():
    """Draws what is compared; made when it is timed, and once."""
    keys = jax.random.split(jax.random.key(0), 3)
    drawn = jax.random.normal(keys[0], outputs.shape)
    words = jax.random.randint(keys[1], targets.shape, 0, _WORDS.value)
    return jax.jit(transformed.init)(keys[2], drawn, words), drawn, words

  arguments = functools.cache(arguments)
  return row, lambda: compiled(*arguments())


if __name__ == "__main__":
  program.run(main)
