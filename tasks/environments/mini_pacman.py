r"""Mini Pacman: the maze of Imagination-Augmented Agents, as pure functions.

The maze has 15 x 19 cells. Pacman eats food and power pills; ghosts hunt him,
and flee and can be eaten while a pill's power lasts. Eating what the mode asks
for brings the next level, with more and faster ghosts; touching a ghost
without power ends the episode. Santoro et al. (2018), section 4.2, play it
through a window of 5 x 5 cells round pacman.

Rules, and the order of events within a step, are those of the author's release
of the environment that Weber et al. (2017, https://arxiv.org/abs/1707.06203)
describe. Recorded transitions of it are reproduced in the tests.

1. The clocks advance: frame and level timer by 1, power down by 1.
2. Pacman moves; a wall keeps him where he is. He eats the food on his cell and
   then at most one pill there. If that clears the level, the next one is built
   at once, between the two if it was cleared by food.
3. Ghosts take turns in order. One on pacman's cell kills him, or is eaten if he
   has power; one that is left moves with a probability that is the ghosts'
   speed, and touches again. After a ghost was eaten the later ones do not move.
4. The observation is made. Then a level whose time is up gives way to the next,
   and the frame cap ends the episode.

A ghost in a corridor walks on. At a junction it never turns back; it takes the
exit that points best towards pacman (under power: worst), as the crow flies.

Cells are counted row by row: cell = 19 * row + column.

Glossary of shapes:
  - G: ghosts that a state has room for, `Rules.max_ghosts`.
  - N: cells of a view: 285, or 25 in the window.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tasks.environments import interface

ACTIONS = ("stay", "right", "up", "left", "down")

_HALF = (
    "###################",
    "#...#.........#...#",
    "#.#.#.#######.#.#.#",
    "#.................#",
    "#.#.#.#######.#.#.#",
    "#.#.............#.#",
    "#.####.#####.####.#",
    "#......#####......#",
)
MAZE = (*_HALF, *_HALF[-2::-1])
"""15 rows of 19 characters: `#` is wall."""

_ROWS, _COLS = len(MAZE), len(MAZE[0])
_WALL = np.array([[c == "#" for c in row] for row in MAZE])  # [15, 19]
_FREE = np.flatnonzero(~_WALL).astype(np.int32)  # [138]

# Directions: right, up, left, down; the opposite of d is (d + 2) % 4.
_MOVES = np.array([[0, 1], [-1, 0], [0, -1], [1, 0]], np.int32)
_CELL_MOVES = (_MOVES @ [_COLS, 1]).astype(np.int32)

# A ghost that has not moved yet may face in two further ways. A released ghost
# draws one of four numbers, two of which are no direction of its code: they
# block the way back like left and down, but are no way ahead.
_FRESH_LEFT, _FRESH_DOWN = 4, 5
_FIRST_FACINGS = np.array([0, 1, _FRESH_LEFT, _FRESH_DOWN], np.int32)
# Where a ghost that stands on pacman at a junction tries to go: ahead, but a
# fresh one down or nowhere.
_AHEAD = np.array([0, 1, 2, 3, 3, -1], np.int32)


def _ghost_tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns junctions [285], exits [285, 6, 4] and turns [285, 6, 12].

  `exits` are those a ghost may choose from on a cell with a facing: one in a
  corridor, at a junction all but the way back. `turns` lists them repeatedly,
  so that a uniform index below 12 is a uniform exit.
  """
  wall = _WALL.reshape(-1)
  junctions = np.zeros(wall.size, bool)
  exits = np.zeros((wall.size, 6, 4), bool)
  turns = np.zeros((wall.size, 6, 12), np.int32)
  for cell in _FREE:
    ways = [d for d in range(4) if not wall[cell + _CELL_MOVES[d]]]
    junctions[cell] = len(ways) > 2
    for facing in range(6):
      back = (facing + 2) % 4 if facing < 4 else facing - _FRESH_LEFT
      allowed = [d for d in ways if d != back]
      if len(ways) == 2:
        allowed = [facing] if facing in ways else allowed[:1]
      exits[cell, facing, allowed] = True
      turns[cell, facing] = np.resize(allowed, 12)
  return junctions, exits, turns


def _spawn_tables() -> tuple[np.ndarray, np.ndarray]:
  """Returns the cells [285, 138] where ghosts may begin, and how many [285].

  They are the free cells outside a box round pacman's cell, which reaches one
  cell less far to the right and down.
  """
  cells = np.zeros((_WALL.size, _FREE.size), np.int32)
  counts = np.ones(_WALL.size, np.int32)
  rows, cols = np.divmod(_FREE, _COLS)
  for cell in _FREE:
    row, col = divmod(int(cell), _COLS)
    near = (abs(rows - row + 0.5) < 5) & (abs(cols - col + 0.5) < 5)
    far = _FREE[~near]
    cells[cell, : far.size] = far
    counts[cell] = far.size
  return cells, counts


def _next_cell_table() -> np.ndarray:
  """Returns the cell [285, 5] that each of pacman's actions leads to."""
  table = np.repeat(np.arange(_WALL.size, dtype=np.int32)[:, None], 5, axis=1)
  for cell in _FREE:
    for direction, move in enumerate(_CELL_MOVES):
      if not _WALL.flat[cell + move]:
        table[cell, direction + 1] += move
  return table


_JUNCTIONS, _EXITS, _TURNS = _ghost_tables()
_SPAWN_CELLS, _SPAWN_COUNTS = _spawn_tables()
_WINDOWS = interface.windows(_ROWS, _COLS)
_NEXT_CELL = _next_cell_table()


@dataclasses.dataclass(frozen=True)
class Rules:
  """What a mode of the game consists in; `RULES` has the released ones.

  Attributes:
    step_reward: at every step.
    food_reward: for a cell of food.
    pill_reward: for a power pill.
    ghost_reward: for eating a ghost.
    death_reward: for touching a ghost without power.
    cleared_by: what must be eaten up to clear a level: "food", "pills" or
      "ghosts".
    level_steps: steps after which a level gives way to the next; 0: never.
    start_level: the first level of an episode. Level k has
      1 + (k - 1) // 2 ghosts.
    frame_cap: steps after which an episode ends; 0: never.
    num_pills: power pills of a level.
    power_steps: what the power counter is set to by a pill. It is lowered at
      the start of each step, and ghosts are edible while it is above 0.
    ghost_speed: probability that a ghost moves, on level 1. It is halved under
      power.
    ghost_speed_per_level: what each further level adds to it.
    random_turn: probability that a ghost at a junction takes any exit but the
      way back; it has no such whims under power.
    max_ghosts: ghosts that a state has room for; later levels have this many.
      With 12 that begins at level 25, which within 3,000 steps and with food
      to be eaten is out of reach (at most 22 levels of 138 cells).
  """

  step_reward: float = 0.0
  food_reward: float = 0.0
  pill_reward: float = 0.0
  ghost_reward: float = 0.0
  death_reward: float = 0.0
  cleared_by: str = "food"
  level_steps: int = 0
  start_level: int = 1
  frame_cap: int = 3000
  num_pills: int = 2
  power_steps: int = 20
  ghost_speed: float = 0.5
  ghost_speed_per_level: float = 0.1
  random_turn: float = 0.05
  max_ghosts: int = 12

  def __post_init__(self):
    """Checks the rules.

    Raises:
      ValueError: if one is out of its range.
    """
    if self.cleared_by not in ("food", "pills", "ghosts"):
      raise ValueError(
          "cleared_by must be 'food', 'pills' or 'ghosts', "
          f"got {self.cleared_by!r}"
      )
    for name, least in (
        ("level_steps", 0),
        ("start_level", 1),
        ("frame_cap", 0),
        ("num_pills", 1),
        ("power_steps", 1),
        ("max_ghosts", 1),
    ):
      if getattr(self, name) < least:
        raise ValueError(
            f"{name} must be at least {least}, got {getattr(self, name)}"
        )
    for name in ("ghost_speed", "ghost_speed_per_level"):
      if getattr(self, name) < 0:
        raise ValueError(
            f"{name} must be at least 0, got {getattr(self, name)}"
        )
    if not 0 <= self.random_turn <= 1:
      raise ValueError(
          f"random_turn must be between 0 and 1, got {self.random_turn}"
      )


RULES = {
    "regular": Rules(food_reward=1.0, pill_reward=2.0, ghost_reward=5.0),
    "avoid": Rules(
        step_reward=0.1,
        food_reward=-0.1,
        pill_reward=-5.0,
        ghost_reward=-10.0,
        death_reward=-20.0,
        level_steps=128,
    ),
    "hunt": Rules(
        pill_reward=1.0,
        ghost_reward=10.0,
        death_reward=-20.0,
        cleared_by="ghosts",
    ),
    "ambush": Rules(
        food_reward=-0.1,
        ghost_reward=10.0,
        death_reward=-20.0,
        cleared_by="ghosts",
    ),
    "rush": Rules(food_reward=-0.1, pill_reward=10.0, cleared_by="pills"),
}
"""The five modes, as released. The papers' figures are on "regular"."""


class Level(NamedTuple):
  """What is drawn when a level begins, and then changes with play.

  Attributes:
    pacman: int32 [], his cell.
    food: bool [15, 19], where food is left.
    pills: int32 [P], their cells.
    pills_left: bool [P], which of them are left.
    ghosts: int32 [G], their cells.
    facings: int32 [G], where they look: 0 right, 1 up, 2 left, 3 down; 4 and 5
      are ghosts that have not moved yet (see the source).
    ghosts_left: bool [G], which of them are left.
  """

  pacman: jax.Array
  food: jax.Array
  pills: jax.Array
  pills_left: jax.Array
  ghosts: jax.Array
  facings: jax.Array
  ghosts_left: jax.Array


class State(NamedTuple):
  """State of one episode.

  Attributes:
    key: random key of all that is still to be drawn.
    board: what is where.
    level: int32 [], number of the level, from 1.
    timer: int32 [], steps on this level.
    power: int32 [], power counter.
    frame: int32 [], steps of this episode.
    eaten: int32 [3], food, pills and ghosts eaten in this episode.
    step_type: int32 [], of the step that led here.
  """

  key: jax.Array
  board: Level
  level: jax.Array
  timer: jax.Array
  power: jax.Array
  frame: jax.Array
  eaten: jax.Array
  step_type: jax.Array


class MiniPacman(interface.Environment):
  """The game under some rules, seen in one way.

  Observations are float32 in [0, 1]:

  =========== ================== ====================
  encoding    view "viewport"    view "full"
  =========== ================== ====================
  "rgb"       [5, 5, 3]          [15, 19, 3]
  "planes"    [5, 5, 6]          [15, 19, 6]
  =========== ================== ====================

  The window has pacman at its centre; what lies outside the maze looks like
  wall. With e = power / power_steps the planes are walls, food, pacman, ghosts
  (1 - e), edible ghosts (e) and pills. In colours pacman (0, 1, 0) hides a
  ghost (1, e, 0), which hides a pill (0, 1, 1), which hides food (0, 0, 1);
  walls are white and empty cells black.

  All randomness of a step takes two uniform numbers a ghost; a level is drawn
  only where one begins (`interface.sample_where`).
  """

  num_actions = len(ACTIONS)

  def __init__(
      self,
      rules: Rules | str = "regular",
      *,
      view: str = "viewport",
      encoding: str = "rgb",
      sample_where: Callable[..., Any] = interface.sample_where,
  ):
    """Constructs the environment.

    Args:
      rules: the name of a mode in `RULES`, or rules of your own, for instance
        `dataclasses.replace(RULES["hunt"], start_level=3)`.
      view: "viewport", the paper's window of 5 x 5 cells, or "full".
      encoding: "rgb" or "planes".
      sample_where: draws a level where one begins; for benchmarks, which
        compare others with `interface.sample_where`.

    Raises:
      ValueError: if the mode, the view or the encoding is unknown.
    """
    if isinstance(rules, str):
      if rules not in RULES:
        raise ValueError(
            f"rules must be one of {', '.join(RULES)}, or Rules; got {rules!r}"
        )
      rules = RULES[rules]
    if view not in ("viewport", "full"):
      raise ValueError(f"view must be 'viewport' or 'full', got {view!r}")
    if encoding not in ("rgb", "planes"):
      raise ValueError(f"encoding must be 'rgb' or 'planes', got {encoding!r}")
    self.rules = rules
    self.view = view
    self.encoding = encoding
    self._sample_where = sample_where
    self.observation_shape = (
        *((5, 5) if view == "viewport" else (_ROWS, _COLS)),
        3 if encoding == "rgb" else 6,
    )

  def reset(self, key: jax.Array) -> tuple[State, interface.TimeStep]:
    """See `Environment.reset`."""
    key, level_key = jax.random.split(key)
    start_level = jnp.int32(self.rules.start_level)
    state = State(
        key=key,
        board=self._sample_board(level_key, jnp.int32(0), start_level)[1],
        level=start_level,
        timer=jnp.int32(0),
        power=jnp.int32(0),
        frame=jnp.int32(0),
        eaten=jnp.zeros([3], jnp.int32),
        step_type=jnp.int32(interface.StepType.FIRST),
    )
    return state, interface.TimeStep(
        step_type=state.step_type,
        reward=jnp.float32(0),
        discount=jnp.float32(1),
        observation=self.observe(state),
    )

  def step(
      self, state: State, action: jax.Array
  ) -> tuple[State, interface.TimeStep]:
    """See `Environment.step`; actions are those of `ACTIONS`."""
    rules = self.rules
    restart = state.step_type == interface.StepType.LAST
    # Of the levels that a step may begin one is kept, so they share a key.
    key, ghost_key, level_key = jax.random.split(state.key, 3)
    state = state._replace(
        key=key,
        timer=state.timer + 1,
        power=jnp.maximum(state.power - 1, 0),
        frame=state.frame + 1,
    )
    state, gain = self._move_pacman(state, action, level_key)
    state, toll, deaths = self._move_ghosts(state, ghost_key, level_key)

    state = self._begin_level(
        restart, jnp.int32(rules.start_level), state, level_key
    )
    state = state._replace(
        frame=jnp.where(restart, 0, state.frame),
        eaten=jnp.where(restart, 0, state.eaten),
    )
    observation = self.observe(state)

    if rules.level_steps:
      state = self._begin_level(
          state.timer == rules.level_steps, state.level + 1, state, level_key
      )
    ended = deaths > 0
    if rules.frame_cap:
      ended |= state.frame >= rules.frame_cap
    ended &= ~restart
    state = state._replace(
        step_type=jnp.where(
            restart,
            jnp.int32(interface.StepType.FIRST),
            jnp.where(
                ended,
                jnp.int32(interface.StepType.LAST),
                jnp.int32(interface.StepType.MID),
            ),
        )
    )
    return state, interface.TimeStep(
        step_type=state.step_type,
        reward=jnp.where(restart, 0.0, rules.step_reward + gain + toll),
        discount=jnp.where(ended, jnp.float32(0), jnp.float32(1)),
        observation=observation,
    )

  def outcome(
      self, state: State, timestep: interface.TimeStep
  ) -> dict[str, tuple[jax.Array, jax.Array]]:
    """See `Environment.outcome`: the level reached, and what was eaten."""
    del timestep
    food, pills, ghosts = state.eaten
    figures = {
        "level": state.level,
        "food": food,
        "pills": pills,
        "ghosts": ghosts,
    }
    return {
        name: (jnp.float32(value), jnp.bool_(True))
        for name, value in figures.items()
    }

  def _move_pacman(
      self, state: State, action: jax.Array, level_key: jax.Array
  ) -> tuple[State, jax.Array]:
    """Part 2 of a step: returns the state and the reward."""
    rules, board = self.rules, state.board
    action = jnp.asarray(action, jnp.int32)
    pacman = jnp.asarray(_NEXT_CELL)[board.pacman, action]
    here = jnp.arange(_ROWS * _COLS) == pacman
    here = here.reshape(_ROWS, _COLS)
    ate_food = jnp.any(board.food & here)
    food = board.food & ~here
    state = state._replace(board=board._replace(pacman=pacman, food=food))
    if rules.cleared_by == "food":
      state = self._begin_level(
          ate_food & ~jnp.any(food), state.level + 1, state, level_key
      )

    board = state.board
    found = board.pills_left & (board.pills == board.pacman)  # [P]
    ate_pill = jnp.any(found)
    eaten = ate_pill & (jnp.arange(rules.num_pills) == jnp.argmax(found))
    pills_left = board.pills_left & ~eaten
    state = state._replace(
        board=board._replace(pills_left=pills_left),
        power=jnp.where(ate_pill, rules.power_steps, state.power),
        eaten=state.eaten + jnp.int32(jnp.stack([ate_food, ate_pill, False])),
    )
    if rules.cleared_by == "pills":
      state = self._begin_level(
          ate_pill & ~jnp.any(pills_left), state.level + 1, state, level_key
      )
    reward = jnp.where(ate_food, jnp.float32(rules.food_reward), 0.0)
    reward += jnp.where(ate_pill, jnp.float32(rules.pill_reward), 0.0)
    return state, reward

  def _move_ghosts(
      self, state: State, key: jax.Array, level_key: jax.Array
  ) -> tuple[State, jax.Array, jax.Array]:
    """Part 3 of a step: returns the state, the reward and the deaths.

    The ghosts are treated at once: a move depends on no other ghost, and under
    power all that the order decides is that those after the first to be eaten
    do nothing.
    """
    rules, board = self.rules, state.board
    ghosts, facings, left = board.ghosts, board.facings, board.ghosts_left
    powered = state.power > 0
    chances = [2, rules.max_ghosts]
    move_chance, whim = jax.random.uniform(key, chances, jnp.float32)  # [G]

    # How well each exit points to pacman; integers, so ties are exact.
    rows, cols = jnp.divmod(ghosts, _COLS)
    row, col = jnp.divmod(board.pacman, _COLS)
    score = jnp.stack(
        [col - cols, rows - row, cols - col, row - rows], axis=-1
    )  # [G, 4]
    score = jnp.where(powered, -score, score)
    exits = jnp.asarray(_EXITS)[ghosts, facings]  # [G, 4]
    direction = jnp.argmax(jnp.where(exits, score, -_WALL.size), axis=-1)
    direction = direction.astype(jnp.int32)  # [G]
    if rules.random_turn:
      turn = jnp.int32(whim * (12 / rules.random_turn))
      turn = jnp.asarray(_TURNS)[ghosts, facings, jnp.minimum(turn, 11)]
      direction = jnp.where(
          (whim < rules.random_turn) & ~powered, turn, direction
      )
    # On pacman's own cell a junction has no exit that points to him: the ghost
    # keeps its facing, and stays, touching him again, if that is a wall.
    before = left & (ghosts == board.pacman)
    aimless = before & jnp.asarray(_JUNCTIONS)[ghosts]
    facing = jnp.where(aimless, facings, direction)
    direction = jnp.where(aimless, jnp.asarray(_AHEAD)[facings], direction)

    speed = rules.ghost_speed + rules.ghost_speed_per_level * (
        jnp.float32(state.level - 1)
    )
    speed = jnp.where(powered, 0.5 * speed, speed)
    moves = left & (move_chance < speed)
    target = jnp.asarray(_NEXT_CELL)[ghosts, direction + 1]
    after = moves & (target == board.pacman)

    touches = before | after
    first = jnp.arange(rules.max_ghosts) == jnp.argmax(touches)
    eaten = powered & touches & first
    waits = powered & (jnp.cumsum(jnp.int32(eaten)) > 0)
    deaths = jnp.where(
        powered, 0, jnp.sum(jnp.int32(before) + jnp.int32(after))
    )
    moves &= ~waits
    left &= ~eaten
    ate = jnp.any(eaten)
    state = state._replace(
        board=board._replace(
            ghosts=jnp.where(moves, target, ghosts),
            facings=jnp.where(moves, facing, facings),
            ghosts_left=left,
        ),
        eaten=state.eaten + jnp.int32(jnp.stack([False, False, ate])),
    )
    if rules.cleared_by == "ghosts":
      state = self._begin_level(
          ate & ~jnp.any(left), state.level + 1, state, level_key
      )
    reward = jnp.where(ate, jnp.float32(rules.ghost_reward), 0.0)
    reward += rules.death_reward * jnp.float32(deaths)
    return state, reward, deaths

  def _begin_level(
      self, when: jax.Array, level: jax.Array, state: State, key: jax.Array
  ) -> State:
    """Puts a new board of the given level into the state, where `when`."""
    return state._replace(
        board=self._sample_where(
            when, self._sample_board, key, level, state.board
        ),
        level=jnp.where(when, level, state.level),
        timer=jnp.where(when, 0, state.timer),
        power=jnp.where(when, 0, state.power),
    )

  def _sample_board(
      self, key: jax.Array, attempt: jax.Array, level: jax.Array
  ) -> tuple[jax.Array, Level]:
    """Draws a level, at the first attempt: see `interface.sample_where`."""
    del attempt
    pills, ghosts = self.rules.num_pills, self.rules.max_ghosts
    uniform = jax.random.uniform(key, [1 + pills + 2 * ghosts], jnp.float32)
    free = jnp.asarray(_FREE)
    pacman = free[jnp.int32(uniform[0] * _FREE.size)]
    start = jnp.int32(
        uniform[1 + pills : -ghosts]
        * jnp.float32(jnp.asarray(_SPAWN_COUNTS)[pacman])
    )
    facing = jnp.int32(4 * uniform[-ghosts:])
    board = Level(
        pacman=pacman,
        food=jnp.asarray(~_WALL),
        pills=free[jnp.int32(uniform[1 : 1 + pills] * _FREE.size)],
        pills_left=jnp.ones([pills], bool),
        ghosts=jnp.asarray(_SPAWN_CELLS)[pacman, start],
        facings=jnp.asarray(_FIRST_FACINGS)[facing],
        ghosts_left=jnp.arange(ghosts) < 1 + (level - 1) // 2,
    )
    return jnp.bool_(True), board

  def observe(self, state: State) -> jax.Array:
    """See `Environment.observe`."""
    if self.view == "viewport":
      cells = jnp.asarray(_WINDOWS)[state.board.pacman]  # [N]
    else:
      cells = jnp.arange(_ROWS * _COLS)
    image = self._planes if self.encoding == "planes" else self._rgb
    return image(state, cells).reshape(self.observation_shape)

  def pixels(self, state: State) -> jax.Array:
    """See `Environment.pixels`."""
    image = self._rgb(state, jnp.arange(_ROWS * _COLS))
    return image.reshape(_ROWS, _COLS, 3)

  def _entities(self, state: State, cells: jax.Array) -> tuple[jax.Array, ...]:
    """Returns wall, food, pacman, ghost and pill [N], and fresh power []."""
    board = state.board

    def occupied(places, left):
      places = jnp.where(left, places, -1)
      return jnp.any(cells[:, None] == places[None, :], axis=-1)

    return (
        jnp.asarray(_WALL).reshape(-1)[cells],
        board.food.reshape(-1)[cells],
        cells == board.pacman,
        occupied(board.ghosts, board.ghosts_left),
        occupied(board.pills, board.pills_left),
        jnp.float32(state.power) / self.rules.power_steps,
    )

  def _planes(self, state: State, cells: jax.Array) -> jax.Array:
    """Returns the six planes of some cells, [N, 6]."""
    wall, food, pacman, ghost, pill, power = self._entities(state, cells)
    planes = jnp.stack([wall, food, pacman, ghost, ghost, pill], axis=-1)
    one = jnp.float32(1)
    weight = jnp.stack([one, one, one, 1 - power, power, one])
    return jnp.float32(planes) * weight[None, :]

  def _rgb(self, state: State, cells: jax.Array) -> jax.Array:
    """Returns the colours of some cells, [N, 3]."""
    wall, food, pacman, ghost, pill, power = self._entities(state, cells)
    image = jnp.zeros([cells.size, 3], jnp.float32)
    for mask, colour in (
        (wall, (1, 1, 1)),
        (food, (0, 0, 1)),
        (pill, (0, 1, 1)),
        (ghost, (1, power, 0)),
        (pacman, (0, 1, 0)),
    ):
      colour = jnp.stack([jnp.float32(c) for c in colour])
      image = jnp.where(mask[:, None], colour[None, :], image)
    return image

  def window(self, state: State) -> tuple[int, int, int, int] | None:
    """See `Environment.window`."""
    if self.view == "full":
      return None
    row, col = divmod(int(state.board.pacman), _COLS)
    return row - 2, col - 2, row + 3, col + 3

  def to_text(self, state: State) -> str:
    """Returns the board as text.

    Args:
      state: a state, not traced.

    Returns:
      15 lines of `#` wall, `o` food, `.` empty, `*` pill, `@` pacman, and
      ghosts as `G`, or `g` while they are edible.
    """
    board = jax.tree.map(np.asarray, state.board)
    text = np.where(_WALL, "#", np.where(board.food, "o", "."))
    text.flat[board.pills[board.pills_left]] = "*"
    text.flat[board.ghosts[board.ghosts_left]] = "g" if state.power > 0 else "G"
    text.flat[board.pacman] = "@"
    return "\n".join("".join(row) for row in text)
