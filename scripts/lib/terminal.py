"""A board and the keyboard in a terminal."""

import sys
import termios
import tty
from typing import Any

import numpy as np

from tasks.environments import Environment


def draw(env: Environment, state: Any, colour: bool) -> str:
  """Returns what is seen of the board as text, in its colours if wanted."""
  rows = env.to_text(state).split()
  pixels = np.rint(np.asarray(env.pixels(state)) * 255).astype(int)
  height, width = len(rows), len(rows[0])
  top, left, bottom, right = env.window(state) or (0, 0, height, width)
  lines = []
  for r in range(max(top, 0), min(bottom, height)):
    line = ""
    for c in range(max(left, 0), min(right, width)):
      letter = rows[r][c]
      if colour:
        red, green, blue = pixels[r, c]
        dark = 2 * red + 5 * green + blue < 1000
        letter = (
            f"\x1b[48;2;{red};{green};{blue}m"
            f"\x1b[{97 if dark else 30}m {letter}\x1b[0m"
        )
      line += letter
    lines.append(line)
  return "\n".join(lines)


def read_key() -> str:
  """Waits for a key; the empty string at the end of the input."""
  terminal = sys.stdin.isatty()
  if terminal:
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
  try:
    key = sys.stdin.read(1)
    # An arrow key is an escape sequence of three characters.
    return key + sys.stdin.read(2) if key == "\x1b" else key
  except KeyboardInterrupt:
    return ""
  finally:
    if terminal:
      termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
