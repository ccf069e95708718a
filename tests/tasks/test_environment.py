"""What holds for every environment: randomness, batches and new episodes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tasks.environments import box_world, interface, mini_pacman

FIRST, MID, LAST = interface.StepType


@functools.cache
def make(name):
  """Returns an environment with short episodes."""
  if name == "box_world":
    return box_world.BoxWorld(
        grid_size=8, solution_length=[1, 2], num_forward=[0, 1], max_steps=9
    )
  rules = mini_pacman.Rules(
      start_level=9, frame_cap=25, step_reward=0.5, level_steps=9
  )
  return mini_pacman.MiniPacman(rules)


@functools.cache
def rollout(name):
  """Returns a function from a key and actions [T] to the first step and all."""
  env = make(name)

  def run(key, actions):
    def step(state, action):
      state, timestep = env.step(state, action)
      return state, (state, timestep)

    state, first = env.reset(key)
    return first, jax.lax.scan(step, state, actions)[1]

  return run


def example(tree, i):
  """Returns example i of a tree of arrays, keys as their data."""
  return jax.tree.map(lambda x: x[i], in_numpy(tree))


def in_numpy(tree):
  return jax.tree.map(
      lambda x: np.asarray(
          jax.random.key_data(x)
          if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
          else x
      ),
      tree,
  )


def assert_same(actual, expected):
  for x, y in zip(
      jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)


ENVIRONMENTS = pytest.mark.parametrize("name", ["box_world", "mini_pacman"])


@functools.cache
def thousand(name):
  """Returns keys, actions, the function that plays them, and what it returns.

  Its programs take seconds to compile, so the tests share it.
  """
  # Keys of either kind.
  key = jax.random.key(7) if name == "box_world" else jax.random.PRNGKey(7)
  keys = jax.random.split(key, 1000)
  actions = jax.random.randint(
      jax.random.key(8), [1000, 40], 0, make(name).num_actions, jnp.int32
  )
  play = jax.jit(jax.vmap(rollout(name)))
  return keys, actions, play, in_numpy(play(keys, actions))


@ENVIRONMENTS
def test_same_episodes_with_one_environment_or_a_thousand(name):
  keys, actions, play, many = thousand(name)
  ended = (many[1][1].step_type == LAST).sum(1)
  assert ended.min() >= 1 and ended.max() >= 3
  alone = jax.jit(rollout(name))
  for i in (0, 313, 999):
    expected = example(many, i)
    assert_same(example(play(keys[i : i + 1], actions[i : i + 1]), 0), expected)
    assert_same(in_numpy(alone(keys[i], actions[i])), expected)


@ENVIRONMENTS
def test_episodes_follow_one_another(name):
  keys, actions, play, (firsts, (states, steps)) = thousand(name)
  assert (firsts.step_type == FIRST).all()
  assert (firsts.reward == 0).all() and (firsts.discount == 1).all()
  types = steps.step_type
  # FIRST comes after LAST and nowhere else, and nothing is earned with it.
  np.testing.assert_array_equal(types[:, 1:] == FIRST, types[:, :-1] == LAST)
  assert (steps.reward[types == FIRST] == 0).all()
  np.testing.assert_array_equal(steps.discount, (types != LAST) * 1.0)
  assert (states.frame[types == FIRST] == 0).all()
  # An action is ignored where an episode begins.
  others = jnp.where(types == FIRST, actions + 1, actions)
  others %= make(name).num_actions
  assert (others != actions).sum() == (types == FIRST).sum() > 0
  assert_same(in_numpy(play(keys, others)), (firsts, (states, steps)))
  # Levels differ, between environments and from episode to episode.
  looks = steps.observation[:64][types[:64] == FIRST]
  assert len(np.unique(looks.reshape(len(looks), -1), axis=0)) > len(looks) / 2


@ENVIRONMENTS
def test_devices_play_as_one(name):
  keys, actions, _, many = thousand(name)
  devices = jax.local_device_count()
  assert devices == 8
  split = lambda x: x.reshape(devices, 5, *x.shape[1:])  # noqa: E731
  spread = jax.pmap(jax.vmap(rollout(name)))(
      split(keys[:40]), split(actions[:40])
  )
  together = jax.tree.map(lambda x: split(x[:40]), many)
  assert_same(in_numpy(spread), together)


@ENVIRONMENTS
def test_double_precision_changes_nothing(name):
  keys, actions, _, many = thousand(name)
  # Indices are then of both types.
  with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
    double = jax.jit(jax.vmap(rollout(name)))(keys[:8], actions[:8])
  assert_same(in_numpy(double), jax.tree.map(lambda x: x[:8], many))


@ENVIRONMENTS
def test_types_of_what_is_returned(name):
  env = make(name)
  key = jax.random.key(0)
  for call in (
      lambda: env.reset(key),
      lambda: env.step(env.reset(key)[0], 1),
  ):
    _, timestep = jax.eval_shape(call)
    assert timestep.step_type == jax.ShapeDtypeStruct([], jnp.int32)
    assert timestep.reward == jax.ShapeDtypeStruct([], jnp.float32)
    assert timestep.discount == jax.ShapeDtypeStruct([], jnp.float32)
    assert timestep.observation == jax.ShapeDtypeStruct(
        env.observation_shape, jnp.float32
    )
  state, _ = jax.eval_shape(env.reset, key)
  following, timestep = jax.eval_shape(env.step, state, jnp.int32(1))
  assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
      lambda x: (x.shape, x.dtype), following
  )
  _, _, _, (_, (states, _)) = thousand(name)
  last = jax.tree.map(lambda x: x[:, -1], states)
  images = jax.jit(jax.vmap(env.pixels))(last)
  assert images.shape[-1] == 3 and images.dtype == jnp.float32
  assert images.min() >= 0 and images.max() <= 1


def halving(key, attempt, threshold):
  """Accepts half of its draws, above a threshold."""
  value = jax.random.uniform(jax.random.fold_in(key, attempt))
  return value > threshold, {"value": value, "attempt": attempt}


def test_sample_where_draws_for_each_row_what_it_would_alone():
  batch = 300
  keys = jax.random.split(jax.random.key(1), batch)
  needed = np.arange(batch) % 3 > 0
  thresholds = np.linspace(0, 0.9, batch, dtype=np.float32)
  otherwise = {
      "value": np.full(batch, -1, np.float32),
      "attempt": np.full(batch, -1, np.int32),
  }

  def draw(needed, key, threshold, otherwise):
    return interface.sample_where(needed, halving, key, threshold, otherwise)

  drawn = jax.jit(jax.vmap(draw))(needed, keys, thresholds, otherwise)
  alone = jax.jit(draw)
  for i in range(0, batch, 7):
    example = jax.tree.map(
        lambda x: x[i],  # noqa: B023
        (needed, keys, thresholds, otherwise),
    )
    assert alone(*example) == jax.tree.map(lambda x: x[i], drawn)  # noqa: B023
  assert (drawn["value"] > thresholds)[needed].all()
  assert (drawn["value"] == -1)[~needed].all()
  assert drawn["attempt"].max() > 3
  # Operands without a batch, and two batch axes.
  shared = jax.vmap(draw, in_axes=(0, None, None, None))(
      needed, keys[5], thresholds[5], jax.tree.map(lambda x: x[5], otherwise)
  )
  assert jnp.unique(shared["value"][needed]).size == 1
  fold = lambda x: x.reshape(20, 15, *x.shape[1:])  # noqa: E731
  twice = jax.vmap(jax.vmap(draw))(
      *jax.tree.map(fold, (needed, keys, thresholds, otherwise))
  )
  jax.tree.map(np.testing.assert_array_equal, twice, jax.tree.map(fold, drawn))


@pytest.fixture(scope="module")
def counted():
  """Returns a batched sampler and a list that gets longer with each draw."""
  calls = []

  def sample(key, attempt, threshold):
    jax.debug.callback(lambda _: calls.append(1), attempt)
    return halving(key, attempt, threshold)

  @jax.jit
  @jax.vmap
  def draw(needed, key):
    otherwise = {"value": jnp.float32(0), "attempt": jnp.int32(-1)}
    return interface.sample_where(
        needed, sample, key, jnp.float32(-1), otherwise
    )

  return draw, calls


@pytest.mark.parametrize(
    "number, draws", [(0, 0), (1, 32), (32, 32), (33, 64)]
)
def test_sample_where_draws_no_more_than_is_needed(number, draws, counted):
  draw, calls = counted
  calls.clear()
  drawn = draw(
      np.arange(1000) < number, jax.random.split(jax.random.key(2), 1000)
  )
  jax.block_until_ready(drawn)
  jax.effects_barrier()
  assert len(calls) == draws
  assert (drawn["attempt"] >= 0).sum() == number


def test_windows():
  cells = interface.windows(3, 4).reshape(3, 4, 5, 5)
  assert cells[1, 2].tolist() == [
      [0, 0, 0, 0, 0],
      [0, 1, 2, 3, 0],
      [4, 5, 6, 7, 0],
      [8, 9, 10, 11, 0],
      [0, 0, 0, 0, 0],
  ]
