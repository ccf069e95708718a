"""Steps a second of the environments, new episodes included.

    python -m benchmarks.environments
    python -m benchmarks.environments --env=box_world --resets

Uniform random actions; the environments have played long enough before for
their episodes to end at different times. With --resets, the ways to begin
episodes that were considered for `tasks.environments.sample_where` are measured
against it. Prints a table for the device that JAX takes; JAX_PLATFORMS chooses.
"""

import math
import statistics
import time

from absl import flags
import jax
import jax.numpy as jnp

from scripts.lib import program
from tasks.environments import box_world, interface, mini_pacman

_ENVIRONMENTS = {
    "mini_pacman": mini_pacman.MiniPacman,
    "box_world": box_world.BoxWorld,
}
_ENV = flags.DEFINE_multi_enum(
    "env", list(_ENVIRONMENTS), list(_ENVIRONMENTS), "What to measure."
)
_VIEW = flags.DEFINE_enum(
    "view", "viewport", ["viewport", "full"], "What observations show."
)
_NUM_ENVS = flags.DEFINE_multi_integer(
    "num_envs",
    [1, 32, 1024, 8192],
    "Numbers of environments side by side.",
    lower_bound=1,
)
_STEPS = flags.DEFINE_integer(
    "steps", 200, "Steps of each environment in a run.", lower_bound=1
)
_RUNS = flags.DEFINE_integer("runs", 7, "Runs measured.", lower_bound=1)
_RESETS = flags.DEFINE_bool(
    "resets", False, "Measure other ways to begin episodes, too."
)


def _always(needed, sample, key, arguments, otherwise):
  """Draws for every example at every step, and mostly throws it away."""
  unwanted = _whole_batch(jnp.bool_(True), sample, key, arguments, otherwise)
  return jax.tree.map(
      lambda x, y: jnp.where(needed, x, y), unwanted, otherwise
  )


def _whole_batch(needed, sample, key, arguments, otherwise):
  """Draws for all examples as often as any needs it: the loop, just mapped."""

  def attempt(carry):
    number, _, _ = carry
    accepted, value = sample(key, number, arguments)
    return number + 1, ~accepted, value

  return jax.lax.while_loop(
      lambda carry: carry[1], attempt, (jnp.int32(0), needed, otherwise)
  )[2]


def _chunks(needed, sample, key, arguments, otherwise):
  """Draws for all of a fixed chunk of 32 as often as any of it needs it."""

  @jax.custom_batching.custom_vmap
  def draw(needed, key, arguments, otherwise):
    return _whole_batch(needed, sample, key, arguments, otherwise)

  @draw.def_vmap
  def draw_batch(axis_size, in_batched, *operands):
    operands = jax.tree.map(
        lambda x, batched: (
            x if batched else jnp.broadcast_to(x, (axis_size, *x.shape))
        ),
        operands,
        tuple(in_batched),
    )
    size = math.gcd(axis_size, 32)
    chunks = jax.tree.map(
        lambda x: x.reshape(axis_size // size, size, *x.shape[1:]), operands
    )
    values = jax.lax.map(
        lambda chunk: jax.vmap(
            lambda needed, key, arguments, otherwise: _whole_batch(
                needed, sample, key, arguments, otherwise
            )
        )(*chunk),
        chunks,
    )
    values = jax.tree.map(
        lambda x: x.reshape(axis_size, *x.shape[2:]), values
    )
    return values, jax.tree.map(lambda _: True, values)

  return draw(needed, key, arguments, otherwise)


_WAYS = {
    "sample_where": interface.sample_where,
    "fixed chunks": _chunks,
    "whole batch": _whole_batch,
    "every step": _always,
}


def measure(
    env: interface.Environment, num_envs: int, steps: int, runs: int
) -> tuple[list[float], float]:
  """Plays, and takes the time.

  Returns:
    The steps a second of all environments together, for each run; and a sum
    over all that they returned.
  """

  @jax.jit
  def run(states, key):
    def step(carry, key):
      states, total = carry
      actions = jax.random.randint(key, [num_envs], 0, env.num_actions)
      states, timesteps = jax.vmap(env.step)(states, actions)
      # Something depends on every output, so that all are computed.
      total += timesteps.reward.sum() + timesteps.discount.sum()
      return (states, total + timesteps.observation.sum()), None

    return jax.lax.scan(
        step, (states, jnp.float32(0)), jax.random.split(key, steps)
    )[0]

  states, _ = jax.jit(jax.vmap(env.reset))(
      jax.random.split(jax.random.PRNGKey(0), num_envs)
  )
  keys = jax.random.split(jax.random.PRNGKey(1), 2 + runs)
  # Compiles; and by the end of the second run first episodes are over.
  for key in keys[:2]:
    states, _ = jax.block_until_ready(run(states, key))
  speeds, sums = [], 0.0
  for key in keys[2:]:
    begin = time.perf_counter()
    states, total = jax.block_until_ready(run(states, key))
    speeds.append(num_envs * steps / (time.perf_counter() - begin))
    sums += float(total)
  return speeds, sums


def main():
  """Prints the table."""
  device = jax.devices()[0]
  print(f"{device.platform}, {device.device_kind}; jax {jax.__version__}")
  print("environment   resets         envs   steps/s: median        best")
  for name in _ENV.value:
    for num_envs in _NUM_ENVS.value:
      expected = None
      for way in _WAYS if _RESETS.value else ["sample_where"]:
        env = _ENVIRONMENTS[name](view=_VIEW.value, sample_where=_WAYS[way])
        speeds, total = measure(env, num_envs, _STEPS.value, _RUNS.value)
        expected = total if expected is None else expected
        if not math.isclose(total, expected, rel_tol=1e-4):
          raise RuntimeError(f"{way!r} plays otherwise: {total}, {expected}")
        middle, best = statistics.median(speeds), max(speeds)
        print(
            f"{name:13} {way:12} {num_envs:6d} {middle:17,.0f} {best:11,.0f}",
            flush=True,
        )


if __name__ == "__main__":
  program.run(main)
