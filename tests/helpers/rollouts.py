"""Whole episodes of many environments, for the tests of their statistics."""

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


def first_episodes(env, policy, num_episodes, key, lanes=64):
  """Plays the first episode of each of many environments to its end.

  A lane that is through with an episode takes the next one, so that a few long
  episodes do not keep a large batch busy.

  Returns:
    A dict of NumPy arrays [num_episodes]: `return`, `length` and `last_reward`.
  """

  @jax.jit
  def play(key):
    reset_key, key = jax.random.split(key)
    starts, _ = jax.vmap(env.reset)(jax.random.split(reset_key, num_episodes))

    def body(carry):
      state, episode, so_far, results, key = carry
      key, action_key = jax.random.split(key)
      action = policy(action_key, [lanes])
      state, timestep = jax.vmap(env.step)(state, action)
      so_far = {
          "return": so_far["return"] + timestep.reward,
          "length": so_far["length"] + 1.0,
          "last_reward": timestep.reward,
      }
      ended = timestep.step_type == interface.StepType.LAST
      ended &= episode < num_episodes
      row = jnp.where(ended, episode, num_episodes)
      results = jax.tree.map(
          lambda whole, x: whole.at[row].set(x, mode="drop"), results, so_far
      )
      so_far = jax.tree.map(lambda x: jnp.where(ended, 0.0, x), so_far)
      following = jnp.max(episode) + jnp.cumsum(ended, dtype=jnp.int32)
      episode = jnp.where(ended, following, episode)
      row = jnp.minimum(episode, num_episodes - 1)
      state = jax.tree.map(
          lambda x, start: jax.vmap(jnp.where)(ended, start[row], x),
          state,
          starts,
      )
      return state, episode, so_far, results, key

    def zeros(size):
      names = ("return", "length", "last_reward")
      return {name: jnp.zeros([size]) for name in names}

    return jax.lax.while_loop(
        lambda carry: jnp.any(carry[1] < num_episodes),
        body,
        (
            jax.tree.map(lambda x: x[:lanes], starts),
            jnp.arange(lanes),
            zeros(lanes),
            zeros(num_episodes),
            key,
        ),
    )[3]

  return jax.device_get(play(key))


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
