"""Shortest solutions of BoxWorld levels, without a line of the environment."""

import collections

MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))  # North, south, west, east.


def solve(text):
  """Finds the shortest way to the gem by breadth-first search.

  It does not know which boxes are distractors: opening one never helps.

  Returns:
    A list of actions, or None if there is no way.
  """
  rows = text.split()
  side = len(rows)
  steps = [side * row + col for row, col in MOVES]
  board = "".join(rows)
  start = (board.index("@"), "", board.replace("@", "."))
  origins = {start: None}
  queue = collections.deque([start])
  while queue:
    position = queue.popleft()
    agent, held, board = position
    for action, move in enumerate(steps):
      cell = agent + move
      what = board[cell]
      if what == ".":
        after = (cell, held, board)
      elif what.isupper():
        if what.lower() != held:
          continue
        after = (cell, "", board[:cell] + "." + board[cell + 1 :])
      elif what == "#" or board[cell + 1].isupper():
        continue
      elif what == "*":
        actions = [action]
        while origins[position] is not None:
          position, action = origins[position]
          actions.append(action)
        return actions[::-1]
      else:
        after = (cell, what, board[:cell] + "." + board[cell + 1 :])
      if after not in origins:
        origins[after] = (position, action)
        queue.append(after)
  return None
