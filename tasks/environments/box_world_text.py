"""Levels and positions of BoxWorld as text, one character a cell.

`#` is wall, `.` empty, `@` the agent, `a` to `t` are keys, `A` to `T` locks of
the same colours, and `*` is the gem. The corner at the top left shows the key
that the agent holds, or `#`.

Glossary of shapes:
  - S: side of the board, the room and a wall of one cell on each side.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tasks.environments.box_world_levels import (
    EMPTY,
    NUM_COLOURS,
    State,
    first_state,
)

_KEY_LETTERS = "abcdefghijklmnopqrst"
_LETTERS = ".#*" + _KEY_LETTERS + 2 * _KEY_LETTERS.upper()
_CODES = {letter: code for code, letter in reversed([*enumerate(_LETTERS)])}


def to_text(state: State) -> str:
  """Returns a board as text, which `parse` reads while the gem is there.

  Args:
    state: a state, not traced.

  Returns:
    S lines of S characters.
  """
  text = np.array(list(_LETTERS))[np.asarray(state.grid)]
  text.flat[int(state.agent)] = "@"
  if state.held >= 0:
    text[0, 0] = _KEY_LETTERS[int(state.held)]
  return "\n".join("".join(row) for row in text)


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

  grid = [_CODES.get(letter, EMPTY) for letter in letters]
  for cell in ends:
    grid[cell] += NUM_COLOURS
  return first_state(
      jax.random.PRNGKey(0) if key is None else key,
      jnp.array(grid, jnp.uint8).reshape(side, side),
      jnp.int32(letters.index("@")),
      _KEY_LETTERS.find(corner),
  )
