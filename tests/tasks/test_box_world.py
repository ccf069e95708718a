"""BoxWorld against the recorded original, and by its rules."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tasks.environments import box_world, box_world_levels, interface
from tests.helpers import box_world_solver, rollouts

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
NORTH, SOUTH, WEST, EAST = range(4)


def index(tree, i):
  """Returns example i of a tree of arrays."""
  return jax.tree.map(lambda x: x[i], tree)


def stack(trees):
  """Returns one tree with a leading axis."""
  return jax.tree.map(lambda *x: np.stack(x), *trees)


@functools.cache
def player(env):
  """Returns a function that plays actions [B, T] from states [B]."""

  def play(state, actions):
    def step(state, action):
      state, timestep = env.step(state, action)
      return state, (state, timestep)

    return jax.lax.scan(step, state, actions)[1]

  return jax.jit(jax.vmap(play))


def replay(env, states, actions):
  """Plays lists of actions, and what follows them until the longest is over.

  Returns:
    The states and time steps after each action, [B, T, ...] in NumPy.
  """
  width = max(map(len, actions))
  # Few widths, so that few programs are compiled.
  padded = np.zeros([len(actions), -(-width // 32) * 32], np.int32)
  for row, values in zip(padded, actions, strict=True):
    row[: len(values)] = values
  played = jax.device_get(player(env)(states, padded))
  return jax.tree.map(lambda x: x[:, :width], played)


def distractors(state):
  """Returns the cells of the locks that end an episode, as [row, col]."""
  grid = np.asarray(state.grid)
  return np.argwhere(grid >= box_world.DISTRACTOR).tolist()


def test_recorded_episodes():
  text = (GOLDEN / "box_world_episodes.json").read_text(encoding="utf-8")
  episodes = json.loads(text)["episodes"]
  assert len(episodes) == 87
  env = box_world.BoxWorld()
  starts = []
  for episode in episodes:
    state = env.parse("\n".join(episode["level"]))
    if episode["kind"] == "handmade":
      # These were not built as ways to the gem with distractors beside them.
      state = env.parse(
          "\n".join(episode["level"]), distractors=episode["distractor_locks"]
      )
    assert list(divmod(int(state.agent), 14)) == episode["agent_start"]
    assert distractors(state) == sorted(episode["distractor_locks"])
    assert env.to_text(state).split() == episode["level"]
    starts.append(state)
  states, timesteps = replay(
      env, stack(starts), [episode["actions"] for episode in episodes]
  )
  for i, episode in enumerate(episodes):
    length = len(episode["actions"])
    state, timestep = index((states, timesteps), (i, slice(length)))
    assert timestep.reward.tolist() == episode["rewards"]
    done = np.array(episode["done"])
    assert (timestep.discount == 1 - done).all()
    assert ((timestep.step_type == interface.StepType.LAST) == done).all()
    agents = np.stack(np.divmod(state.agent, 14), axis=-1)
    assert agents.tolist() == episode["agent"]
    held = [None if h < 0 else "abcdefghijklmnopqrst"[h] for h in state.held]
    assert held == episode["held"]
    rows = env.to_text(index(state, -1)).split()
    assert rows[0][0] == (episode["final_held"] or "#")
    rows[0] = "#" + rows[0][1:]
    assert rows == episode["final_grid"]
    if episode["done"][-1]:
      ends = {10: "solved", -1: "distractor"}
      end = ends.get(episode["rewards"][-1], "timeout")
      locks = sum(map(str.isupper, "".join(episode["level"])))
      boxes = locks - len(episode["distractor_locks"])
      outcome = env.outcome(index(state, -1), index(timestep, -1))
      for name, (value, applies) in outcome.items():
        kind, _, length = name.partition("_")
        assert float(value) == (kind == end)
        assert bool(applies) == (length in ("", str(boxes)))


def test_recorded_observations():
  frames = np.load(GOLDEN / "box_world_frames.npz")
  full = box_world.BoxWorld(view="full")
  env = box_world.BoxWorld()
  for i, rows in enumerate(frames["grid"]):
    held = str(frames["held"][i])
    state = env.parse("\n".join([(held or "#") + rows[0][1:], *rows[1:]]))
    expected = frames["rgb_thousandths"][i]
    np.testing.assert_array_equal(np.rint(full.observe(state) * 999), expected)
    np.testing.assert_array_equal(
        full.render(state, scale=1), frames["rgb_uint8"][i]
    )
    # The window: outside it is black, and so is the corner.
    wide = np.zeros([18, 18, 3])
    wide[2:-2, 2:-2] = expected
    wide[2, 2] = 0
    row, col = divmod(int(state.agent), 14)
    window = np.rint(env.observe(state) * 999)
    np.testing.assert_array_equal(
        window[..., :3], wide[row : row + 5, col : col + 5]
    )
    colours = frames["key_lock_colours"]
    expected = colours[ord(held) - ord("a")] if held else np.zeros(3)
    np.testing.assert_array_equal(
        window[..., 3:], np.broadcast_to(expected, [5, 5, 3])
    )


def test_defaults_are_the_papers():
  env = box_world.BoxWorld()
  assert (env.grid_size, env.max_steps) == (12, 120)
  assert env.solution_length == (1, 2, 3, 4, 5)
  assert env.num_forward == (0, 1, 2, 3, 4, 5)
  assert (env.branch_length, env.view) == (1, "viewport")


LEVEL = """
#########
#.......#
#.@a.b..#
#.......#
#.bA.cB.#
#.......#
#.*B.dB.#
#.......#
#########
"""


@functools.cache
def small_env(max_steps=120):
  """Returns an environment for `LEVEL`."""
  return box_world.BoxWorld(
      grid_size=7, solution_length=[1], num_forward=[0], max_steps=max_steps
  )


def play(actions, text=LEVEL, **settings):
  """Plays some actions on a small level.

  Returns:
    (row, col, held) of the agent, rewards, step types and discounts.
  """
  env = small_env(**settings)
  states, timesteps = replay(env, stack([env.parse(text)]), [actions])
  row, col = divmod(int(states.agent[0, -1]), 9)
  return (
      (row, col, int(states.held[0, -1])),
      timesteps.reward[0].tolist(),
      timesteps.step_type[0].tolist(),
      timesteps.discount[0].tolist(),
  )


def test_key_is_taken_and_replaced_without_reward():
  assert play([EAST]) == ((2, 3, 0), [0], [1], [1])
  assert play([EAST] * 3) == ((2, 5, 1), [0] * 3, [1] * 3, [1] * 3)
  # Once replaced it opens nothing any more: lock A at (4, 3) stays shut.
  place, rewards, _, _ = play([EAST] * 3 + [WEST] * 2 + [SOUTH] * 2)
  assert place == (3, 3, 1) and rewards == [0] * 7


def test_locks_and_locked_contents_keep_the_agent_out():
  # No key at all: lock A.
  place, rewards, _, _ = play([SOUTH, EAST, SOUTH])
  assert place == (3, 3, -1) and rewards == [0] * 3
  # The content b of box A, from above and from the left; with and without key.
  assert play([SOUTH, SOUTH])[0] == (3, 2, -1)
  assert play([SOUTH, WEST, SOUTH, EAST])[0] == (4, 1, -1)
  assert play([EAST, SOUTH, WEST, SOUTH])[0] == (3, 2, 0)
  # The wrong key: a at lock B of box c.
  path = [EAST, SOUTH, EAST, EAST, EAST, SOUTH]
  place, rewards, _, _ = play(path)
  assert place == (3, 6, 0) and rewards == [0] * 6


def test_opening_a_box_uses_up_the_key():
  place, rewards, steps, _ = play([EAST, SOUTH, SOUTH])
  assert place == (4, 3, -1) and rewards == [0, 0, 1] and steps == [1, 1, 1]
  # The content lies open now, and is a key to hold.
  place, rewards, _, _ = play([EAST, SOUTH, SOUTH, WEST])
  assert place == (4, 2, 1) and rewards == [0, 0, 1, 0]


def test_gem_ends_the_episode():
  path = [EAST, SOUTH, SOUTH, WEST, SOUTH, EAST, SOUTH, WEST]
  place, rewards, steps, discounts = play(path)
  assert place[:2] == (6, 2)
  assert rewards == [0, 0, 1, 0, 0, 0, 1, 10]
  assert steps == [1] * 7 + [2] and discounts == [1] * 7 + [0]


def test_opening_a_distractor_ends_the_episode():
  path = [EAST, EAST, EAST, SOUTH, EAST, SOUTH]
  _, rewards, steps, discounts = play(path)
  assert rewards == [0, 0, 0, 0, 0, -1]
  assert steps == [1] * 5 + [2] and discounts == [1] * 5 + [0]


def test_walls():
  path = [WEST] * 3 + [NORTH] * 3
  assert play(path) == ((1, 1, -1), [0] * 6, [1] * 6, [1] * 6)
  path = [SOUTH, EAST, EAST, EAST, NORTH, NORTH, EAST, EAST, EAST, NORTH]
  assert play(path)[0] == (1, 7, 1)


def test_loose_gem_can_be_taken_at_once():
  text = LEVEL.replace("*B", "..").replace("#.@a", "#*@a")
  _, rewards, steps, _ = play([WEST], text)
  assert rewards == [10] and steps == [2]


@pytest.mark.parametrize("max_steps, end", [(120, 121), (7, 8), (0, None)])
def test_step_cap_strikes_one_action_later(max_steps, end):
  _, _, steps, discounts = play([NORTH] * 130, max_steps=max_steps)
  if end is None:
    assert steps == [1] * 130 and discounts == [1] * 130
  else:
    # After the last step comes the first of a new level.
    assert steps[: end + 2] == [1] * (end - 1) + [2, 0, 1]
    assert discounts[: end + 2] == [1] * (end - 1) + [0, 1, 1]


def test_action_that_strikes_the_cap_still_counts():
  path = [WEST, EAST, EAST, SOUTH, SOUTH]
  _, rewards, steps, discounts = play(path, max_steps=4)
  assert rewards[-1] == 1 and steps[-1] == 2 and discounts[-1] == 0


def sample_levels(number, **settings):
  """Returns an environment, and a batch of first states of it."""
  env = box_world.BoxWorld(**settings)
  keys = jax.random.split(jax.random.key(5), number)
  states, _ = jax.jit(jax.vmap(env.reset))(keys)
  states = states._replace(key=jax.random.key_data(states.key))
  return env, jax.device_get(states)


def check_solutions(number):
  """Solves and replays levels, and compares solutions with the original's."""
  env, states = sample_levels(number)
  texts = [env.to_text(index(states, i)) for i in range(number)]
  parsed = stack([env.parse(text) for text in texts])
  for name in ("grid", "agent", "held"):
    np.testing.assert_array_equal(
        getattr(parsed, name), getattr(states, name)
    )
  solutions = [box_world_solver.solve(text) for text in texts]
  assert all(solutions)
  _, timesteps = replay(env, parsed, solutions)
  locks = (states.grid >= box_world.LOCK) & (states.grid < box_world.DISTRACTOR)
  lengths = locks.sum((1, 2))
  for i, solution in enumerate(solutions):
    step_types = timesteps.step_type[i, : len(solution)]
    assert (step_types[:-1] == interface.StepType.MID).all()
    assert step_types[-1] == interface.StepType.LAST
    assert timesteps.reward[i, : len(solution)].sum() == lengths[i] + 10
  # Means of 400 levels each of the original.
  for length, mean, digit in (
      (1, 14.3, 0.1), (2, 22, 1), (3, 30.4, 0.1), (4, 38, 1), (5, 46, 1)
  ):  # fmt: skip
    steps = [
        len(solution)
        for solution, boxes in zip(solutions, lengths, strict=True)
        if boxes == length
    ]
    rollouts.assert_same_mean(steps, mean, size=400, rounding=digit / 2)


def test_levels_are_solvable():
  check_solutions(1000)


@pytest.mark.slow
def test_four_thousand_levels_are_solvable():
  check_solutions(4000)


@pytest.mark.parametrize("branch_length", [1, 2])
def test_structure_of_levels(branch_length):
  """Objects do not touch, and keys, locks and numbers are as documented."""
  number = 1000
  settings = {"branch_length": branch_length}
  if branch_length > 1:
    settings.update(solution_length=(1, 2, 3), num_forward=(0, 1, 2))
  env, states = sample_levels(number, **settings)
  lengths, branches, starts, anchors = [], [], set(), set()
  colours_used = np.zeros(20)
  for i in range(number):
    state = index(states, i)
    rows = env.to_text(state).split()
    assert rows[0] == rows[-1] == "#" * 14
    starts.add(divmod(int(state.agent), 14))
    objects, loose, boxes = [], [], []
    for r, row in enumerate(rows):
      for c, letter in enumerate(row):
        if letter == "*" or letter.islower():
          if row[c + 1].isupper():
            objects.append({(r, c), (r, c + 1)})
            boxes.append((row[c + 1].lower(), letter, [r, c + 1]))
          else:
            objects.append({(r, c)})
            loose.append(letter)
          anchors.add((r, c))
    for j, one in enumerate(objects):
      for other in objects[:j]:
        assert all(
            max(abs(r - s), abs(c - d)) > 1 for r, c in one for s, d in other
        )
    # The way to the gem, from the loose key on.
    (key,) = loose
    colours_used[ord(key) - ord("a")] += 1
    ends = distractors(state)
    path = {lock: c for lock, c, cell in boxes if cell not in ends}
    chain = [key]
    while chain[-1] != "*":
      chain.append(path[chain[-1]])
    assert len(chain) == len(path) + 1
    lengths.append(len(path))
    branches.append(len(ends) / branch_length)
    assert len(boxes) == len(path) + len(ends)
    # A branch begins with a key of the way, and holds other keys.
    roots = [c for lock, c, cell in boxes if cell in ends and lock in chain]
    assert len(roots) == branches[-1]
    contents = [c for lock, c, cell in boxes if cell in ends]
    assert not set(contents) & set(chain)
    assert {lock for lock, _, _ in boxes} <= {*chain, *contents}
  assert starts == {(r, c) for r in range(2, 12) for c in range(1, 12)}
  assert anchors == {(r, c) for r in range(2, 12) for c in range(2, 10)}
  for values, choices in (
      (lengths, env.solution_length),
      (branches, env.num_forward),
  ):
    for choice in choices:
      share = 1 / len(choices)
      error = (share * (1 - share) / number) ** 0.5
      rollouts.assert_same_mean(np.equal(values, choice), share, error)
  # Every colour is as likely to be the loose key's: chi-squared with 19
  # degrees of freedom, mean 19 and standard deviation sqrt(38).
  expected = number / 20
  assert ((colours_used - expected) ** 2 / expected).sum() < 19 + 5 * 38**0.5


@pytest.mark.parametrize(
    "lengths, forward, size, reward, endings, length",
    [
        ((1, 2, 3, 4), (0, 1, 2, 3, 4), 300, (0.060, 0.055),
         (0.007, 0.06, 0.933), 118),
        ((1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5), 300, (0.010, 0.042),
         (0.003, 0.077, 0.92), 116),
        ((1,), (0,), 200, (0.350, 0.13), (0.03, 0, 0.97), 120),
    ],
)  # fmt: skip
def test_statistics_of_random_play(
    lengths, forward, size, reward, endings, length
):
  metrics = rollouts.first_episodes(
      box_world.BoxWorld(solution_length=lengths, num_forward=forward),
      rollouts.uniform_policy(4),
      4096,
      jax.random.key(13),
  )
  rollouts.assert_same_mean(metrics["return"], *reward)
  rollouts.assert_same_mean(metrics["length"], length, size=size, rounding=0.5)
  solved = metrics["last_reward"] == 10
  failed = metrics["last_reward"] == -1
  for ending, share in zip(
      (solved, failed, ~solved & ~failed), endings, strict=True
  ):
    rollouts.assert_same_mean(ending, share, size=size, rounding=0.0005)
  assert metrics["length"].max() == 121


def test_position_is_parsed_back_with_the_key_in_the_hand():
  env = small_env()
  start = env.parse(LEVEL)
  states, _ = replay(env, stack([start]), [[EAST, SOUTH, SOUTH, WEST]])
  state = index(states, (0, -1))
  text = env.to_text(state)
  assert text[0] == "b"
  again = env.parse(text, key=jax.random.PRNGKey(4))
  np.testing.assert_array_equal(again.grid, state.grid)
  assert again.agent == state.agent and again.held == state.held
  assert again.step_type == interface.StepType.FIRST
  np.testing.assert_array_equal(again.key, jax.random.PRNGKey(4))


def tried_at_random(rng, env):
  """Draws a level's numbers and places its objects as the original does.

  Returns:
    How many boxes are on the way and how many branches there are, of the first
    level that is not given up.
  """
  side = env.grid_size + 2
  while True:
    length = rng.choice(env.solution_length)
    forward = rng.choice(env.num_forward)
    free = np.zeros([side, side], bool)
    free[1:-1, 1:-1] = True
    misses = 0
    for i in range(1 + length + forward):
      while misses <= 200:
        r, c = rng.integers(2, side - 2), rng.integers(1, side - 4)
        if free[r - 1 : r + 2, c - 1 : c + 3].all():
          free[r, c : c + 1 + (i > 0)] = False
          break
        misses += 1
    while misses <= 200:
      if free[rng.integers(2, side - 2), rng.integers(1, side - 2)]:
        return length, forward
      misses += 1


def test_large_levels_are_given_up_as_often_as_in_the_original():
  settings = dict(grid_size=9, solution_length=[1, 5], num_forward=[0, 1])
  number, rng = 2000, np.random.default_rng(0)
  env, states = sample_levels(number, **settings)
  locks = states.grid >= box_world.LOCK
  ends = states.grid >= box_world.DISTRACTOR
  forward, length = ends.sum((1, 2)), (locks & ~ends).sum((1, 2))
  expected = np.array([tried_at_random(rng, env) for _ in range(number)])
  for values, least, most in (((1, 0), 0.28, 0.38), ((5, 1), 0.1, 0.18)):
    share = np.mean((expected == values).all(1))
    assert least < share < most  # Not 1/4, of those that are given up too.
    error = (share * (1 - share) / number) ** 0.5
    found = (length == values[0]) & (forward == values[1])
    rollouts.assert_same_mean(found, share, error)


def test_share_of_the_largest_levels_that_is_given_up():
  """What the class's docstring says of it."""
  levels = box_world_levels.LevelSampler(12, [5], [5], 1)
  accepted = jax.jit(jax.vmap(lambda key: levels.sample(key, 0, ())[0]))
  keys = jax.random.split(jax.random.key(3), 8192)
  rollouts.assert_same_mean(~accepted(keys), 0.12, error=0, rounding=0.005)


def test_as_many_boxes_as_colours():
  env, states = sample_levels(
      2, grid_size=24, solution_length=[20], num_forward=[0]
  )
  assert all(
      box_world_solver.solve(env.to_text(index(states, i))) for i in range(2)
  )


def test_other_sizes():
  env, states = sample_levels(
      64, grid_size=6, solution_length=[1], num_forward=[0], view="full"
  )
  assert env.observation_shape == (8, 8, 3)
  assert states.grid.shape == (64, 8, 8)
  assert all(
      box_world_solver.solve(env.to_text(index(states, i))) for i in range(64)
  )
  # A crowded room: many attempts fail, and every level is complete.
  _, states = sample_levels(
      64, grid_size=9, solution_length=[4], num_forward=[1]
  )
  assert ((states.grid >= box_world.LOCK).sum((1, 2)) == 5).all()


def test_render_marks_the_window():
  env = small_env()
  image = env.render(env.parse("c" + LEVEL.strip()[1:]), scale=8)
  assert image.shape == (72, 72, 3)
  marked = (image == (255, 128, 0)).all(-1)
  rows, cols = np.flatnonzero(marked.any(1)), np.flatnonzero(marked.any(0))
  assert (rows[0], rows[-1]) == (0, 39) and (cols[0], cols[-1]) == (0, 39)
  # The corner shows the key, beside the frame.
  pixels = np.rint(np.asarray(env.pixels(env.parse(LEVEL))) * 255)
  assert image[4, 4].tolist() == pixels[4, 5].tolist()
  with pytest.raises(ValueError, match="scale.*0"):
    env.render(env.parse(LEVEL), scale=0)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"view": "5x5"}, "view.*'5x5'"),
        ({"solution_length": [0, 1]}, r"solution_length.*1, got \[0, 1\]"),
        ({"solution_length": []}, r"solution_length.*\[\]"),
        ({"num_forward": [-1]}, r"num_forward.*0, got \[-1\]"),
        ({"branch_length": 0}, "branch_length.*1, got 0"),
        ({"max_steps": -1}, "max_steps.*0, got -1"),
        ({"grid_size": 0}, "grid_size must be at least 1, got 0"),
        ({"grid_size": -3}, "grid_size must be at least 1, got -3"),
        ({"grid_size": 3}, "grid_size 3 is too small for 10 boxes"),
        ({"grid_size": 8}, "grid_size 8 is too small for 10 boxes"),
        ({"solution_length": [21]}, r"solution_length.* up to 20, .*\[21\]"),
        ({"solution_length": [19]}, "solution_length up to 19 leaves 0"),
        ({"solution_length": [5], "branch_length": 15}, "leaves 14"),
    ],
)
def test_bad_settings(settings, message):
  with pytest.raises(ValueError, match=message):
    box_world.BoxWorld(**settings)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "square"),
        (LEVEL.replace("#.......#\n", "", 1), "square"),
        (LEVEL.replace("d", "?"), r"\['\?'\]"),
        (LEVEL.replace("@", "."), "one agent '@', got 0"),
        (LEVEL.replace("d", "@"), "one agent '@', got 2"),
        (LEVEL.replace("*B", ".."), "one gem .* got 0"),
        (LEVEL.replace("cB", ".B"), "left of the lock 'B' in row 4, column 6"),
        (LEVEL.replace("cB.#", "cB.."), "walls"),
        (LEVEL.replace("#", "A", 1), "top left, got 'A'"),
    ],
)
def test_bad_text(text, message):
  with pytest.raises(ValueError, match=message):
    box_world.BoxWorld.parse(text)


def test_given_distractors():
  locks = [[4, 3], [6, 3]]
  assert distractors(box_world.BoxWorld.parse(LEVEL)) == [[4, 6], [6, 6]]
  state = box_world.BoxWorld.parse(LEVEL, distractors=locks)
  assert distractors(state) == locks
  with pytest.raises(ValueError, match=r"cells of locks.*\[4, 2\]"):
    box_world.BoxWorld.parse(LEVEL, distractors=[[4, 2]])


def test_state_of_another_size():
  with pytest.raises(ValueError, match=r"grid must be \[14, 14\].*\[9, 9\]"):
    box_world.BoxWorld().step(box_world.BoxWorld.parse(LEVEL), jnp.int32(0))
