"""Whole episodes of many environments, for the tests of their statistics."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from tasks.environments import interface


def uniform_policy(num_actions):
  """Returns a policy that takes every action equally often."""
  return lambda key, shape: jax.random.randint(key, shape, 0, num_actions)


def constant_policy(action):
  """Returns a policy that always takes one action."""
  return lambda key, shape: jnp.full(shape, action, jnp.int32)


def first_episodes(env, policy, num_episodes, key):
  """Plays the first episode of each environment of a batch to its end.

  When few episodes are still running, they go on in a smaller batch, so that a
  few long ones do not keep the whole batch busy.

  Returns:
    A dict of NumPy arrays [num_episodes]: `return`, `length` and `last_reward`.
  """
  reset_key, key = jax.random.split(key)
  state, _ = jax.jit(jax.vmap(env.reset))(
      jax.random.split(reset_key, num_episodes)
  )
  zeros = jnp.zeros([num_episodes])
  metrics = {"return": zeros, "length": zeros, "last_reward": zeros}
  done = jnp.zeros([num_episodes], bool)
  whole = {name: np.zeros(num_episodes) for name in metrics}
  rows = np.arange(num_episodes)

  @functools.partial(jax.jit, static_argnames="enough")
  def play(state, metrics, done, key, enough):
    def body(carry):
      state, metrics, done, key = carry
      key, action_key = jax.random.split(key)
      action = policy(action_key, done.shape)
      state, timestep = jax.vmap(env.step)(state, action)
      metrics = {
          "return": metrics["return"] + jnp.where(done, 0, timestep.reward),
          "length": metrics["length"] + jnp.where(done, 0.0, 1.0),
          "last_reward": jnp.where(
              done, metrics["last_reward"], timestep.reward
          ),
      }
      done |= timestep.step_type == interface.StepType.LAST
      return state, metrics, done, key

    return jax.lax.while_loop(
        lambda carry: jnp.sum(~carry[2]) > enough,
        body,
        (state, metrics, done, key),
    )

  while True:
    enough = 0 if done.size < 256 else done.size // 16
    state, metrics, done, key = play(state, metrics, done, key, enough)
    for name, values in metrics.items():
      whole[name][rows] = np.asarray(values)
    keep = np.flatnonzero(~np.asarray(done))
    if not keep.size:
      return whole
    rows = rows[keep]
    state, metrics, done = jax.tree.map(
        lambda x: x[keep], (state, metrics, done)  # noqa: B023
    )


def assert_same_mean(values, mean, error=None, size=None, rounding=0.0):
  """Asserts that two means are within four errors of their difference.

  Args:
    values: the sample of the one mean.
    mean: the other.
    error: the other's standard error.
    size: if the error is not known, the other's number of values, which are
      taken to vary as much as the sample.
    rounding: half of the last digit in which `mean` is given.
  """
  values = np.asarray(values, np.float64)
  deviation = values.std(ddof=1)
  own = deviation / math.sqrt(values.size)
  if error is None:
    error = deviation / math.sqrt(size)
  bound = 4 * math.hypot(own, error) + rounding
  difference = abs(values.mean() - mean)
  assert difference <= bound, (
      f"mean {values.mean():.4f} +- {own:.4f} of {values.size} is "
      f"{difference:.4f} away from {mean}, more than {bound:.4f}"
  )
