"""What programs are made of, how they are spelled, and what they print.

Glossary of shapes:
  - n: programs.
  - N: operations of a program, at most (nesting).
  - D: columns of a number, which may be empty.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

# The operations of each task. 'all' is what the paper calls the full program.
OPERATIONS = {
    "algebra": ("+", "-", "*"),
    "control": ("if", "for"),
    "all": ("+", "-", "*", "if", "for"),
    "program": ("+", "-", "*", "if", "for"),
    "alg-ctrl": ("+", "-", "if"),
    "addition": ("+",),
    "copy": (),
    "reverse": (),
    "double": (),
}
TASKS = tuple(OPERATIONS)
_LOOPS = range(1, 10)


class Variant(NamedTuple):
  """An operation with its comparator or its number of loops.

  It makes `prefix "(" first ")" head B middle C tail D` of its first operand.
  Only a conditional has C and D.
  """

  prefix: tuple[str, ...] = ()
  head: tuple[str, ...] = ()
  middle: tuple[str, ...] = ()
  tail: tuple[str, ...] = ()
  times: int = 0  # B is added so many times.


def _variants(operation: str) -> list[Variant]:
  """Returns the variants of an operation."""
  if operation == "if":
    return [Variant((), ("if",), (sign,), ("else",)) for sign in "<>"]
  if operation == "for":
    return [
        Variant(
            ("x", "="), ("for", "[", str(k), "]", "x", "+", "="), times=k
        )
        for k in _LOOPS
    ]
  times = {"+": 1, "-": -1, "*": 0}[operation]
  return [Variant(head=(operation,), times=times)]


class Spelling(NamedTuple):
  """The texts of all variants, padded with 0, and the parentheses.

  Attributes:
    prefix: `[variants, width]`, as are the next three, each with a width of
      its own.
    head: see `Variant`.
    middle: see `Variant`.
    tail: see `Variant`.
    parentheses: opening and closing, `[2]`.
  """

  prefix: np.ndarray
  head: np.ndarray
  middle: np.ndarray
  tail: np.ndarray
  parentheses: np.ndarray


class Grammar:
  """Chains of operations: how they are drawn, spelled and computed.

  Attributes:
    num_slots: places for an operation, N or none.
    variants: the variants of all operations, and last one for an empty slot.
    choices: indices of variants, int64. A uniform choice among them makes all
      operations as likely, and then all variants of an operation.
  """

  def __init__(self, operations: Sequence[str], nesting: int):
    """Constructs a Grammar.

    Args:
      operations: what programs are made of; none for literals alone.
      nesting: operations of a program, at most.
    """
    self.num_slots = nesting if operations else 0
    by_operation = [_variants(operation) for operation in operations]
    self.variants = (*(v for vs in by_operation for v in vs), Variant())
    # 18 is a multiple of the number of variants of every operation.
    choices, first = [], 0
    for variants in by_operation:
      count = len(variants)
      choices += [first + i * count // 18 for i in range(18)]
      first += count
    self.choices = np.array(choices, np.int64)
    self._times = np.array([v.times for v in self.variants], np.int64)
    self._multiplies = np.array([v.head == ("*",) for v in self.variants])
    self._if_less = np.array([v.middle == ("<",) for v in self.variants])
    self._if_more = np.array([v.middle == (">",) for v in self.variants])

  def spell(
      self, spell_text: Callable[[Sequence[str]], list[int]], dtype: type
  ) -> Spelling:
    """Spells the texts of all variants and the parentheses.

    Args:
      spell_text: turns a text into numbers, none of which is 0.
      dtype: of the result.

    Returns:
      The texts in numbers.
    """
    tables = []
    for texts in list(zip(*self.variants, strict=True))[:4]:
      rows = [spell_text(text) for text in texts]
      width = max(map(len, rows))
      rows = [row + [0] * (width - len(row)) for row in rows]
      tables.append(np.array(rows, dtype))
    return Spelling(*tables, np.array(spell_text("()"), dtype))

  def write(
      self, spelling: Spelling, numbers: np.ndarray, variants: np.ndarray
  ) -> np.ndarray:
    """Writes programs into columns that are 0 where a program has nothing.

    Args:
      spelling: from `spell`.
      numbers: literals in the same spelling, `[n, 1 + 3 N, D]`: A, and B, C
        and D of each slot.
      variants: indices of variants, `[n, N]`, from the innermost operation.

    Returns:
      `[n, columns]`, of the spelling's type.
    """
    *tables, (opening, closing) = spelling
    first, rest = numbers[:, 0], numbers[:, 1:]  # [n, D], [n, 3 N, D]
    present = variants < len(self.variants) - 1  # [n, N]
    before, after = [], []
    for slot in range(self.num_slots):
      variant, is_there = variants[:, slot], present[:, slot, None]
      prefix, head, middle, tail = (table[variant] for table in tables)
      b, c, d = (rest[:, 3 * slot + i] for i in range(3))
      if slot:
        before.append(is_there * opening)
        after.append(is_there * closing)
      before.append(prefix)
      after += [head, b * is_there]
      if middle.shape[1]:  # Some operation has all four operands.
        has_all = middle > 0
        after += [middle, c * has_all, tail, d * has_all]
    return np.concatenate([*before[::-1], first, *after], axis=1)

  def values(
      self, literals: np.ndarray, variants: np.ndarray, lengths: np.ndarray
  ) -> np.ndarray:
    """Computes the values of programs.

    Every operation is reduced modulo 10^(L + 1). That is exact, since sums and
    products are and a nested value, which is always A, is never compared.

    Args:
      literals: int64 `[n, 1 + 3 N]`: A, and B, C and D of each slot.
      variants: indices of variants, `[n, N]`, from the innermost operation.
      lengths: digits of each program's literals, `[n]`.

    Returns:
      int64 `[n]`.
    """
    modulus = 10 ** (lengths + 1)
    value = literals[:, 0]
    for slot in range(self.num_slots):
      variant = variants[:, slot]
      b, c, d = (literals[:, 1 + 3 * slot + i] for i in range(3))
      otherwise = (self._if_less[variant] & (b >= c)) | (
          self._if_more[variant] & (b <= c)
      )
      result = value + self._times[variant] * b
      result = np.where(self._multiplies[variant], value * b, result)
      value = np.where(otherwise, d, result) % modulus
    return value
