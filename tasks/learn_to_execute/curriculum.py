"""How hard the programs of training are."""

from collections import deque
from typing import NamedTuple

CURRICULA = ("baseline", "naive", "mix", "combine")


class Level(NamedTuple):
  """How hard programs are.

  Attributes:
    length: digits of every literal.
    nesting: operations of a program.
    mixed: whether both are drawn for each program, uniformly from 1 up to
      these, rather than equal to them.
  """

  length: int
  nesting: int
  mixed: bool = False


class LevelCurriculum:
  """Decides how hard the programs of training are.

  'baseline' is the largest length and nesting throughout; 'mix', the paper's,
  draws both uniformly for each program. 'naive' begins with a length and a
  nesting of 1 and raises first the length to its largest, then the nesting;
  'combine' does the same and mixes all up to there.

  These two go up when the loss on validation programs of the present level has
  come to a halt: once there are `window` losses on this level, the mean change
  from one to the next, divided by their mean, must be below a threshold. The
  original forgets to take the absolute value, so that a loss which falls fast
  passes too; it divides by nothing when asked too early; and its example
  never tells the curriculum a loss, so that training, by default on
  'combine', stays at length 1 and nesting 1.
  """

  def __init__(
      self,
      name: str,
      length: int,
      nesting: int,
      threshold: float = 0.1,
      window: int = 10,
  ):
    """Constructs a LevelCurriculum.

    Args:
      name: one of `CURRICULA`.
      length: the largest length.
      nesting: the largest nesting.
      threshold: the relative change of the loss, between two validations,
        below which it stands still.
      window: how many losses are looked at, at least 2.

    Raises:
      ValueError: if the name is unknown or the window too small.
    """
    if name not in CURRICULA:
      raise ValueError(f"curriculum must be one of {CURRICULA}, got {name!r}.")
    if window < 2:
      raise ValueError(f"window must be at least 2, got {window}.")
    self.adapts = name in ("naive", "combine")
    self._largest = Level(length, nesting, name in ("mix", "combine"))
    self._threshold = threshold
    self._losses = deque(maxlen=window)
    self.level = self._largest
    if self.adapts:
      self.level = self._largest._replace(length=1, nesting=1)

  def update(self, loss: float):
    """Takes the loss on validation programs of the present level."""
    if not self.adapts or self.level == self._largest:
      return
    self._losses.append(loss)
    if len(self._losses) < self._losses.maxlen:
      return
    change = (self._losses[-1] - self._losses[0]) / (len(self._losses) - 1)
    mean = sum(self._losses) / len(self._losses)
    if abs(change) < self._threshold * mean:
      self._losses.clear()
      length, nesting, mixed = self.level
      if length < self._largest.length:
        self.level = Level(length + 1, nesting, mixed)
      else:
        self.level = Level(length, nesting + 1, mixed)
