"""The environments behind dm_env and Gymnasium."""

import functools
import itertools

from absl.testing import absltest
import dm_env
from dm_env import test_utils
import gymnasium
from gymnasium.utils import env_checker
import jax
import numpy as np
import pytest

from tasks.environments import adapters, box_world, interface, mini_pacman

SETTINGS = {
    "rmc/MiniPacman-v0": {"rules": "rush"},
    "rmc/BoxWorld-v0": {"max_steps": 5},
}
IDS = pytest.mark.parametrize("name", SETTINGS)


@functools.cache
def registered(name):
  """Returns the environment that is registered, with `SETTINGS`."""
  if "Box" in name:
    return box_world.BoxWorld(**SETTINGS[name])
  return mini_pacman.MiniPacman(**SETTINGS[name])


# JAX keeps what it compiles for an environment as long as a wrapper lives.
_KEPT = []


def keep(wrapped):
  _KEPT.append(wrapped)
  return wrapped


@functools.cache
def short_pacman():
  """Returns an environment with episodes of ten steps."""
  return mini_pacman.MiniPacman(mini_pacman.Rules(frame_cap=10))


@functools.cache
def short_box_world():
  """Returns an environment with episodes of ten steps."""
  return box_world.BoxWorld(
      grid_size=8, solution_length=[1], num_forward=[0], max_steps=9
  )


class MiniPacmanConformanceTest(
    test_utils.EnvironmentTestMixin, absltest.TestCase
):
  def make_object_under_test(self):
    return keep(adapters.to_dm_env(short_pacman(), seed=1))

  def make_action_sequence(self):
    return itertools.islice(itertools.cycle(range(5)), 40)


class BoxWorldConformanceTest(
    test_utils.EnvironmentTestMixin, absltest.TestCase
):
  def make_object_under_test(self):
    return keep(adapters.to_dm_env(short_box_world(), seed=1))

  def make_action_sequence(self):
    return itertools.islice(itertools.cycle(range(4)), 40)


def test_dm_env_plays_as_the_environment_does():
  env = short_pacman()
  wrapped = keep(adapters.to_dm_env(env, seed=5))
  reset, step = jax.jit(env.reset), jax.jit(env.step)
  state, first = reset(jax.random.split(jax.random.PRNGKey(5))[1])
  timestep = wrapped.step(0)  # Before any reset: the first step.
  assert timestep.first() and timestep.reward is timestep.discount is None
  np.testing.assert_array_equal(timestep.observation, first.observation)
  for action in [0, 1, 2, 3, 4] * 5:
    state, expected = step(state, np.int32(action))
    timestep = wrapped.step(action)
    assert timestep.step_type == dm_env.StepType(int(expected.step_type))
    if not timestep.first():
      assert timestep.reward == expected.reward
      assert timestep.discount == expected.discount
    np.testing.assert_array_equal(timestep.observation, expected.observation)
  again = adapters.to_dm_env(env, seed=5).reset()
  np.testing.assert_array_equal(again.observation, first.observation)
  other = wrapped.reset().observation
  assert not np.array_equal(other, first.observation)


@IDS
def test_gymnasium_check(name):
  env = gymnasium.make(name, render_mode="rgb_array", **SETTINGS[name])
  env_checker.check_env(env.unwrapped)
  env.reset(seed=3)
  assert env.render().dtype == np.uint8
  assert gymnasium.make(name).unwrapped.render() is None


@IDS
def test_settings_reach_the_environment(name):
  full = gymnasium.make(name, view="full")
  assert full.observation_space.shape in ((15, 19, 3), (14, 14, 3))
  assert full.action_space.n == (5 if "Pacman" in name else 4)


@IDS
def test_vector_environment_plays_as_single_ones(name):
  vector = gymnasium.make_vec(
      name, num_envs=2, render_mode="rgb_array", **SETTINGS[name]
  )
  assert vector.metadata["autoreset_mode"] == (
      gymnasium.vector.AutoresetMode.NEXT_STEP
  )
  singles = [adapters.to_gymnasium(registered(name)) for _ in range(2)]
  observations, _ = vector.reset(seed=20)
  for i, single in enumerate(singles):
    np.testing.assert_array_equal(observations[i], single.reset(seed=20 + i)[0])
  rng = np.random.default_rng(0)
  ended = 0
  for _ in range(14):
    actions = rng.integers(vector.single_action_space.n, size=2)
    outcome = vector.step(actions)
    assert outcome[0] in vector.observation_space
    for i, single in enumerate(singles):
      for many, one in zip(
          outcome[:4], single.step(actions[i])[:4], strict=True
      ):
        np.testing.assert_array_equal(many[i], one)
    ended += outcome[2].sum()
    assert not outcome[3].any()
  if "Box" in name:
    assert ended == 4  # After 6 steps each; then one step to begin anew.
  assert [image.ndim for image in vector.render()] == [3, 3]
  listed, _ = vector.reset(seed=[21, 20])
  np.testing.assert_array_equal(listed[::-1], observations)
  # Without a seed each goes on from the one that it had.
  for single, seed in zip(singles, [21, 20], strict=True):
    single.reset(seed=seed)
  for observations in (vector.reset()[0], vector.reset()[0]):
    np.testing.assert_array_equal(
        observations, [single.reset()[0] for single in singles]
    )


def test_terminated_and_truncated():
  class Truncating(mini_pacman.MiniPacman):
    """Ends as if by a time limit from outside."""

    def step(self, state, action):
      state, timestep = super().step(state, action)
      return state, timestep._replace(discount=np.float32(1))

  for env, flags in (
      (short_pacman(), [True, False]),
      (Truncating(short_pacman().rules), [False, True]),
  ):
    wrapped = keep(adapters.to_gymnasium(env))
    wrapped.reset(seed=0)
    steps = [list(wrapped.step(0)[2:4]) for _ in range(10)]
    assert steps == [[False, False]] * 9 + [flags]


@pytest.mark.parametrize("action", [-1, 5, 1.0, [1]])
def test_illegal_actions(action):
  env = short_pacman()
  message = r"action must hold integers from 0 to 4 in the shape \(\)"
  with pytest.raises(ValueError, match=message):
    adapters.to_dm_env(env).step(action)
  single = keep(adapters.to_gymnasium(env))
  single.reset(seed=0)
  with pytest.raises(ValueError, match=message):
    single.step(action)
  vector = keep(adapters.to_gymnasium(env, num_envs=2))
  vector.reset(seed=0)
  with pytest.raises(ValueError, match=r"0 to 4 in the shape \(2,\)"):
    vector.step(np.array([0, action], dtype=object))


def test_bad_use():
  env = short_pacman()
  with pytest.raises(ValueError, match="render_mode.*'human'"):
    adapters.to_gymnasium(env, render_mode="human")
  with pytest.raises(ValueError, match="num_envs.*0"):
    adapters.to_gymnasium(env, num_envs=0)
  with pytest.raises(ValueError, match="name must be of .*'Pong'"):
    adapters.make("Pong")
  with pytest.raises(ValueError, match="reset must be called before step"):
    adapters.to_gymnasium(env).step(0)
  vector = adapters.to_gymnasium(env, num_envs=2)
  with pytest.raises(ValueError, match="reset must be called before step"):
    vector.step(np.zeros(2, int))
  with pytest.raises(ValueError, match="each of 2 environments, got 3"):
    vector.reset(seed=[1, 2, 3])


def test_step_types_are_those_of_dm_env():
  assert {x.name: x.value for x in interface.StepType} == {
      x.name: x.value for x in dm_env.StepType
  }
