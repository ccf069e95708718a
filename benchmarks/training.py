"""Updates a second of each training program, and batches of its sampler alone.

    python -m benchmarks.training
    python -m benchmarks.training --programs=nth_farthest --core=lstm --json

What is timed is the compiled update of the program itself, with the flags of a
preset and, over them, those of the command line.

Columns:
  - updates_per_second: with the sampler, as in training, without reports,
    evaluations and checkpoints.
  - batches_per_second: of the sampler alone; of an agent, its environments
    alone, as many of their steps as in an update, under random actions; of a
    curriculum, the sampler of the whole task.
  - gflop: of the dot products of an update, 2 M K N each, without convolutions.
  - share: with --parallel=jit and several devices, of all operations of an
    update on one device alone, those that each of them does, in per cent.
"""

from collections.abc import Callable, Sequence
import contextlib
import functools
import itertools
import json
import pathlib
import sys
import tempfile
import time
import types
from typing import Any, NamedTuple

from absl import flags
import jax
import jax.numpy as jnp
import tabulate

from benchmarks import output_flags
from benchmarks.products import products
from rmc import training
from scripts import (
  train_box_world,
  train_language_model,
  train_learn_to_execute,
  train_mini_pacman,
  train_nth_farthest,
)
from scripts.lib import (
  box_world_flags,
  experiment,
  mini_pacman_flags,
  nth_farthest_flags,
  program,
  run_flags,
)
from tasks.environments import Environment

FLAGS = flags.FLAGS
for _script in (
    train_box_world,
    train_language_model,
    train_learn_to_execute,
    train_mini_pacman,
    train_nth_farthest,
):
  flags.adopt_module_key_flags(_script)
flags.adopt_module_key_flags(output_flags)

_PRESETS = pathlib.Path(run_flags.__file__).parents[1] / "presets"


class _Benchmark(NamedTuple):
  """What is measured under a name.

  Attributes:
    script: the training program.
    preset: the flags, a file in the folder of presets.
    make_environment: makes the environment of an agent.
  """

  script: types.ModuleType
  preset: str
  make_environment: Callable[[], Environment] | None = None


_BENCHMARKS = {
    "nth_farthest": _Benchmark(train_nth_farthest, "nth_farthest/demo"),
    "learn_to_execute": _Benchmark(
        train_learn_to_execute, "learn_to_execute/program"
    ),
    "language_modeling": _Benchmark(
        train_language_model, "language_modeling/demo"
    ),
    "mini_pacman": _Benchmark(
        train_mini_pacman,
        "mini_pacman/demo",
        mini_pacman_flags.make_environment,
    ),
    "box_world": _Benchmark(
        train_box_world, "box_world/demo", box_world_flags.make_environment
    ),
}
flags.DEFINE_multi_enum(
    "programs", list(_BENCHMARKS), list(_BENCHMARKS), "What to measure."
)
flags.DEFINE_float(
    "seconds",
    10.0,
    "How long to measure, each time; 0: only count.",
    lower_bound=0,
)


def measure(
    name: str,
    arguments: Sequence[str],
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
  """Measures the update of a training program.

  Args:
    name: of the benchmark.
    arguments: flags that overrule those of its preset.
    devices: the devices to use; None for all that there are.

  Returns:
    A row, by column.
  """
  script, preset, make_environment = _BENCHMARKS[name]
  for flag in FLAGS:
    FLAGS[flag].unparse()  # What another benchmark's preset said.
  with tempfile.TemporaryDirectory() as workdir:
    program.parse([
        sys.argv[0],
        f"--flagfile={_PRESETS / preset}.flags",
        f"--workdir={workdir}",
        *arguments,
    ])
    run_flags.set_precision()
    parallel = run_flags.make_parallel(devices)
    with (
        jax.default_matmul_precision(FLAGS.matmul_precision),
        contextlib.ExitStack() as stack,
    ):
      measured = script.make_experiment(parallel)
      if measured.close is not None:
        stack.callback(measured.close)
      indices = parallel.local_indices(FLAGS.batch_size)
      if measured.batches is not None:
        sample = functools.partial(measured.batches, indices=indices)
      elif make_environment is not None:
        sample = _random_play(make_environment())
      else:
        sample = _nth_farthest_sampler(indices)
      return {
          "benchmark": name,
          "core": FLAGS.core,
          "batch_size": FLAGS.batch_size,
      } | _measure_update(measured, parallel, sample)


def _measure_update(
    measured: experiment.Experiment,
    parallel: training.DataParallel,
    sample: Callable[[int], Any],
) -> dict[str, float]:
  """Counts the operations of an update, and times it if --seconds says so.

  Args:
    measured: what is trained.
    parallel: how an update is split over devices.
    sample: makes the data of the update after so many.

  Returns:
    Columns of a row.
  """
  state = parallel.place_state(training.to_numpy(measured.init()))
  batch_at = experiment.make_batches(measured, parallel)
  update = parallel.make_update(measured.loss_fn, measured.optimizer)

  def train(step):
    nonlocal state
    state, metrics = update(state, batch_at(step))
    return metrics

  def operations(placing):
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (state, batch_at(0))
    )
    placed = placing.make_update(measured.loss_fn, measured.optimizer)
    return placed.lower(*shapes).compile().cost_analysis()["flops"]

  jaxpr = jax.make_jaxpr(update)(state, batch_at(0)).jaxpr
  counted = products(jaxpr).items()
  row = {"gflop": 1e-9 * sum(product.flops * n for product, n in counted)}
  if parallel.mode == "jit" and len(parallel.devices) > 1:
    alone = training.DataParallel("jit", parallel.devices[:1])
    row["share"] = 100 * operations(parallel) / operations(alone)
  if FLAGS.seconds:
    row["updates_per_second"] = _rate(train)
    row["batches_per_second"] = _rate(sample)
  return row


def _nth_farthest_sampler(indices) -> Callable[[int], Any]:
  """Returns what draws examples of the whole task, compiled alone."""
  task, _ = nth_farthest_flags.make_task()

  @jax.jit
  def sample(step):
    key = jax.random.fold_in(jax.random.key(FLAGS.seed), step)
    return jax.vmap(task.sample)(training.example_keys(key, indices))

  return sample


def _random_play(env: Environment) -> Callable[[int], Any]:
  """Returns what plays the steps of an update under random actions."""

  @jax.jit
  def play(states, step):
    def take(carry, key):
      states, total = carry
      actions = jax.random.randint(key, [FLAGS.batch_size], 0, env.num_actions)
      states, timesteps = jax.vmap(env.step)(states, actions)
      # Something depends on every output, so that all are computed.
      total += sum(jnp.sum(x, dtype=jnp.float32) for x in timesteps)
      return (states, total), None

    key = jax.random.fold_in(jax.random.key(FLAGS.seed), step)
    keys = jax.random.split(key, FLAGS.unroll_length)
    return jax.lax.scan(take, (states, jnp.float32(0)), keys)[0]

  keys = jax.random.split(jax.random.PRNGKey(FLAGS.seed), FLAGS.batch_size)
  states, _ = jax.jit(jax.vmap(env.reset))(keys)

  def sample(step):
    nonlocal states
    states, total = play(states, step)
    return total

  return sample


def _rate(call: Callable[[int], Any]) -> float:
  """Returns how many calls, with 0, 1, ..., are done in a second."""
  jax.block_until_ready(call(0))  # Compiles.
  start = time.perf_counter()
  for step in itertools.count(1):
    result = call(step)
    jax.block_until_ready(result)
    seconds = time.perf_counter() - start
    if seconds > FLAGS.seconds:
      return step / seconds


def main():
  """Measures what the flags ask for and prints it."""
  arguments, as_json = sys.argv[1:], FLAGS.json
  rows = [measure(name, arguments) for name in FLAGS.programs]
  if as_json:
    print(json.dumps(rows, indent=1))
  else:
    print(tabulate.tabulate(rows, headers="keys", floatfmt=",.1f"))


if __name__ == "__main__":
  program.run(main)
