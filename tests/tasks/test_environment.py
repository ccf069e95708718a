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


def rollout(env, length):
  """Returns a function from a key and actions [T] to states and steps [T]."""

  def run(key, actions):
    def step(state, action):
      state, timestep = env.step(state, action)
      return state, (state, timestep)

    state, first = env.reset(key)
    return first, jax.lax.scan(step, state, actions, length=length)[1]

  return run


ENVIRONMENTS = pytest.mark.parametrize("name", ["box_world", "mini_pacman"])


@ENVIRONMENTS
def test_same_episodes_with_one_environment_or_a_thousand(name):
  env = make(name)
  length = 40
  # Keys of either kind; the other tests use those of the old one.
  key = jax.random.key(7) if name == "box_world" else jax.random.PRNGKey(7)
  keys = jax.random.split(key, 1000)
  actions = jax.random.randint(
      jax.random.key(8), [1000, length], 0, env.num_actions
  )
  run = rollout(env, length)
  many = jax.jit(jax.vmap(run))(keys, actions)
  one, alone = jax.jit(jax.vmap(run)), jax.jit(run)
  ended = np.asarray(many[1][1].step_type == LAST).sum(1)
  assert ended.min() >= 1 and ended.max() >= 3
  values = jax.tree.map(
      lambda x: jax.random.key_data(x)
      if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
      else x,
      many,
  )
  for i in (0, 313, 999):
    for few in (
        jax.tree.map(lambda x: x[0], one(keys[i : i + 1], actions[i : i + 1])),
        alone(keys[i], actions[i]),
    ):
      jax.tree.map(
          lambda x, y: np.testing.assert_array_equal(
              x[i],  # noqa: B023
              jax.random.key_data(y)
              if jnp.issubdtype(y.dtype, jax.dtypes.prng_key)
              else y,
          ),
          values,
          few,
      )


@ENVIRONMENTS
def test_episodes_follow_one_another(name):
  env = make(name)
  key = jax.random.PRNGKey(3)
  actions = jnp.zeros([64, 60], jnp.int32)
  firsts, (states, steps) = jax.jit(jax.vmap(rollout(env, 60)))(
      jax.random.split(key, 64), actions
  )
  assert (firsts.step_type == FIRST).all()
  assert (firsts.reward == 0).all() and (firsts.discount == 1).all()
  types = np.asarray(steps.step_type)
  # FIRST comes after LAST and nowhere else, and nothing is earned with it.
  np.testing.assert_array_equal(types[:, 1:] == FIRST, types[:, :-1] == LAST)
  assert (np.asarray(steps.reward)[types == FIRST] == 0).all()
  np.testing.assert_array_equal(steps.discount, (types != LAST) * 1.0)
  assert (np.asarray(states.frame)[types == FIRST] == 0).all()
  # An action is ignored where an episode begins.
  last = jax.tree.map(lambda x: x[types == LAST][0], states)
  step = jax.jit(env.step)
  outcomes = [step(last, action) for action in range(env.num_actions)]
  for outcome in outcomes:
    jax.tree.map(np.testing.assert_array_equal, outcome, outcomes[0])
  # Levels differ, between environments and from episode to episode.
  looks = np.asarray(steps.observation)[types == FIRST]
  assert len(np.unique(looks.reshape(len(looks), -1), axis=0)) > len(looks) / 2


@ENVIRONMENTS
def test_devices_play_as_one(name):
  env = make(name)
  keys = jax.random.split(jax.random.PRNGKey(9), 40)
  actions = jnp.ones([40, 20], jnp.int32)
  run = jax.vmap(rollout(env, 20))
  devices = jax.local_device_count()
  assert devices == 8
  split = lambda x: x.reshape(devices, -1, *x.shape[1:])  # noqa: E731
  spread = jax.pmap(run)(split(keys), split(actions))
  together = jax.jit(run)(keys, actions)
  jax.tree.map(
      lambda x, y: np.testing.assert_array_equal(x, split(y)), spread, together
  )


@ENVIRONMENTS
def test_double_precision_changes_nothing(name):
  keys = jax.random.split(jax.random.PRNGKey(5), 8)
  actions = jnp.arange(8 * 20, dtype=jnp.int32).reshape(8, 20)
  actions %= make(name).num_actions
  single = jax.jit(jax.vmap(rollout(make(name), 20)))(keys, actions)
  # Their indices are then of both types.
  with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
    double = jax.jit(jax.vmap(rollout(make(name), 20)))(keys, actions)
  for x, y in zip(*map(jax.tree.leaves, (single, double)), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)


@ENVIRONMENTS
def test_types_of_what_is_returned(name):
  env = make(name)
  for call in (
      lambda: env.reset(jax.random.key(0)),
      lambda: env.step(env.reset(jax.random.key(0))[0], 1),
  ):
    _, timestep = jax.eval_shape(call)
    assert timestep.step_type == jax.ShapeDtypeStruct([], jnp.int32)
    assert timestep.reward == jax.ShapeDtypeStruct([], jnp.float32)
    assert timestep.discount == jax.ShapeDtypeStruct([], jnp.float32)
    assert timestep.observation == jax.ShapeDtypeStruct(
        env.observation_shape, jnp.float32
    )
  state, _ = env.reset(jax.random.key(0))
  following, timestep = jax.eval_shape(env.step, state, jnp.int32(1))
  assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
      lambda x: (x.shape, x.dtype), following
  )
  image = env.pixels(state)
  assert image.min() >= 0 and image.max() <= 1


def halving(calls=None):
  """Returns a sampler that accepts half of its draws, above a threshold."""

  def sample(key, attempt, threshold):
    if calls is not None:
      jax.debug.callback(lambda _: calls.append(1), attempt)
    value = jax.random.uniform(jax.random.fold_in(key, attempt))
    return value > threshold, {"value": value, "attempt": attempt}

  return sample


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
    return interface.sample_where(
        needed, halving(), key, threshold, otherwise
    )

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


@pytest.mark.parametrize(
    "number, draws", [(0, 0), (1, 32), (32, 32), (33, 64)]
)
def test_sample_where_draws_no_more_than_is_needed(number, draws):
  batch, calls = 1000, []
  sample = halving(calls)
  drawn = jax.jit(
      jax.vmap(
          lambda needed, key: interface.sample_where(
              needed,
              sample,
              key,
              jnp.float32(-1),
              {"value": jnp.float32(0), "attempt": jnp.int32(-1)},
          )
      )
  )(np.arange(batch) < number, jax.random.split(jax.random.key(2), batch))
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
