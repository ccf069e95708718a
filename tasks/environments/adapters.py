"""The environments for agents that are written for dm_env or Gymnasium.

They need the extra `envs`. Importing this module registers `rmc/MiniPacman-v0`
and `rmc/BoxWorld-v0` with Gymnasium, where keyword arguments of `make` and
`make_vec` are those of the environment:

    gymnasium.make("rmc/BoxWorld-v0", view="full")
    gymnasium.make_vec("rmc/MiniPacman-v0", num_envs=64, rules="hunt")

Glossary of shapes:
  - B: environments of a vector environment.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from tasks.environments import box_world, interface, mini_pacman

try:
  import dm_env
  from dm_env import specs
  import gymnasium
  from gymnasium.utils import seeding
  from gymnasium.vector import utils as vector_utils
except ImportError as error:
  raise ImportError(
      f"{error}; the adapters need the extra `envs`, as in "
      "pip install -e '.[envs]'"
  ) from error

_ENVIRONMENTS = {
    "MiniPacman": mini_pacman.MiniPacman,
    "BoxWorld": box_world.BoxWorld,
}
_METADATA = {"render_modes": ["rgb_array"], "render_fps": 8}


def _check_actions(
    actions: Any, num_actions: int, shape: tuple[int, ...]
) -> np.ndarray:
  """Returns actions as an array; raises ValueError unless they are legal."""
  array = np.asarray(actions)
  if (
      array.shape != shape
      or not np.issubdtype(array.dtype, np.integer)
      or (array < 0).any()
      or (array >= num_actions).any()
  ):
    raise ValueError(
        f"action must hold integers from 0 to {num_actions - 1} in the shape "
        f"{shape}, got {actions!r}"
    )
  return array.astype(np.int32)


def _check_render_mode(render_mode: str | None):
  if render_mode not in (None, "rgb_array"):
    raise ValueError(
        f"render_mode must be None or 'rgb_array', got {render_mode!r}"
    )


class DmEnvironment(dm_env.Environment):
  """An environment with the interface of dm_env; see `to_dm_env`."""

  def __init__(self, env: interface.Environment, seed: int):
    self._env = env
    self._reset = jax.jit(env.reset)
    self._step = jax.jit(env.step)
    self._key = jax.random.PRNGKey(seed)
    self._state = None

  def reset(self) -> dm_env.TimeStep:
    """See `dm_env.Environment.reset`."""
    self._key, key = jax.random.split(self._key)
    self._state, timestep = self._reset(key)
    return self._convert(timestep)

  def step(self, action: int) -> dm_env.TimeStep:
    """See `dm_env.Environment.step`; ValueError for an illegal action."""
    action = _check_actions(action, self._env.num_actions, ())
    if self._state is None:
      return self.reset()
    self._state, timestep = self._step(self._state, action)
    return self._convert(timestep)

  def _convert(self, timestep: interface.TimeStep) -> dm_env.TimeStep:
    step_type, reward, discount, observation = jax.tree.map(np.array, timestep)
    if step_type == interface.StepType.FIRST:
      return dm_env.restart(observation)
    return dm_env.TimeStep(
        step_type=dm_env.StepType(int(step_type)),
        reward=reward[()],
        discount=discount[()],
        observation=observation,
    )

  def action_spec(self) -> specs.DiscreteArray:
    """See `dm_env.Environment.action_spec`."""
    return specs.DiscreteArray(self._env.num_actions, name="action")

  def observation_spec(self) -> specs.BoundedArray:
    """See `dm_env.Environment.observation_spec`."""
    return specs.BoundedArray(
        self._env.observation_shape, np.float32, 0.0, 1.0, name="observation"
    )

  def reward_spec(self) -> specs.Array:
    """See `dm_env.Environment.reward_spec`."""
    return specs.Array((), np.float32, name="reward")

  def discount_spec(self) -> specs.BoundedArray:
    """See `dm_env.Environment.discount_spec`."""
    return specs.BoundedArray((), np.float32, 0.0, 1.0, name="discount")


def to_dm_env(env: interface.Environment, seed: int = 0) -> DmEnvironment:
  """Wraps an environment for `dm_env`.

  Args:
    env: what to wrap.
    seed: of all its episodes.

  Returns:
    A `dm_env.Environment` with NumPy observations.
  """
  return DmEnvironment(env, seed)


class GymnasiumEnv(gymnasium.Env):
  """An environment with Gymnasium's interface; see `to_gymnasium`."""

  metadata = _METADATA

  def __init__(self, env: interface.Environment, render_mode: str | None):
    _check_render_mode(render_mode)
    self.render_mode = render_mode
    self.action_space = gymnasium.spaces.Discrete(env.num_actions)
    self.observation_space = gymnasium.spaces.Box(
        0.0, 1.0, env.observation_shape, np.float32
    )
    self._env = env
    self._reset = jax.jit(env.reset)
    self._step = jax.jit(env.step)
    self._state = None

  def reset(
      self, *, seed: int | None = None, options: dict[str, Any] | None = None
  ) -> tuple[np.ndarray, dict[str, Any]]:
    """See `gymnasium.Env.reset`; there are no options."""
    super().reset(seed=seed)
    self._state, timestep = self._reset(_draw_key(self.np_random))
    return np.array(timestep.observation), {}

  def step(
      self, action: int
  ) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
    """See `gymnasium.Env.step`; ValueError for an illegal action."""
    action = _check_actions(action, int(self.action_space.n), ())
    if self._state is None:
      raise ValueError("reset must be called before step")
    self._state, timestep = self._step(self._state, action)
    last = timestep.step_type == interface.StepType.LAST
    return (
        np.array(timestep.observation),
        float(timestep.reward),
        bool(last & (timestep.discount == 0)),
        bool(last & (timestep.discount > 0)),
        {},
    )

  def render(self) -> np.ndarray | None:
    """See `gymnasium.Env.render`."""
    if self.render_mode is None or self._state is None:
      return None
    return self._env.render(self._state)


class GymnasiumVectorEnv(gymnasium.vector.VectorEnv):
  """A batch of environments with Gymnasium's interface, stepped at once.

  Environment i of a batch that is reset with an integer seed begins with the
  episode of a single environment that is reset with seed + i. An episode that
  has ended gives way to the next on the step after (`AutoresetMode.NEXT_STEP`).
  """

  metadata = {
      **_METADATA,
      "autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP,
  }

  def __init__(
      self,
      env: interface.Environment,
      num_envs: int,
      render_mode: str | None,
  ):
    _check_render_mode(render_mode)
    if num_envs < 1:
      raise ValueError(f"num_envs must be at least 1, got {num_envs}")
    self.num_envs = num_envs
    self.render_mode = render_mode
    self.single_action_space = gymnasium.spaces.Discrete(env.num_actions)
    self.single_observation_space = gymnasium.spaces.Box(
        0.0, 1.0, env.observation_shape, np.float32
    )
    self.action_space = vector_utils.batch_space(
        self.single_action_space, num_envs
    )
    self.observation_space = vector_utils.batch_space(
        self.single_observation_space, num_envs
    )
    self._env = env
    self._reset = jax.jit(jax.vmap(env.reset))
    self._step = jax.jit(jax.vmap(env.step))
    self._randoms = [None] * num_envs
    self._states = None

  def reset(
      self,
      *,
      seed: int | Sequence[int | None] | None = None,
      options: dict[str, Any] | None = None,
  ) -> tuple[np.ndarray, dict[str, Any]]:
    """See `gymnasium.vector.VectorEnv.reset`; there are no options.

    Without a seed, an environment goes on from the one that it had.

    Raises:
      ValueError: if there are not as many seeds as environments.
    """
    del options
    if isinstance(seed, int | np.integer):
      seed = [int(seed) + i for i in range(self.num_envs)]
    elif seed is None:
      seed = [None] * self.num_envs
    if len(seed) != self.num_envs:
      raise ValueError(
          f"seed must have one entry for each of {self.num_envs} environments, "
          f"got {len(seed)}"
      )
    for i, one in enumerate(seed):
      if one is not None or self._randoms[i] is None:
        self._randoms[i], _ = seeding.np_random(one)
    keys = np.stack([_draw_key(random) for random in self._randoms])
    self._states, timesteps = self._reset(keys)
    return np.array(timesteps.observation), {}

  def step(
      self, actions: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """See `gymnasium.vector.VectorEnv.step`; ValueError for illegal actions."""
    actions = _check_actions(
        actions, int(self.single_action_space.n), (self.num_envs,)
    )
    if self._states is None:
      raise ValueError("reset must be called before step")
    self._states, timesteps = self._step(self._states, actions)
    step_type, reward, discount, observation = jax.tree.map(np.array, timesteps)
    last = step_type == interface.StepType.LAST
    terminated, truncated = last & (discount == 0), last & (discount > 0)
    return observation, reward, terminated, truncated, {}

  def render(self) -> tuple[np.ndarray, ...] | None:
    """See `gymnasium.vector.VectorEnv.render`: an image an environment."""
    if self.render_mode is None or self._states is None:
      return None
    states = jax.device_get(self._states)
    return tuple(
        self._env.render(jax.tree.map(lambda x: x[i], states))  # noqa: B023
        for i in range(self.num_envs)
    )


def to_gymnasium(
    env: interface.Environment,
    num_envs: int | None = None,
    render_mode: str | None = None,
) -> GymnasiumEnv | GymnasiumVectorEnv:
  """Wraps an environment for Gymnasium.

  An episode that ends with discount 0 is terminated, otherwise truncated. In
  Mini Pacman and BoxWorld the cap of steps ends an episode with discount 0 like
  any other end, as in the originals, so that `truncated` is never true there.

  Args:
    env: what to wrap.
    num_envs: environments of a vector environment; None for a single one.
    render_mode: "rgb_array" or None.

  Returns:
    A `gymnasium.Env`, or a `gymnasium.vector.VectorEnv`.

  Raises:
    ValueError: if `num_envs` is below 1 or `render_mode` is unknown.
  """
  if num_envs is None:
    return GymnasiumEnv(env, render_mode)
  return GymnasiumVectorEnv(env, num_envs, render_mode)


def make(
    name: str,
    num_envs: int | None = None,
    render_mode: str | None = None,
    **settings,
) -> GymnasiumEnv | GymnasiumVectorEnv:
  """Makes what is registered with Gymnasium.

  Args:
    name: `'MiniPacman'` or `'BoxWorld'`.
    num_envs: as in `to_gymnasium`.
    render_mode: as in `to_gymnasium`.
    **settings: of the environment.

  Returns:
    As `to_gymnasium`.

  Raises:
    TypeError: if a setting is none of the environment's.
    ValueError: if an argument has a value that is not allowed.
  """
  if name not in _ENVIRONMENTS:
    raise ValueError(f"name must be of {list(_ENVIRONMENTS)}, got {name!r}")
  return to_gymnasium(_ENVIRONMENTS[name](**settings), num_envs, render_mode)


def _draw_key(random: np.random.Generator) -> np.ndarray:
  return np.asarray(jax.random.PRNGKey(int(random.integers(2**31))))


for _name in _ENVIRONMENTS:
  gymnasium.register(
      f"rmc/{_name}-v0",
      entry_point="tasks.environments.adapters:make",
      vector_entry_point="tasks.environments.adapters:make",
      kwargs={"name": _name},
  )
