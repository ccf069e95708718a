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
  - N: objects, loose key first, then the boxes on the way to the gem, then the
    distractors; as many as a level has at most.
  - A: cells where the key of an object can be placed.
"""

from collections.abc import Callable, Sequence
import colorsys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tasks.environments import interface

ACTIONS = ("north", "south", "west", "east")
NUM_COLOURS = 20

# Codes of a cell. A key has its colour added, and so have the two kinds of
# lock: those on the way to the gem, and distractors.
_EMPTY, _WALL, _GEM, _KEY = 0, 1, 2, 3
LOCK = _KEY + NUM_COLOURS
DISTRACTOR = LOCK + NUM_COLOURS
_AGENT = DISTRACTOR + NUM_COLOURS

_KEY_LETTERS = "abcdefghijklmnopqrst"
_LETTERS = ".#*" + _KEY_LETTERS + 2 * _KEY_LETTERS.upper()
_CODES = {letter: code for code, letter in reversed([*enumerate(_LETTERS)])}

_MAX_MISSES = 200  # Cells tried in vain before another level is drawn.
_NOTHING = -1  # The colour of the key in an empty hand.


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
    if max_steps < 0:
      raise ValueError(f"max_steps must be at least 0, got {max_steps}")
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
    self.max_steps = max_steps
    self.view = view
    self._sample_where = sample_where
    side = grid_size + 2
    self.observation_shape = (
        (5, 5, 6) if view == "viewport" else (side, side, 3)
    )

    self._windows = interface.windows(side, side)
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

  def reset(self, key: jax.Array) -> tuple[State, interface.TimeStep]:
    """See `Environment.reset`."""
    side = self.grid_size + 2
    blank = _first_state(
        key, jnp.zeros([side, side], jnp.uint8), jnp.int32(0)
    )
    state = self._sample_where(
        jnp.bool_(True), self._sample_episode, key, (), blank
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
    holds = state.held != _NOTHING
    opens_box = holds & (code == LOCK + state.held)
    opens_distractor = holds & (code == DISTRACTOR + state.held)
    opens = opens_box | opens_distractor
    takes_gem = (code == _GEM) & ~closed
    takes_key = (code >= _KEY) & (code < LOCK) & ~closed
    enters = (code == _EMPTY) | opens | takes_gem | takes_key

    frame = state.frame + 1
    ended = takes_gem | opens_distractor
    if self.max_steps:
      ended |= frame > self.max_steps
    ended &= ~restart
    here = jnp.arange(grid.size) == target
    grid = jnp.where(here & enters, jnp.uint8(_EMPTY), grid)
    held = jnp.where(opens, _NOTHING, state.held)
    state = State(
        key=state.key,
        grid=grid.reshape(side, side),
        agent=jnp.where(enters, target, state.agent),
        held=jnp.where(takes_key, code - _KEY, held),
        frame=frame,
        boxes=state.boxes,
        step_type=jnp.where(
            ended,
            jnp.int32(interface.StepType.LAST),
            jnp.int32(interface.StepType.MID),
        ),
    )
    state = self._sample_where(
        restart, self._sample_episode, state.key, (), state
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
    figures = {}
    for name, ended in ends.items():
      ended = jnp.float32(ended)
      figures[name] = (ended, jnp.bool_(True))
      for length in self.solution_length:
        figures[f"{name}_{length}"] = (ended, state.boxes == length)
    return figures

  def _sample_episode(
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
    grid = np.full([side, side], _WALL, np.uint8)
    grid[1:-1, 1:-1] = _EMPTY
    grid = jnp.asarray(grid.reshape(-1))
    grid = grid.at[cells].set(content, mode="drop")
    grid = grid.at[cells[1:] + 1].set(lock[1:], mode="drop")
    free = jnp.asarray(self._starts.reshape(-1)) & (grid == _EMPTY)
    agent, count = _choose(free, uniform[-1])
    misses += _misses(count / int(self._starts.sum()), luck[-1])
    state = _first_state(key, grid.reshape(side, side), agent)
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
        _KEY + colours[:1],
        jnp.where(boxes == length - 1, _GEM, _KEY + colours[boxes + 1]),
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
      content.append((_KEY + keys[:, 1:]).reshape(-1))
      lock.append((DISTRACTOR + keys[:, :-1]).reshape(-1))
    return (
        jnp.concatenate(exists),
        jnp.concatenate(content).astype(jnp.uint8),
        jnp.concatenate(lock).astype(jnp.uint8),
    )

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
    return jnp.where(agent, _AGENT, jnp.int32(codes))

  def window(self, state: State) -> tuple[int, int, int, int] | None:
    """See `Environment.window`."""
    if self.view == "full":
      return None
    row, col = divmod(int(state.agent), self.grid_size + 2)
    return row - 2, col - 2, row + 3, col + 3

  def to_text(self, state: State) -> str:
    """Returns the board as text, which `parse` reads while the gem is there.

    Args:
      state: a state, not traced.

    Returns:
      S lines of S characters; see the module.
    """
    text = np.array(list(_LETTERS))[np.asarray(state.grid)]
    text.flat[int(state.agent)] = "@"
    if state.held >= 0:
      text[0, 0] = _KEY_LETTERS[int(state.held)]
    return "\n".join("".join(row) for row in text)

  @staticmethod
  def parse(
      text: str,
      key: jax.Array | None = None,
      distractors: Sequence[tuple[int, int]] | None = None,
  ) -> State:
    """Reads a level, or a position, from text.

    Args:
      text: lines of text, see the module; blank space round it is ignored.
      key: random key for the episodes that follow; `jax.random.PRNGKey(0)` if
        None.
      distractors: (row, column) of the locks of distractor boxes. By default
        all but those on the way back from the gem: its own lock, locks of boxes
        that hold the key to that one, and so on.

    Returns:
      The first state of an episode that begins so. `step` goes on from it, and
      `observe` shows it.

    Raises:
      ValueError: if the text is not a walled square of known characters with
        one agent, one gem and a key or the gem to the left of every lock; or
        if a distractor is no lock.
    """
    rows = text.split()
    side = len(rows)
    if side < 3 or any(len(row) != side for row in rows):
      raise ValueError(
          "text must be a square of at least 3 x 3 characters, got lines of "
          f"lengths {[len(row) for row in rows]}"
      )
    corner, rows[0] = rows[0][0], "#" + rows[0][1:]
    if corner != "#" and corner not in _KEY_LETTERS:
      raise ValueError(
          f"text must have '#' or a key at the top left, got {corner!r}"
      )
    letters = "".join(rows)
    unknown = sorted(set(letters) - {*_CODES, "@"})
    if unknown:
      raise ValueError(f"text must not hold the characters {unknown}")
    for name, letter in (("agent", "@"), ("gem", "*")):
      if letters.count(letter) != 1:
        raise ValueError(
            f"text must hold one {name} {letter!r}, "
            f"got {letters.count(letter)}"
        )
    ring = rows[0] + rows[-1] + "".join(row[0] + row[-1] for row in rows)
    if set(ring) != {"#"}:
      raise ValueError("text must have walls '#' all round")

    boxes = {}  # From the cell of a lock to the content.
    for cell, letter in enumerate(letters):
      if letter.isupper():
        content = letters[cell - 1]
        if content != "*" and not content.islower():
          raise ValueError(
              "text must have a key or the gem to the left of the lock "
              f"{letter!r} in row {cell // side}, column {cell % side}; "
              f"got {content!r}"
          )
        boxes[cell] = content
    if distractors is None:
      way, useful = set(), {"*"}
      while locks := {c for c in boxes if boxes[c] in useful} - way:
        way |= locks
        useful |= {letters[cell].lower() for cell in locks}
      ends = boxes.keys() - way
    else:
      ends = {row * side + col for row, col in distractors}
      if not ends <= boxes.keys():
        raise ValueError(
            f"distractors must be cells of locks, got {distractors!r}"
        )

    grid = [_CODES.get(letter, _EMPTY) for letter in letters]
    for cell in ends:
      grid[cell] += NUM_COLOURS
    return _first_state(
        jax.random.PRNGKey(0) if key is None else key,
        jnp.array(grid, jnp.uint8).reshape(side, side),
        jnp.int32(letters.index("@")),
        _KEY_LETTERS.find(corner),
    )


def _first_state(
    key: jax.Array,
    grid: jax.Array,
    agent: jax.Array,
    held: int = _NOTHING,
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


def _held_code(state: State) -> jax.Array:
  """Returns the code that stands for the hand: a key, or black."""
  return jnp.where(state.held >= 0, _KEY + state.held, _WALL)


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
