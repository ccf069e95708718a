r"""BoxWorld: keys, locked boxes and one gem, as pure functions.

An agent in a room of 12 x 12 cells picks up keys and opens boxes with them. A
box is two cells: a lock, and to the left of it the content, a key or the gem.
A lock opens to the key of its colour, which is used up; then the content can be
taken, and a key in the hand is lost when another is taken. One loose key starts
the chain that leads to the gem. Distractor boxes can be opened too, with a key
that is then missing. Santoro et al. (2018), section 4.2 and appendix A.3, show
the agent only 5 x 5 cells and the key that it holds.

Rules are those of Box-World in google-deepmind/pycolab, of which recorded
episodes are reproduced in the tests:

- Entering a lock with its key opens the box: +1, or -1 and the end of the
  episode if the box is a distractor.
- Entering the gem, once its box is open: +10 and the end.
- Nothing else has a reward. Walls, closed boxes and locks without their key do
  not let the agent in.
- The episode ends with the first action beyond `max_steps`, which still counts.

The best return is L + 10 for L boxes on the way to the gem.

In text a level is one character a cell: `#` wall, `.` empty, `@` agent, `a` to
`t` keys, `A` to `T` locks of the same colours, `*` the gem. The corner at the
top left shows the key that the agent holds, or `#`.

Cells are counted row by row: cell = S * row + column, for a board of S x S.

Glossary of shapes:
  - S: side of the board, the room and a wall of one cell on each side.
"""

from collections.abc import Callable, Sequence
import colorsys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tasks.environments import box_world_text, interface
from tasks.environments.box_world_levels import (
    AGENT,
    DISTRACTOR,
    EMPTY,
    GEM,
    KEY,
    LOCK,
    NOTHING,
    NUM_COLOURS,
    WALL,
    LevelSampler,
    State,
    first_state,
)

ACTIONS = ("north", "south", "west", "east")


def _palette() -> np.ndarray:
  """Returns the colours of the codes, float32 [64, 3].

  The original gives them in 0 to 999: colours of equal saturation 0.5 and
  value 0.7 that are 18 degrees of hue apart, the same for a key and its lock.
  """
  colours = [
      [int(1000 * x) for x in colorsys.hsv_to_rgb(i / NUM_COLOURS, 0.5, 0.7)]
      for i in range(NUM_COLOURS)
  ]
  palette = [[800] * 3, [0] * 3, [999] * 3, *(3 * colours), [500] * 3]
  return np.array(palette, np.float32) / 999


_PALETTE = _palette()


class BoxWorld(interface.Environment):
  """The game with levels of some size, seen in one way.

  Observations are float32 in [0, 1], RGB as in the original:

  - view "viewport": [5, 5, 6], the window with the agent at its centre, and on
    the last three channels a frame full of the colour of the key held, or of
    zeros. What lies outside the board looks like wall, which is black.
  - view "full": [S, S, 3], the board; the top left corner of the wall has
    the colour of the key held.

  A level is drawn as in the original, pycolab's `box_world.py`. With L and F
  uniform among what the constructor allows, colours k_1, ..., k_20 are
  shuffled; the loose key is k_1, box i on the way to the gem has lock k_i and
  content k_{i+1}, or the gem if i = L. Each of F distractor branches begins
  with a lock of a uniform k_i, i <= L, and holds a uniform k_j, L < j < 20;
  further boxes of a branch are opened by what the box before them holds, and
  none holds a colour again (in the original the third and later ones may).
  Objects are placed one after the other, uniformly where they touch neither
  another one, not even at a corner, nor the wall; at last the agent, where
  nothing is.

  The original tries cells at random, and after 200 in vain it draws another
  level, so that the largest are a little rarer: of those with 5 boxes and 5
  branches 12 % are given up. Here a cell is drawn at once, together with the
  number of tries that it would have taken; the levels are as likely as there.
  """

  num_actions = len(ACTIONS)

  def __init__(
      self,
      *,
      grid_size: int = 12,
      solution_length: Sequence[int] = (1, 2, 3, 4, 5),
      num_forward: Sequence[int] = (0, 1, 2, 3, 4, 5),
      branch_length: int = 1,
      max_steps: int = 120,
      view: str = "viewport",
      sample_where: Callable[..., Any] = interface.sample_where,
  ):
    """Constructs the environment; the defaults are the paper's.

    Args:
      grid_size: side of the room without its wall.
      solution_length: numbers of boxes on the way to the gem, of which a level
        has one, each as likely as the others.
      num_forward: numbers of distractor branches, likewise.
      branch_length: boxes of a distractor branch.
      max_steps: the episode ends with the step after this many; 0: never.
      view: "viewport" or "full".
      sample_where: draws an episode where one begins; for benchmarks, which
        compare others with `interface.sample_where`.

    Raises:
      ValueError: if a number is out of its range, if there are too few colours
        or if the room is too small for the objects.
    """
    if view not in ("viewport", "full"):
      raise ValueError(f"view must be 'viewport' or 'full', got {view!r}")
    if max_steps < 0:
      raise ValueError(f"max_steps must be at least 0, got {max_steps}")
    self._levels = LevelSampler(
        grid_size, solution_length, num_forward, branch_length
    )
    self.grid_size = grid_size
    self.solution_length = self._levels.solution_length
    self.num_forward = self._levels.num_forward
    self.branch_length = branch_length
    self.max_steps = max_steps
    self.view = view
    self._sample_where = sample_where
    side = grid_size + 2
    self.observation_shape = (
        (5, 5, 6) if view == "viewport" else (side, side, 3)
    )
    self._windows = interface.windows(side, side)

  def reset(self, key: jax.Array) -> tuple[State, interface.TimeStep]:
    """See `Environment.reset`."""
    side = self.grid_size + 2
    blank = first_state(
        key, jnp.zeros([side, side], jnp.uint8), jnp.int32(0)
    )
    state = self._sample_where(
        jnp.bool_(True), self._levels.sample, key, (), blank
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
    """See `Environment.step`; actions are those of `ACTIONS`.

    Raises:
      ValueError: if the state is of a board of another size.
    """
    side = self.grid_size + 2
    if state.grid.shape != (side, side):
      raise ValueError(
          f"state.grid must be [{side}, {side}] for grid_size "
          f"{self.grid_size}, got {list(state.grid.shape)}"
      )
    restart = state.step_type == interface.StepType.LAST
    grid = state.grid.reshape(-1)
    moves = jnp.array([-side, side, -1, 1], jnp.int32)
    target = state.agent + moves[jnp.asarray(action, jnp.int32)]
    code = jnp.int32(grid[target])
    # The wall keeps the agent from where this would be in the next row.
    beside = jnp.int32(grid[target + 1])

    closed = beside >= LOCK
    holds = state.held != NOTHING
    opens_box = holds & (code == LOCK + state.held)
    opens_distractor = holds & (code == DISTRACTOR + state.held)
    opens = opens_box | opens_distractor
    takes_gem = (code == GEM) & ~closed
    takes_key = (code >= KEY) & (code < LOCK) & ~closed
    enters = (code == EMPTY) | opens | takes_gem | takes_key

    frame = state.frame + 1
    ended = takes_gem | opens_distractor
    if self.max_steps:
      ended |= frame > self.max_steps
    ended &= ~restart
    here = jnp.arange(grid.size) == target
    grid = jnp.where(here & enters, jnp.uint8(EMPTY), grid)
    held = jnp.where(opens, NOTHING, state.held)
    state = State(
        key=state.key,
        grid=grid.reshape(side, side),
        agent=jnp.where(enters, target, state.agent),
        held=jnp.where(takes_key, code - KEY, held),
        frame=frame,
        boxes=state.boxes,
        step_type=jnp.where(
            ended,
            jnp.int32(interface.StepType.LAST),
            jnp.int32(interface.StepType.MID),
        ),
    )
    state = self._sample_where(
        restart, self._levels.sample, state.key, (), state
    )
    reward = (
        jnp.float32(opens_box)
        - jnp.float32(opens_distractor)
        + 10 * jnp.float32(takes_gem)
    )
    return state, interface.TimeStep(
        step_type=state.step_type,
        reward=jnp.where(restart, 0.0, reward),
        discount=jnp.where(ended, jnp.float32(0), jnp.float32(1)),
        observation=self.observe(state),
    )

  def outcome(
      self, state: State, timestep: interface.TimeStep
  ) -> dict[str, tuple[jax.Array, jax.Array]]:
    """See `Environment.outcome`: how it ended, over all levels and by L."""
    solved, distractor = timestep.reward >= 10, timestep.reward < 0
    ends = {
        "solved": solved,
        "distractor": distractor,
        "timeout": ~solved & ~distractor,
    }
    metrics = {}
    for name, ended in ends.items():
      ended = jnp.float32(ended)
      metrics[name] = (ended, jnp.bool_(True))
      for length in self.solution_length:
        metrics[f"{name}_{length}"] = (ended, state.boxes == length)
    return metrics

  def observe(self, state: State) -> jax.Array:
    """See `Environment.observe`."""
    if self.view == "full":
      return self.pixels(state)
    window = self._codes(state)[jnp.asarray(self._windows)[state.agent]]
    held = jnp.full([25], _held_code(state))
    palette = jnp.asarray(_PALETTE)
    image = jnp.concatenate([palette[window], palette[held]], axis=-1)
    return image.reshape(self.observation_shape)

  def pixels(self, state: State) -> jax.Array:
    """See `Environment.pixels`; the top left corner shows the key held."""
    codes = self._codes(state).at[0].set(_held_code(state))
    return jnp.asarray(_PALETTE)[codes].reshape(*state.grid.shape, 3)

  def _codes(self, state: State) -> jax.Array:
    """Returns what each cell shows, int32 [S * S]."""
    codes = jnp.asarray(state.grid).reshape(-1)
    agent = jnp.arange(codes.size) == state.agent
    return jnp.where(agent, AGENT, jnp.int32(codes))

  def window(self, state: State) -> tuple[int, int, int, int] | None:
    """See `Environment.window`."""
    if self.view == "full":
      return None
    row, col = divmod(int(state.agent), self.grid_size + 2)
    return row - 2, col - 2, row + 3, col + 3

  def to_text(self, state: State) -> str:
    """See `box_world_text.to_text`."""
    return box_world_text.to_text(state)

  parse = staticmethod(box_world_text.parse)


def _held_code(state: State) -> jax.Array:
  """Returns the code that stands for the hand: a key, or black."""
  return jnp.where(state.held >= 0, KEY + state.held, WALL)
