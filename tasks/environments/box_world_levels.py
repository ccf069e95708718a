"""Levels of BoxWorld: what a state holds, and how a level is drawn.

Cells are counted row by row: cell = S * row + column, for a board of S x S.

Glossary of shapes:
  - S: side of the board, the room and a wall of one cell on each side.
  - N: objects, loose key first, then the boxes on the way to the gem, then the
    distractors; as many as a level has at most.
  - A: cells where the key of an object can be placed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tasks.environments import interface

NUM_COLOURS = 20

# Codes of a cell. A key has its colour added, and so have the two kinds of
# lock: those on the way to the gem, and distractors.
EMPTY, WALL, GEM, KEY = 0, 1, 2, 3
LOCK = KEY + NUM_COLOURS
DISTRACTOR = LOCK + NUM_COLOURS
AGENT = DISTRACTOR + NUM_COLOURS
NOTHING = -1  # The colour of the key in an empty hand.

_MAX_MISSES = 200  # Cells tried in vain before another level is drawn.


class State(NamedTuple):
  """State of one episode.

  Attributes:
    key: random key, from which the levels to come are drawn.
    grid: uint8 [S, S], code of each cell; the agent is not in it.
    agent: int32 [], its cell.
    held: int32 [], colour of the key in the agent's hand, -1 without one.
    frame: int32 [], steps of this episode.
    boxes: int32 [], boxes on the way to the gem when the episode began.
    step_type: int32 [], of the step that led here.
  """

  key: jax.Array
  grid: jax.Array
  agent: jax.Array
  held: jax.Array
  frame: jax.Array
  boxes: jax.Array
  step_type: jax.Array


def first_state(
    key: jax.Array,
    grid: jax.Array,
    agent: jax.Array,
    held: int = NOTHING,
) -> State:
  """Returns the state in which an episode begins."""
  return State(
      key=key,
      grid=grid,
      agent=agent,
      held=jnp.int32(held),
      frame=jnp.int32(0),
      boxes=jnp.sum((grid >= LOCK) & (grid < DISTRACTOR), dtype=jnp.int32),
      step_type=jnp.int32(interface.StepType.FIRST),
  )


class LevelSampler:
  """Draws levels; `BoxWorld` says how.

  Attributes:
    grid_size: side of the room without its wall.
    solution_length: numbers of boxes on the way to the gem.
    num_forward: numbers of distractor branches.
    branch_length: boxes of a distractor branch.
  """

  def __init__(
      self,
      grid_size: int,
      solution_length: Sequence[int],
      num_forward: Sequence[int],
      branch_length: int,
  ):
    """Constructs a LevelSampler.

    Args:
      grid_size: as in `BoxWorld`.
      solution_length: as in `BoxWorld`.
      num_forward: as in `BoxWorld`.
      branch_length: as in `BoxWorld`.

    Raises:
      ValueError: if a number is out of its range, if there are too few colours
        or if the room is too small for the objects.
    """
    for name, values, least in (
        ("solution_length", solution_length, 1),
        ("num_forward", num_forward, 0),
    ):
      if not values or min(values) < least:
        raise ValueError(
            f"{name} must list integers of at least {least}, got {values!r}"
        )
    if grid_size < 1:
      raise ValueError(f"grid_size must be at least 1, got {grid_size}")
    if branch_length < 1:
      raise ValueError(f"branch_length must be at least 1, got {branch_length}")
    if max(solution_length) > NUM_COLOURS:
      raise ValueError(
          f"solution_length must list integers up to {NUM_COLOURS}, the number "
          f"of colours, got {solution_length!r}"
      )
    # Distractors hold colours L + 1 to 19, those of one branch all different.
    spare = NUM_COLOURS - 1 - max(solution_length)
    if max(num_forward) and spare < branch_length:
      raise ValueError(
          f"solution_length up to {max(solution_length)} leaves {spare} of "
          f"{NUM_COLOURS} colours to a branch of branch_length {branch_length}"
      )
    self.grid_size = grid_size
    self.solution_length = tuple(solution_length)
    self.num_forward = tuple(num_forward)
    self.branch_length = branch_length

    side = grid_size + 2
    # Where the key of an object may be, and where the agent may begin: the
    # original leaves out some cells at the edge of the room.
    cells = np.arange(side * side, dtype=np.int32).reshape(side, side)
    self._anchors = cells[2:-2, 2:-4].reshape(-1)  # [A]
    self._cells_tried = (grid_size - 2) * (grid_size - 3)  # Some at the wall.
    self._starts = np.zeros([side, side], bool)
    self._starts[2:-2, 1:-2] = True
    rows, cols = np.divmod(self._anchors, side)
    above = abs(rows[:, None] - rows[None, :]) <= 1
    right = cols[:, None] - cols[None, :]
    # [2, A, A]: after an object at the first place, may a box be at the second?
    # The 3 x 4 cells round a box must be free of the loose key, or of a box.
    self._apart = np.stack(
        [
            ~(above & (right >= -1) & (right <= 2)),
            ~(above & (right >= -2) & (right <= 2)),
        ]
    )
    self._check_room()

  def _check_room(self):
    """Raises a ValueError if 200 of the largest levels are all given up."""
    objects = self._max_objects
    random = np.random.default_rng(0)
    for _ in range(200 if self._anchors.size else 0):
      legal, misses = np.ones(self._anchors.size, bool), 0
      for i in range(objects):
        if legal.any():
          misses += random.geometric(legal.sum() / self._cells_tried) - 1
        if misses > _MAX_MISSES or not legal.any():
          break
        legal &= self._apart[min(i, 1), random.choice(np.flatnonzero(legal))]
      else:
        return
    raise ValueError(
        f"grid_size {self.grid_size} is too small for {objects - 1} boxes and "
        "a key: enlarge it, or lower solution_length, num_forward or "
        "branch_length"
    )

  @property
  def _max_objects(self) -> int:
    return (
        1
        + max(self.solution_length)
        + max(self.num_forward) * self.branch_length
    )

  def sample(
      self, key: jax.Array, attempt: jax.Array, arguments: tuple[()]
  ) -> tuple[jax.Array, State]:
    """Tries to draw an episode: see `interface.sample_where`.

    Each attempt draws another level.
    """
    del arguments
    side = self.grid_size + 2
    key, level_key, place_key = jax.random.split(key, 3)
    # At the first attempt as it is: levels stay those of films made before.
    level_key = jnp.where(
        attempt == 0, level_key, jax.random.fold_in(level_key, attempt)
    )
    place_key = jax.random.fold_in(place_key, attempt)
    exists, content, lock = self._sample_objects(level_key)  # [N]
    chances = [self._max_objects + 1]
    uniform = jax.random.uniform(place_key, chances, jnp.float32)
    luck_key = jax.random.fold_in(place_key, 1)
    luck = jax.random.uniform(luck_key, chances, jnp.float32)

    def place(carry, inputs):
      legal, misses = carry  # [A], []
      exists, chance, luck, apart = inputs  # [], [], [], [A, A]
      anchor, count = _choose(legal, chance)
      misses += jnp.where(exists, _misses(count / self._cells_tried, luck), 0)
      legal &= apart[anchor] | ~exists
      return (legal, misses), anchor

    kind = np.minimum(np.arange(self._max_objects), 1)
    (_, misses), anchors = jax.lax.scan(
        place,
        (jnp.ones([self._anchors.size], bool), jnp.float32(0)),
        (exists, uniform[:-1], luck[:-1], jnp.asarray(self._apart[kind])),
    )
    cells = jnp.where(
        exists, jnp.asarray(self._anchors)[anchors], side * side
    )  # [N], those beyond the board are dropped.
    grid = np.full([side, side], WALL, np.uint8)
    grid[1:-1, 1:-1] = EMPTY
    grid = jnp.asarray(grid.reshape(-1))
    grid = grid.at[cells].set(content, mode="drop")
    grid = grid.at[cells[1:] + 1].set(lock[1:], mode="drop")
    free = jnp.asarray(self._starts.reshape(-1)) & (grid == EMPTY)
    agent, count = _choose(free, uniform[-1])
    misses += _misses(count / int(self._starts.sum()), luck[-1])
    state = first_state(key, grid.reshape(side, side), agent)
    return misses <= _MAX_MISSES, state

  def _sample_objects(
      self, key: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws what a level consists of.

    Returns:
      Which objects exist, bool [N], and the codes of their contents and of
      their locks, uint8 [N]; the loose key comes first and has no lock.
    """
    branches, branch_length = max(self.num_forward), self.branch_length
    chance_key, colour_key, root_key, content_key = jax.random.split(key, 4)
    chance = jax.random.uniform(chance_key, [2], jnp.float32)
    lengths = jnp.array(self.solution_length, jnp.int32)
    length = lengths[jnp.int32(chance[0] * lengths.size)]
    forward = jnp.array(self.num_forward, jnp.int32)
    forward = forward[jnp.int32(chance[1] * forward.size)]
    colours = jnp.arange(NUM_COLOURS)
    colours = jax.random.permutation(colour_key, colours)

    boxes = jnp.arange(max(self.solution_length))
    exists = [jnp.array([True]), boxes < length]
    content = [
        KEY + colours[:1],
        jnp.where(boxes == length - 1, GEM, KEY + colours[boxes + 1]),
    ]
    lock = [jnp.zeros([1], jnp.int32), LOCK + colours[boxes]]
    if branches:
      roots = jax.random.uniform(root_key, [branches, 1], jnp.float32)
      roots = jnp.int32(roots * jnp.float32(length))
      # Different colours within a branch: those with the largest scores.
      shape = [branches, NUM_COLOURS]
      scores = jax.random.uniform(content_key, shape, jnp.float32)
      index = jnp.arange(NUM_COLOURS)
      allowed = (index >= length) & (index < NUM_COLOURS - 1)
      scores = jnp.where(allowed[None, :], scores, -1.0)
      _, held = jax.lax.top_k(scores, branch_length)
      keys = colours[jnp.concatenate([roots, held], axis=1)]
      exists.append(
          jnp.repeat(jnp.arange(branches) < forward, branch_length)
      )
      content.append((KEY + keys[:, 1:]).reshape(-1))
      lock.append((DISTRACTOR + keys[:, :-1]).reshape(-1))
    return (
        jnp.concatenate(exists),
        jnp.concatenate(content).astype(jnp.uint8),
        jnp.concatenate(lock).astype(jnp.uint8),
    )


def _choose(mask: jax.Array, chance: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Chooses a true element of `mask` with a uniform number in [0, 1).

  Args:
    mask: bool [A].
    chance: float32 [].

  Returns:
    The index of the element and how many there are, int32 [].
  """
  count = jnp.cumsum(jnp.int32(mask))
  rank = jnp.int32(chance * jnp.float32(count[-1]))
  index = jnp.argmax(count > rank)
  return index.astype(jnp.int32), count[-1]


def _misses(share: jax.Array, luck: jax.Array) -> jax.Array:
  """Returns how many of random tries come before the first hit.

  Args:
    share: the probability of a hit, float32 [].
    luck: uniform in [0, 1), float32 [].

  Returns:
    A number of the geometric distribution, float32 []; infinite for none.
  """
  tries = jnp.floor(jnp.log1p(-luck) / jnp.log1p(-share))
  return jnp.where(share > 0, tries, jnp.inf)
