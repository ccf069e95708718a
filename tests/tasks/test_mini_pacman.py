"""Mini Pacman against the recorded original, and by its rules."""

import collections
import dataclasses
import functools
import json
import pathlib

import jax
import numpy as np
import pytest

from tasks.environments import interface, mini_pacman
from tests.helpers import rollouts

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
STAY, RIGHT, UP, LEFT, DOWN = range(5)


@functools.cache
def transitions():
  """Returns the recorded steps."""
  text = (GOLDEN / "mini_pacman_transitions.json").read_text(encoding="utf-8")
  return json.loads(text)["transitions"]


def make_state(record, max_ghosts=12):
  """Returns the state that a recorded one describes, in NumPy."""

  def cell(place):
    return 19 * place[0] + place[1]

  num_ghosts, num_pills = len(record["ghosts"]), len(record["pills"])
  ghosts = np.zeros(max_ghosts, np.int32)
  ghosts[:num_ghosts] = [cell(ghost) for ghost in record["ghosts"]]
  facings = np.zeros(max_ghosts, np.int32)
  facings[:num_ghosts] = [ghost[2] for ghost in record["ghosts"]]
  pills = np.zeros(2, np.int32)
  pills[:num_pills] = [cell(pill) for pill in record["pills"]]
  return mini_pacman.State(
      key=np.asarray(jax.random.PRNGKey(0)),
      board=mini_pacman.Level(
          pacman=np.int32(cell(record["pacman"])),
          food=np.array([[c == "o" for c in row] for row in record["food"]]),
          pills=pills,
          pills_left=np.arange(2) < num_pills,
          ghosts=ghosts,
          facings=facings,
          ghosts_left=np.arange(max_ghosts) < num_ghosts,
      ),
      level=np.int32(record["level"]),
      timer=np.int32(record["timer"]),
      power=np.int32(record["power"]),
      frame=np.int32(record["frame"]),
      eaten=np.zeros(3, np.int32),
      step_type=np.int32(interface.StepType.MID),
  )


def describe(state):
  """Returns a state in the form of the records."""
  state = jax.tree.map(np.asarray, state)
  board = state.board

  def place(cell):
    return [int(x) for x in divmod(cell, 19)]

  text = np.where(np.asarray(board.food), "o", ".")
  text[[[c == "#" for c in row] for row in mini_pacman.MAZE]] = "#"
  return {
      "pacman": place(board.pacman),
      "ghosts": [
          [*place(cell), int(facing)]
          for cell, facing, left in zip(
              board.ghosts, board.facings, board.ghosts_left, strict=True
          )
          if left
      ],
      "pills": [place(cell) for cell in board.pills[board.pills_left]],
      "power": int(state.power),
      "level": int(state.level),
      "timer": int(state.timer),
      "frame": int(state.frame),
      "food": ["".join(row) for row in text],
  }


def certain_rules(mode, ghosts_move, **changes):
  """Returns the rules under which the steps were recorded: nothing is left
  to chance but what a new level draws.
  """
  return dataclasses.replace(
      mini_pacman.RULES[mode],
      ghost_speed=2.0 if ghosts_move else 0.0,
      ghost_speed_per_level=0.0,
      random_turn=0.0,
      **changes,
  )


@functools.cache
def full_env(mode, ghosts_move, frame_cap=3000):
  """Returns an environment in which all of the maze is seen."""
  rules = certain_rules(mode, ghosts_move, frame_cap=frame_cap)
  return mini_pacman.MiniPacman(rules, view="full")


# A step takes seconds to compile, so the tests share them.
@functools.cache
def stepper(*rules):
  """Returns the compiled step of a `full_env`."""
  return jax.jit(full_env(*rules).step)


def index(tree, i):
  """Returns example i of a tree of arrays."""
  return jax.tree.map(lambda x: x[i], tree)


@pytest.mark.parametrize(
    "batched", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_recorded_transitions(batched):
  groups = collections.defaultdict(list)
  for record in transitions():
    frame_cap = record.get("frame_cap", 3000)
    groups[record["mode"], record["ghosts_move"], frame_cap].append(record)
  if batched:
    # The same code under jax.vmap: the largest group of each mode will do.
    groups = {
        group: records
        for group, records in groups.items()
        if group[1:] == (1, 3000)
    }
  checked = 0
  for (mode, ghosts_move, frame_cap), records in groups.items():
    env = full_env(mode, ghosts_move, frame_cap)
    states = [make_state(record["before"]) for record in records]
    actions = np.array([record["action"] for record in records], np.int32)
    if batched:
      outcomes = jax.device_get(
          jax.jit(jax.vmap(env.step))(
              jax.tree.map(lambda *x: np.stack(x), *states), actions
          )
      )
      outcomes = [index(outcomes, i) for i in range(len(records))]
    else:
      step = stepper(mode, ghosts_move, frame_cap)
      outcomes = jax.device_get(
          [step(*arguments) for arguments in zip(states, actions, strict=True)]
      )
    for record, (state, timestep) in zip(records, outcomes, strict=True):
      after = describe(state)
      if record["new_level"]:
        after["food_count"] = sum(row.count("o") for row in after["food"])
        after["n_pills"] = len(after["pills"])
        after["n_ghosts"] = len(after["ghosts"])
        after = {name: after[name] for name in record["after"]}
      assert after == record["after"], record["id"]
      np.testing.assert_allclose(
          timestep.reward, record["reward"], rtol=0, atol=4e-6
      )
      assert timestep.discount == record["pcontinue"], record["id"]
      last = timestep.step_type == interface.StepType.LAST
      assert last == (record["pcontinue"] == 0), record["id"]
      if not last:  # A death has a reward of its own.
        rules = env.rules
        worth = [rules.food_reward, rules.pill_reward, rules.ghost_reward]
        np.testing.assert_allclose(
            rules.step_reward + np.asarray(state.eaten) @ worth,
            record["reward"],
            atol=4e-6,
        )
      checked += 1
  assert checked == (282 if batched else 333)


def test_outcome_counts_over_an_episode():
  """Food, a pill and a ghost in three steps; the next episode begins at 0."""
  env = full_env("regular", 0, 10)
  food = [row.replace(".", "-") for row in mini_pacman.MAZE]
  food[1] = food[1][:3] + "o" + food[1][4:]
  record = {
      "pacman": [1, 1],
      "ghosts": [[2, 3, 0]],
      "pills": [[1, 2]],
      "power": 0,
      "level": 4,
      "timer": 7,
      "frame": 7,
      "food": [*food[:13], food[13][:17] + "o" + food[13][18:], *food[14:]],
  }
  state = make_state(record)
  counts = []
  take = stepper("regular", 0, 10)
  for action in np.array([1, 1, 4, 0], np.int32):
    state, timestep = take(state, action)
    counts.append(
        [int(value) for value, _ in env.outcome(state, timestep).values()]
    )
  assert list(env.outcome(state, timestep)) == [
      "level",
      "food",
      "pills",
      "ghosts",
  ]
  assert counts == [[4, 0, 1, 0], [4, 1, 1, 0], [4, 1, 1, 1], [1, 0, 0, 0]]


def test_recorded_observations():
  frames = np.load(GOLDEN / "mini_pacman_frames.npz")
  observe = {
      (encoding, view): jax.jit(
          mini_pacman.MiniPacman(view=view, encoding=encoding).observe
      )
      for encoding in ("planes", "rgb")
      for view in ("full", "viewport")
  }
  for i, text in enumerate(frames["states"]):
    state = make_state(json.loads(str(text)))
    for encoding in ("planes", "rgb"):
      np.testing.assert_allclose(
          observe[encoding, "full"](state),
          frames[encoding][i],
          rtol=0,
          atol=1e-6,
      )
      window = observe[encoding, "viewport"](state)
      padding = [1, 0, 0, 0, 0, 0] if encoding == "planes" else [1, 1, 1]
      wide = np.zeros([19, 23, len(padding)], np.float32) + padding
      wide[2:-2, 2:-2] = frames[encoding][i]
      row, col = divmod(int(state.board.pacman), 19)
      np.testing.assert_allclose(
          window, wide[row : row + 5, col : col + 5], rtol=0, atol=1e-6
      )


@pytest.mark.parametrize("encoding", ["planes", "rgb"])
def test_level_that_ends_by_its_timer_is_still_shown(encoding):
  frames = np.load(GOLDEN / "mini_pacman_frames.npz")
  record = json.loads(str(frames["timer_step"]))
  rules = record["mode"], record["ghosts_move"], 3000
  step = stepper(*rules)
  if encoding != full_env(*rules).encoding:
    env = mini_pacman.MiniPacman(
        full_env(*rules).rules, view="full", encoding=encoding
    )
    step = jax.jit(env.step)
  action = np.int32(record["action"])
  state, timestep = step(make_state(record["before"]), action)
  assert state.level == record["before"]["level"] + 1
  np.testing.assert_allclose(
      timestep.observation, frames[f"timer_step_{encoding}"], rtol=0, atol=1e-6
  )


EMPTY = tuple(row.replace(".", "-") for row in mini_pacman.MAZE)


def step(mode, action, ghosts_move=0, frame_cap=3000, **changes):
  """Takes a step from a hand-made state, with pacman at (1, 1) and no food
  but far away.
  """
  food = list(EMPTY)
  food[13] = food[13][:17] + "o" + food[13][18:]
  record = {
      "pacman": [1, 1],
      "ghosts": [],
      "pills": [],
      "power": 0,
      "level": 1,
      "timer": 5,
      "frame": 5,
      "food": food,
      **changes,
  }
  state, timestep = stepper(mode, ghosts_move, frame_cap)(
      make_state(record), np.int32(action)
  )
  return describe(state), float(timestep.reward), timestep


def test_pacman_moves_and_bumps_into_walls():
  for action, place in (
      (STAY, [1, 1]),
      (RIGHT, [1, 2]),
      (UP, [1, 1]),
      (LEFT, [1, 1]),
      (DOWN, [2, 1]),
  ):
    after, reward, timestep = step("regular", action)
    assert after["pacman"] == place
    assert reward == 0
    assert timestep.step_type == interface.StepType.MID
    assert after["frame"] == after["timer"] == 6


@pytest.mark.parametrize(
    "mode, rewards",
    [
        ("regular", (0, 1, 2, 5, 0)),
        ("avoid", (0.1, -0.1, -5, -10, -20)),
        ("hunt", (0, 0, 1, 10, -20)),
        ("ambush", (0, -0.1, 0, 10, -20)),
        ("rush", (0, -0.1, 10, 0, 0)),
    ],
)
def test_rewards_of_each_mode(mode, rewards):
  every_step, food, pill, ghost, death = rewards
  far = [13, 17, 1]
  some = ["#o-" + row[3:] if i == 1 else row for i, row in enumerate(EMPTY)]
  some[13] = some[13][:17] + "o" + some[13][18:]
  for changes, reward in (
      ({}, 0),
      ({"food": some}, food),
      ({"pills": [[1, 1], [9, 9]]}, pill),
      ({"ghosts": [[1, 1, 0], far], "power": 2}, ghost),
      ({"ghosts": [[1, 1, 0], far], "power": 1}, death),
  ):
    assert step(mode, STAY, **changes)[1] == pytest.approx(
        every_step + reward, abs=1e-6
    )


def test_power_lasts_the_eating_step_and_nineteen_more():
  after, _, _ = step("regular", STAY, pills=[[1, 1], [9, 9]], power=3)
  assert after["power"] == 20
  assert after["pills"] == [[9, 9]]
  # Touched when the counter has come down to 1: eaten. To 0: death.
  ghosts = [[1, 1, 0]]
  _, reward, timestep = step("regular", STAY, ghosts=ghosts, power=2)
  assert reward == 5 and timestep.discount == 1
  _, reward, timestep = step("regular", STAY, ghosts=ghosts, power=1)
  assert reward == 0 and timestep.discount == 0


def test_pill_and_ghost_in_one_step():
  after, reward, timestep = step(
      "hunt", RIGHT, pills=[[1, 2]], ghosts=[[1, 2, 0], [13, 17, 1]]
  )
  assert reward == 11
  assert timestep.discount == 1
  assert after["ghosts"] == [[13, 17, 1]]
  assert after["power"] == 20


def test_two_pills_on_one_cell_are_eaten_one_by_one():
  after, reward, _ = step("rush", STAY, pills=[[1, 1], [1, 1]])
  assert reward == 10
  assert after["pills"] == [[1, 1]] and after["level"] == 1


def test_two_ghosts_without_power_count_two_deaths():
  _, reward, timestep = step("hunt", STAY, ghosts=[[1, 1, 0], [1, 1, 3]])
  assert reward == -40
  assert timestep.step_type == interface.StepType.LAST


def test_one_ghost_is_eaten_and_the_later_ones_wait():
  ghosts = [[3, 9, 0], [1, 1, 0], [3, 9, 0], [1, 1, 3]]
  after, reward, _ = step("hunt", STAY, 1, ghosts=ghosts, power=9)
  assert reward == 10
  # The first went on to flee; the third and the fourth did nothing.
  assert after["ghosts"] == [[3, 10, 0], [3, 9, 0], [1, 1, 3]]


def test_ghost_on_pacman_at_a_blocked_junction_kills_twice():
  # (3, 3) has exits right, up, left and down; (3, 2) has no exit up.
  assert mini_pacman.MAZE[2][2] == "#"
  for place, facing, deaths in (([3, 1], 2, 2), ([3, 1], 3, 1)):
    _, reward, _ = step(
        "hunt", STAY, 1, pacman=place, ghosts=[[*place, facing]]
    )
    assert reward == -20 * deaths


def test_ghosts_that_have_not_moved_on_pacmans_junction():
  # A fresh ghost that counts as facing left tries down, which leads off
  # pacman's cell; one that counts as facing down stays and kills twice.
  for facing, deaths in ((4, 1), (5, 2)):
    _, reward, _ = step("hunt", STAY, 1, pacman=[3, 1], ghosts=[[3, 1, facing]])
    assert reward == -20 * deaths


def test_whims_and_speed_of_ghosts():
  """A whim is for any exit but the way back; under power there are none, and
  ghosts are half as fast.
  """
  number = 3000
  rules = mini_pacman.Rules(
      ghost_speed=1.0, ghost_speed_per_level=0.0, random_turn=1.0
  )
  take = jax.jit(
      jax.vmap(mini_pacman.MiniPacman(rules).step, in_axes=(0, None))
  )
  record = {
      "pacman": [13, 17],
      "ghosts": [[3, 3, 0]],  # On its way to the right.
      "pills": [],
      "level": 1,
      "timer": 5,
      "frame": 5,
      "food": [row.replace(".", "o") for row in mini_pacman.MAZE],
  }

  def shares(power):
    states = jax.tree.map(
        lambda x: np.broadcast_to(x, (number, *np.shape(x))),
        make_state({**record, "power": power}),
    )
    keys = jax.random.split(jax.random.PRNGKey(1), number)
    after, _ = take(states._replace(key=np.asarray(keys)), STAY)
    counts = collections.Counter(np.asarray(after.board.ghosts)[:, 0].tolist())
    return {divmod(cell, 19): n / number for cell, n in counts.items()}

  error = 5 * (0.25 / number) ** 0.5
  exits = ((3, 4), (2, 3), (4, 3))
  assert shares(0) == pytest.approx(dict.fromkeys(exits, 1 / 3), abs=error)
  assert shares(9) == pytest.approx({(3, 3): 1 / 2, (2, 3): 1 / 2}, abs=error)


@pytest.mark.parametrize("mode", ["regular", "hunt"])
def test_last_food_clears_a_level_only_where_food_does(mode):
  food = ["#o-" + row[3:] if i == 1 else row for i, row in enumerate(EMPTY)]
  after, reward, timestep = step(mode, STAY, food=food, level=2, power=7)
  assert timestep.discount == 1
  if mode == "regular":
    # One more than the food if pacman's new cell has a pill.
    assert reward in (1, 3)
    assert after["level"] == 3 and after["timer"] == 0
    assert len(after["ghosts"]) == 2
    assert sum(row.count("o") for row in after["food"]) == 138
  else:
    assert reward == 0 and after["level"] == 2 and after["power"] == 6


def test_frame_cap_ends_the_episode_with_discount_0():
  for frame, last in ((8, False), (9, True)):
    after, _, timestep = step("regular", STAY, frame_cap=10, frame=frame)
    assert after["frame"] == frame + 1
    assert (timestep.step_type == interface.StepType.LAST) == last
    assert timestep.discount == (0 if last else 1)
  _, _, timestep = step("regular", STAY, frame_cap=0, frame=10**6)
  assert timestep.discount == 1


def test_avoid_goes_on_to_the_next_level_after_128_steps():
  after, _, _ = step("avoid", STAY, timer=126)
  assert after["level"] == 1 and after["timer"] == 127
  after, _, timestep = step("avoid", STAY, timer=127)
  assert after["level"] == 2 and after["timer"] == 0
  # The observation is still of the old, eaten board.
  assert timestep.observation[1, 2].tolist() == [0, 0, 0]
  after, _, _ = step("regular", STAY, timer=127)
  assert after["level"] == 1 and after["timer"] == 128


def test_maze():
  maze = mini_pacman.MAZE
  assert len(maze) == 15 and {len(row) for row in maze} == {19}
  assert [row.count(".") for row in maze] == [
      0, 15, 6, 17, 6, 15, 4, 12, 4, 15, 6, 17, 6, 15, 0
  ]  # fmt: skip
  assert maze == maze[::-1] == tuple(row[::-1] for row in maze)
  exits = collections.Counter(
      sum(
          maze[r + dr][c + dc] == "."
          for dr, dc in ((0, 1), (1, 0), (0, -1), (-1, 0))
      )
      for r in range(15)
      for c in range(19)
      if maze[r][c] == "."
  )
  assert exits == {2: 114, 3: 16, 4: 8}


@pytest.mark.parametrize(
    "start_level, ghosts", [(1, 1), (2, 1), (5, 3), (40, 12)]
)
def test_new_levels(start_level, ghosts):
  rules = dataclasses.replace(
      mini_pacman.RULES["regular"], start_level=start_level
  )
  env = mini_pacman.MiniPacman(rules)
  state, timestep = jax.jit(jax.vmap(env.reset))(
      jax.random.split(jax.random.key(3), 4000)
  )
  assert (timestep.step_type == interface.StepType.FIRST).all()
  board = jax.tree.map(np.asarray, state.board)
  free = np.array([[c == "." for c in row] for row in mini_pacman.MAZE])
  assert (board.food == free).all()
  assert (board.ghosts_left.sum(1) == ghosts).all()
  for cells in (board.pacman[:, None], board.pills, board.ghosts):
    rows, cols = np.divmod(cells, 19)
    assert free[rows, cols].all()
    if cells.shape[1] < 12:
      assert np.unique(cells).size == 138
  away = np.stack(np.divmod(board.ghosts, 19)) - np.stack(
      np.divmod(board.pacman, 19)
  )[..., None]
  inside = ((away >= -5) & (away < 5)).all(0)
  assert not inside.any()
  # The box is tight: it ends one cell sooner to the right and down.
  assert away[:, (abs(away) <= 5).all(0)].max() == 5
  assert away[:, ((away >= -6) & (away < 5)).all(0)].min() == -6
  assert {int(x) for x in np.unique(board.facings)} == {0, 1, 4, 5}


def slow(*values):
  """Returns a set of parameters that only `make test-slow` runs."""
  return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "mode, reward, length",
    [
        ("regular", (9.925, 0.20), (71.25, 4.6)),
        ("avoid", (-16.92, 0.07), (51.1, 0.6)),
        ("hunt", (-20.15, 0.05), (49.9, 0.6)),
        slow("ambush", (-21.05, 0.04), (50.0, 0.6)),
        slow("rush", (0.40, 0.06), (63.9, 3.5)),
    ],
)
def test_statistics_of_random_play(mode, reward, length):
  metrics = rollouts.first_episodes(
      mini_pacman.MiniPacman(mode),
      rollouts.uniform_policy(5),
      4096,
      jax.random.key(11),
  )
  rollouts.assert_same_mean(metrics["return"], *reward)
  rollouts.assert_same_mean(metrics["length"], *length)
  if mode == "regular":
    # 0.73 % of 3,000 recorded episodes hit the cap.
    capped = metrics["length"] == 3000
    rollouts.assert_same_mean(capped, 0.0073, (0.0073 / 3000) ** 0.5)
    # An order statistic: how many are at most as long as the recorded median.
    below = metrics["length"] <= 42
    rollouts.assert_same_mean(below, 0.5, 0.5 / 3000**0.5, rounding=0.01)


@pytest.mark.parametrize(
    "mode, start_level, reward, length",
    [
        slow("regular", 1, 1.03, (76.4, 2.7)),
        slow("regular", 2, 1.03, (64.1, 2.6)),
        slow("regular", 3, 1.03, (30.6, 0.8)),
        slow("regular", 5, 1.03, (18.5, 0.3)),
        slow("regular", 6, 1.03, (16.7, 0.3)),
        ("regular", 9, 1.03, (13.9, 0.2)),
        slow("avoid", 1, -14.72, (54.8, 0.8)),
    ],
)
def test_statistics_of_standing_still(mode, start_level, reward, length):
  rules = dataclasses.replace(mini_pacman.RULES[mode], start_level=start_level)
  metrics = rollouts.first_episodes(
      mini_pacman.MiniPacman(rules),
      rollouts.constant_policy(STAY),
      4096,
      jax.random.key(12),
  )
  rollouts.assert_same_mean(metrics["length"], *length)
  # How many episodes the recorded errors were made from.
  size = (metrics["length"].std() / length[1]) ** 2
  rollouts.assert_same_mean(
      metrics["return"], reward, size=size, rounding=0.005
  )


def test_text():
  env = mini_pacman.MiniPacman()
  record = transitions()[0]["before"]
  lines = env.to_text(make_state(record)).splitlines()
  expected = [list(row) for row in record["food"]]
  for row, col in record["pills"]:
    expected[row][col] = "*"
  for row, col, _ in record["ghosts"]:
    expected[row][col] = "g" if record["power"] else "G"
  expected[record["pacman"][0]][record["pacman"][1]] = "@"
  assert lines == ["".join(row) for row in expected]


def test_render_marks_the_window():
  env = mini_pacman.MiniPacman()
  state = make_state({**transitions()[0]["before"], "pacman": [7, 9]})
  image = env.render(state, scale=8)
  assert image.shape == (120, 152, 3) and image.dtype == np.uint8
  marked = (image == (255, 128, 0)).all(-1)
  rows, cols = np.flatnonzero(marked.any(1)), np.flatnonzero(marked.any(0))
  assert (rows[0], rows[-1]) == (40, 79) and (cols[0], cols[-1]) == (56, 95)
  assert marked.sum() == 4 * 39
  full = mini_pacman.MiniPacman(view="full").render(state, scale=1)
  pixels = np.rint(np.asarray(env.pixels(state)) * 255)
  np.testing.assert_array_equal(full, pixels)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: mini_pacman.MiniPacman("flee"), "rules.*regular.*'flee'"),
        (lambda: mini_pacman.MiniPacman(view="5x5"), "view.*'5x5'"),
        (lambda: mini_pacman.MiniPacman(encoding="bw"), "encoding.*'bw'"),
        (lambda: mini_pacman.Rules(cleared_by="luck"), "cleared_by.*'luck'"),
        (lambda: mini_pacman.Rules(start_level=0), "start_level.*1, got 0"),
        (lambda: mini_pacman.Rules(frame_cap=-1), "frame_cap.*0, got -1"),
        (lambda: mini_pacman.Rules(random_turn=1.5), "random_turn.*1.5"),
        (lambda: mini_pacman.Rules(ghost_speed=-0.5), "ghost_speed.*-0.5"),
    ],
)
def test_bad_settings(make, message):
  with pytest.raises(ValueError, match=message):
    make()
