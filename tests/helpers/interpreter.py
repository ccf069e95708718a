"""Runs the programs of Learning to Execute, as a reader of them would.

It shares nothing with the generator: it parses the text with a grammar of its
own and computes with Python's unbounded integers.
"""

import re
from typing import NamedTuple

# What each task may be made of, as the paper and Sonnet name them.
ALLOWED = {
    "algebra": {"+", "-", "*"},
    "control": {"if", "for"},
    "all": {"+", "-", "*", "if", "for"},
    "program": {"+", "-", "*", "if", "for"},
    "alg-ctrl": {"+", "-", "if"},
    "addition": {"+"},
}
_MEMORIZED = {
    "copy": lambda text: text,
    "reverse": lambda text: text[::-1],
    "double": lambda text: text + text,
}
_LITERAL = "[1-9][0-9]*"
_FOR = re.compile(rf"x=(.+)for\[([1-9])\]x\+=({_LITERAL})")
_IF = re.compile(rf"(.+)if({_LITERAL})([<>])({_LITERAL})else({_LITERAL})")
_SUM = re.compile(rf"(.+)([-+*])({_LITERAL})")


class Run(NamedTuple):
  """What there is to know of a program.

  Attributes:
    answer: what it prints.
    length: digits of its literals, which are all the same.
    operations: from the innermost to the outermost.
    literals: all of them.
  """

  answer: str
  length: int
  operations: list[str]
  literals: list[str]


def run(task: str, program: str) -> Run:
  """Runs a program; raises ValueError if it is not one of this task."""
  if task in _MEMORIZED:
    if not re.fullmatch(_LITERAL, program):
      raise ValueError(f"{program!r} is no literal")
    return Run(_MEMORIZED[task](program), len(program), [], [program])
  operations, literals = [], []
  value = _operation(program, operations, literals)
  lengths = {len(literal) for literal in literals}
  if len(lengths) != 1:
    raise ValueError(f"{program!r} has literals of lengths {lengths}")
  for operation in operations:
    if operation.rstrip("<>123456789") not in ALLOWED[task]:
      raise ValueError(f"{program!r} has {operation!r}, which {task} has not")
  (length,) = lengths
  return Run(str(value % 10 ** (length + 1)), length, operations, literals)


def _operation(text, operations, literals):
  """Returns the value of an operation."""
  if match := _FOR.fullmatch(text):
    first, count, b = match.groups()
    x = _operand(first, operations, literals)
    for _ in range(int(count)):
      x += int(b)
    operations.append(f"for{count}")
    literals.append(b)
    return x
  if match := _IF.fullmatch(text):
    first, b, sign, c, d = match.groups()
    a = _operand(first, operations, literals)
    operations.append(f"if{sign}")
    literals += [b, c, d]
    holds = int(b) < int(c) if sign == "<" else int(b) > int(c)
    return a if holds else int(d)
  if match := _SUM.fullmatch(text):
    first, sign, b = match.groups()
    a = _operand(first, operations, literals)
    operations.append(sign)
    literals.append(b)
    return {"+": a + int(b), "-": a - int(b), "*": a * int(b)}[sign]
  raise ValueError(f"{text!r} is no operation")


def _operand(text, operations, literals):
  """Returns the value of a literal or of an operation in parentheses."""
  if re.fullmatch(_LITERAL, text):
    literals.append(text)
    return int(text)
  if text[0] == "(" and text[-1] == ")":
    return _operation(text[1:-1], operations, literals)
  raise ValueError(f"{text!r} is no operand")
