"""The maze of Mini Pacman, and what follows from it for each cell.

Cells are counted row by row: cell = 19 * row + column.
"""

import numpy as np

from tasks.environments import interface

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

ROWS, COLS = len(MAZE), len(MAZE[0])
WALL = np.array([[c == "#" for c in row] for row in MAZE])  # [15, 19]
FREE = np.flatnonzero(~WALL).astype(np.int32)  # [138]

# Directions: right, up, left, down; the opposite of d is (d + 2) % 4.
_MOVES = np.array([[0, 1], [-1, 0], [0, -1], [1, 0]], np.int32)
_CELL_MOVES = (_MOVES @ [COLS, 1]).astype(np.int32)

# A ghost that has not moved yet may face in two further ways. A released ghost
# draws one of four numbers, two of which are no direction of its code: they
# block the way back like left and down, but are no way ahead.
_FRESH_LEFT, _FRESH_DOWN = 4, 5
FIRST_FACINGS = np.array([0, 1, _FRESH_LEFT, _FRESH_DOWN], np.int32)
# Where a ghost that stands on pacman at a junction tries to go: ahead, but a
# fresh one down or nowhere.
AHEAD = np.array([0, 1, 2, 3, 3, -1], np.int32)


def _ghost_tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns junctions [285], exits [285, 6, 4] and turns [285, 6, 12].

  `exits` are those a ghost may choose from on a cell with a facing: one in a
  corridor, at a junction all but the way back. `turns` lists them repeatedly,
  so that a uniform index below 12 is a uniform exit.
  """
  wall = WALL.reshape(-1)
  junctions = np.zeros(wall.size, bool)
  exits = np.zeros((wall.size, 6, 4), bool)
  turns = np.zeros((wall.size, 6, 12), np.int32)
  for cell in FREE:
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
  cells = np.zeros((WALL.size, FREE.size), np.int32)
  counts = np.ones(WALL.size, np.int32)
  rows, cols = np.divmod(FREE, COLS)
  for cell in FREE:
    row, col = divmod(int(cell), COLS)
    near = (abs(rows - row + 0.5) < 5) & (abs(cols - col + 0.5) < 5)
    far = FREE[~near]
    cells[cell, : far.size] = far
    counts[cell] = far.size
  return cells, counts


def _next_cell_table() -> np.ndarray:
  """Returns the cell [285, 5] that each of pacman's actions leads to."""
  table = np.repeat(np.arange(WALL.size, dtype=np.int32)[:, None], 5, axis=1)
  for cell in FREE:
    for direction, move in enumerate(_CELL_MOVES):
      if not WALL.flat[cell + move]:
        table[cell, direction + 1] += move
  return table


JUNCTIONS, EXITS, TURNS = _ghost_tables()
SPAWN_CELLS, SPAWN_COUNTS = _spawn_tables()
WINDOWS = interface.windows(ROWS, COLS)
NEXT_CELL = _next_cell_table()
