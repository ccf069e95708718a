"""Learning to Execute: what does this short program print?

Glossary of shapes:
  - n: programs.
  - L: digits of a literal, at most.
  - N: operations of a program, at most (nesting).
  - T: tokens of a padded program, `num_steps`.
  - T': tokens of a padded answer, `num_steps_out`.
"""

from collections import deque
from collections.abc import Iterator, Sequence
import dataclasses
import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
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
CURRICULA = ("baseline", "naive", "mix", "combine")
SPLITS = ("train", "valid", "test")

PAD, START, UNKNOWN = ".", "~", "_unk_"

_MAX_LENGTH = 8  # Products, below 10^(2 L + 1), and choices fit 64 bits.
_MAX_LENGTH_BY_TOKEN = 6  # A vocabulary of a million.
_WORDS = ("_null_", "_eos_", "|")
_KEYWORDS = ("if", "for", "else", "range")
_SYMBOLS = "+-*=:/() x|<>[]~!."
_LOOPS = range(1, 10)
_MAX_ATTEMPTS = 1000
_DRAWN_AT_ONCE = 4096  # More is no faster.


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


class Batch(NamedTuple):
  """Programs and their answers as tokens, padded with `PAD`.

  Attributes:
    inputs: programs, int32 `[n, T]`.
    input_lengths: their lengths, int32 `[n]`.
    targets: answers, int32 `[n, T']`.
    target_lengths: their lengths, int32 `[n]`.
  """

  inputs: np.ndarray
  input_lengths: np.ndarray
  targets: np.ndarray
  target_lengths: np.ndarray


class _Variant(NamedTuple):
  """An operation with its comparator or its number of loops.

  It makes `prefix "(" first ")" head B middle C tail D` of its first operand.
  Only a conditional has C and D.
  """

  prefix: tuple[str, ...] = ()
  head: tuple[str, ...] = ()
  middle: tuple[str, ...] = ()
  tail: tuple[str, ...] = ()
  times: int = 0  # B is added so many times.


def _variants(operation: str) -> list[_Variant]:
  """Returns the variants of an operation."""
  if operation == "if":
    return [_Variant((), ("if",), (sign,), ("else",)) for sign in "<>"]
  if operation == "for":
    return [
        _Variant(
            ("x", "="), ("for", "[", str(k), "]", "x", "+", "="), times=k
        )
        for k in _LOOPS
    ]
  times = {"+": 1, "-": -1, "*": 0}[operation]
  return [_Variant(head=(operation,), times=times)]


@dataclasses.dataclass(frozen=True)
class LearnToExecute:
  """The programs of section 4.1 of Santoro et al. (2018).

  They are those of `sonnet/examples/learn_to_execute.py` of Sonnet v1. With
  literals A to D of L digits, the first of which is not 0, an operation is one
  of::

    A+B    A-B    A*B    AifB<CelseD    AifB>CelseD    x=Afor[k]x+=B

  where the last is A + k B, for k from 1 to 9. Nesting makes a chain: the next
  operation has the last one, in parentheses, for its A. The answer is the
  value modulo 10^(L + 1), which is never negative. 'copy', 'reverse' and
  'double' have a literal alone for a program, and its digits, those in reverse
  order, or those twice for the answer.

  The paper's names of the tasks are understood beside Sonnet's: 'program' is
  'all'. (The example of 'control' in figure 6 of the paper has an addition in
  it, so that 'alg-ctrl' may be what was used there.)

  A program belongs to 'train', 'valid' or 'test' by a hash of its text, 14, 1
  and 1 in 16 of them; the original tests on what may have been trained on.

  Attributes:
    task: one of `TASKS`.
    length: the largest L, 1 to 8; 5 in Table 1 of the paper.
    nesting: the largest N, at least 1; 2 in Table 1 of the paper. 1 for a task
      without operations. Programs of more than 2,040 characters are refused.
    by_token: whether numbers and keywords are tokens, rather than characters.
      A number of more than `length` digits is then `UNKNOWN`, as in the
      original. Tasks without operations are by character whatever this says.
  """

  task: str
  length: int = 5
  nesting: int = 1
  by_token: bool = False

  def __post_init__(self):
    """Raises a ValueError for a setting out of its range."""
    if self.task not in TASKS:
      raise ValueError(f"task must be one of {TASKS}, got {self.task!r}.")
    most = _MAX_LENGTH_BY_TOKEN if self._has_numbers else _MAX_LENGTH
    if not 1 <= self.length <= most:
      kind = " by token" if self._has_numbers else ""
      raise ValueError(
          f"length must be from 1 to {most}{kind}, got {self.length}."
      )
    if self.nesting < 1:
      raise ValueError(f"nesting must be at least 1, got {self.nesting}.")
    if self.nesting > 1 and not self.operations:
      raise ValueError(
          f"nesting must be 1 for task {self.task!r}, which has no "
          f"operations, got {self.nesting}."
      )
    if self._num_characters > _MAX_CHARACTERS:
      raise ValueError(
          f"nesting must leave a program of length {self.length} at most "
          f"{_MAX_CHARACTERS} characters, got {self.nesting}."
      )

  @property
  def operations(self) -> tuple[str, ...]:
    """What programs are made of."""
    return OPERATIONS[self.task]

  @functools.cached_property
  def vocabulary(self) -> tuple[str, ...]:
    """All tokens, by index; `UNKNOWN` is 0."""
    digits = self.length if self._has_numbers else 1
    tokens = {str(number) for number in range(10**digits)}
    tokens.update(_SYMBOLS, _KEYWORDS, "".join(_KEYWORDS))
    return (UNKNOWN, *_WORDS, *sorted(tokens - set(_WORDS)))

  @property
  def num_steps(self) -> int:
    """T, as in the original."""
    if self._has_numbers:
      return 11 + 12 * (self.nesting - 1)
    return self._num_characters

  @property
  def num_steps_out(self) -> int:
    """T', as in the original."""
    if self.task == "double":
      return 2 * self.length + 1
    if not self.operations:
      return self.length + 1
    return 1 if self._has_numbers else 2 * self.length

  def sample(
      self,
      seed: int,
      examples: np.ndarray,
      level: Level | None = None,
      split: str = "train",
  ) -> Batch:
    """Draws programs, each a pure function of its number and the other three.

    Numbers are drawn by a counter-based generator whose counter is that of the
    example. A program of another split is drawn anew, at the same length and
    nesting, from the example's own next numbers.

    Args:
      seed: 0 or more.
      examples: numbers of the examples, ascending, int64 `[n]`: example i of
        update t is number t B + i.
      level: how hard; None for the largest length and nesting.
      split: one of `SPLITS`.

    Returns:
      A batch of them.

    Raises:
      ValueError: if the seed or the examples are not such numbers, the level
        is beyond this task's, the split is unknown, or there is no program of
        this level in it.
    """
    level = level or Level(self.length, self.nesting)
    if not (
        1 <= level.length <= self.length and 1 <= level.nesting <= self.nesting
    ):
      raise ValueError(
          f"level must have a length from 1 to {self.length} and a nesting "
          f"from 1 to {self.nesting}, got {level}."
      )
    if split not in SPLITS:
      raise ValueError(f"split must be one of {SPLITS}, got {split!r}.")
    if seed < 0:
      raise ValueError(f"seed must be at least 0, got {seed}.")
    examples = np.asarray(examples)
    if (
        examples.ndim != 1
        or not examples.size
        or not np.issubdtype(examples.dtype, np.integer)
        or examples[0] < 0
        or np.any(examples[1:] <= examples[:-1])
    ):
      raise ValueError(
          "examples must be numbers, at least one, from 0, ascending, got "
          f"{examples}."
      )
    examples = examples.astype(np.int64)
    bucket = SPLITS.index(split)
    words = self._words([seed, bucket], examples, 0)
    lengths, nestings = self._levels(words, level)
    literals, variants, text = self._draw(words, lengths, nestings)
    wrong = np.flatnonzero(_splits(text) != bucket)
    for attempt in range(1, _MAX_ATTEMPTS):
      if not wrong.size:
        return self._batch(literals, variants, text, lengths)
      words = self._words([seed, bucket], examples[wrong], attempt)
      drawn = self._draw(words, lengths[wrong], nestings[wrong])
      literals[wrong], variants[wrong], text[wrong] = drawn
      wrong = wrong[_splits(drawn[2]) != bucket]
    raise ValueError(
        f"split {split!r} must have a program of task {self.task!r}, length "
        f"{lengths[wrong[0]]} and nesting {nestings[wrong[0]]}, and has none."
    )

  def batches(
      self,
      seed: int,
      step: int,
      indices: np.ndarray,
      batch_size: int,
      level: Level | None = None,
  ) -> Iterator[Batch]:
    """Yields this process's share of the batch of each update, without end.

    Args:
      seed: 0 or more.
      step: updates done before the first.
      indices: this process's examples among all B, `[b]`, ascending.
      batch_size: B.
      level: how hard; None for the largest length and nesting.

    Yields:
      Batches of b training programs.
    """
    size = len(indices)
    at_once = max(1, _DRAWN_AT_ONCE // size)
    while True:
      steps = np.arange(step, step + at_once, dtype=np.int64)
      examples = steps[:, None] * batch_size + indices
      drawn = self.sample(seed, examples.ravel(), level)
      for i in range(0, at_once * size, size):
        yield Batch(*(x[i : i + size] for x in drawn))
      step += at_once

  def encode(self, programs: Sequence[str], answers: Sequence[str]) -> Batch:
    """Returns programs and answers, `[n]` strings each, as a batch.

    Args:
      programs: programs.
      answers: their answers.

    Returns:
      A batch of them. What is no token is `UNKNOWN`.

    Raises:
      ValueError: if one is too long.
    """
    return Batch(
        *self._encode("programs", programs, self.num_steps),
        *self._encode("answers", answers, self.num_steps_out),
    )

  def decode(self, tokens: np.ndarray, lengths: np.ndarray) -> list[str]:
    """Returns the text of tokens `[n, ...]` up to their lengths `[n]`."""
    return [
        "".join(self.vocabulary[token] for token in row[:length])
        for row, length in zip(tokens, lengths, strict=True)
    ]

  @property
  def start_token(self) -> int:
    """Index of `START`, what a decoder is told before the first token."""
    return self._indices[START]

  def shift(self, targets: jax.Array) -> jax.Array:
    """Returns what a decoder is told of targets `[T', n]`: each a step late."""
    start = jnp.full_like(targets[:1], self.start_token)
    return jnp.concatenate([start, targets[:-1]])

  @property
  def _has_numbers(self) -> bool:
    """Whether numbers are tokens."""
    return self.by_token and bool(self.operations)

  @property
  def _num_characters(self) -> int:
    """Characters of a padded program."""
    if not self.operations:
      return self.length + 1
    outer = 3 * self.length + 12  # Parentheses, and all but A.
    return 4 * self.length + 10 + outer * (self.nesting - 1)

  @functools.cached_property
  def _indices(self) -> dict[str, int]:
    return {token: i for i, token in enumerate(self.vocabulary)}

  @functools.cached_property
  def _index_of_byte(self) -> np.ndarray:
    """Vocabulary indices of characters, `[256]`; of 0, that of `PAD`."""
    table = np.zeros(256, np.int32)
    for token, i in self._indices.items():
      if len(token) == 1:
        table[ord(token)] = i
    table[0] = self._indices[PAD]
    return table

  @functools.cached_property
  def _index_of_number(self) -> np.ndarray:
    """Vocabulary indices of numbers, `[10^(L + 1)]`, some `UNKNOWN`."""
    table = np.zeros(10 ** (self.length + 1), np.int32)
    for number in range(10**self.length):
      table[number] = self._indices[str(number)]
    return table

  @property
  def _num_slots(self) -> int:
    """Places for an operation, N or none."""
    return self.nesting if self.operations else 0

  @functools.cached_property
  def _variants(self) -> tuple[_Variant, ...]:
    """The variants of all operations, and last one for an empty slot."""
    return (*(v for o in self.operations for v in _variants(o)), _Variant())

  @functools.cached_property
  def _variant_choices(self) -> np.ndarray:
    """Variants, as often as makes all operations, and then theirs, as likely.

    18 is a multiple of the number of variants of every operation.
    """
    choices, first = [], 0
    for operation in self.operations:
      count = len(_variants(operation))
      choices += [first + i * count // 18 for i in range(18)]
      first += count
    return np.array(choices, np.int64)

  @functools.cached_property
  def _meaning(self) -> dict[str, np.ndarray]:
    """What each variant does, arrays `[variants]`."""
    return {
        "times": np.array([v.times for v in self._variants], np.int64),
        "multiplies": np.array([v.head == ("*",) for v in self._variants]),
        "if_less": np.array([v.middle == ("<",) for v in self._variants]),
        "if_more": np.array([v.middle == (">",) for v in self._variants]),
    }

  @functools.cached_property
  def _texts_by_character(self) -> list[np.ndarray]:
    return self._spell(lambda text: list("".join(text).encode()), np.uint8)

  @functools.cached_property
  def _texts_by_token(self) -> list[np.ndarray]:
    return self._spell(
        lambda text: [self._indices[token] for token in text], np.int32
    )

  def _spell(self, spell, dtype) -> list[np.ndarray]:
    """Spells the four texts of all variants, `[variants, width]` each."""
    tables = []
    for texts in list(zip(*self._variants, strict=True))[:4]:
      rows = [spell(text) for text in texts]
      width = max(map(len, rows))
      rows = [row + [0] * (width - len(row)) for row in rows]
      tables.append(np.array(rows, dtype))
    return tables

  def _words(
      self, key: list[int], examples: np.ndarray, attempt: int
  ) -> np.ndarray:
    """Returns each example's own random numbers, uint64 `[n, 3 + 4 N]`."""
    count = 3 + 4 * self._num_slots
    blocks = -(-count // 4)  # The generator makes four numbers a count.
    generator = np.random.Philox(key=key, counter=[0, attempt, 0, 0])
    starts = np.flatnonzero(np.diff(examples, prepend=-2) != 1)
    stops = [*starts[1:], examples.size]
    words, position = [], 0
    for start, stop in zip(starts, stops, strict=True):
      first, size = int(examples[start]), int(stop - start)
      generator.advance(blocks * (first - position))
      words.append(generator.random_raw(4 * blocks * size))
      position = first + size
    return np.concatenate(words).reshape(-1, 4 * blocks)[:, :count]

  def _levels(
      self, words: np.ndarray, level: Level
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns the length and the nesting of each example, int64 `[n]`."""
    if level.mixed:
      return (
          1 + _choose(words[:, 0], level.length),
          1 + _choose(words[:, 1], level.nesting),
      )
    return (
        np.full(len(words), level.length, np.int64),
        np.full(len(words), level.nesting, np.int64),
    )

  def _draw(
      self, words: np.ndarray, lengths: np.ndarray, nestings: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Turns random numbers into programs.

    Args:
      words: random numbers, uint64 `[n, 3 + 4 N]`.
      lengths: digits of each program's literals, `[n]`.
      nestings: operations of each program, `[n]`.

    Returns:
      Literals, int64 `[n, 1 + 3 N]`: A, and B, C and D of each slot; variants
      `[n, N]`, from the innermost operation; and the text, in bytes, uint8
      `[n, T]` with T rounded up to whole words of 8, padded with 0.
    """
    slots = self._num_slots
    slot_words = words[:, 3:].reshape(len(words), slots, 4)
    low = 10 ** (lengths[:, None] - 1)  # [n, 1]
    literals = np.concatenate(
        [words[:, 2:3], slot_words[..., 1:].reshape(len(words), 3 * slots)],
        axis=1,
    )
    literals = low + _choose(literals, 9 * low)
    choices = self._variant_choices
    variants = choices[_choose(slot_words[..., 0], len(choices))]
    empty = np.arange(slots) >= nestings[:, None]  # [n, N]
    variants[empty] = len(self._variants) - 1
    text, _ = _compact(
        self._columns(literals, variants, lengths),
        -(-self._num_characters // 8) * 8,
    )
    return literals, variants, text

  def _columns(
      self,
      literals: np.ndarray,
      variants: np.ndarray,
      lengths: np.ndarray,
      by_token: bool = False,
  ) -> np.ndarray:
    """Writes programs into columns that are 0 where a program has nothing.

    Args:
      literals: as from `_draw`.
      variants: as from `_draw`.
      lengths: as there.
      by_token: whether a column is a token's index, rather than a byte.

    Returns:
      `[n, columns]`, int32 or uint8.
    """
    if by_token:
      tables, parentheses = self._texts_by_token, self._encode_one("()")
      numbers = self._index_of_number[literals][..., None]
    else:
      tables, parentheses = self._texts_by_character, b"()"
      numbers = _digits(literals, self.length)
    first, rest = numbers[:, 0], numbers[:, 1:]  # [n, 1, D] -> [n, D]
    opening = np.array(parentheses[0], numbers.dtype)
    closing = np.array(parentheses[1], numbers.dtype)
    present = variants < len(self._variants) - 1  # [n, N]
    before, after = [], []
    for slot in range(self._num_slots):
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

  def _values(
      self, literals: np.ndarray, variants: np.ndarray, lengths: np.ndarray
  ) -> np.ndarray:
    """Returns the values of programs, int64 `[n]`.

    Every operation is reduced modulo 10^(L + 1). That is exact, since sums and
    products are and a nested value, which is always A, is never compared.
    """
    modulus = 10 ** (lengths + 1)
    meaning = self._meaning
    value = literals[:, 0]
    for slot in range(self._num_slots):
      variant = variants[:, slot]
      b, c, d = (literals[:, 1 + 3 * slot + i] for i in range(3))
      product = meaning["multiplies"][variant]
      otherwise = (meaning["if_less"][variant] & (b >= c)) | (
          meaning["if_more"][variant] & (b <= c)
      )
      result = value + meaning["times"][variant] * b
      result = np.where(product, value * b, result)
      value = np.where(otherwise, d, result) % modulus
    return value

  def _batch(
      self,
      literals: np.ndarray,
      variants: np.ndarray,
      text: np.ndarray,
      lengths: np.ndarray,
  ) -> Batch:
    """Makes a batch of programs; the arguments are as from `_draw`."""
    if self._has_numbers:
      columns = self._columns(literals, variants, lengths, by_token=True)
      inputs, input_lengths = _compact(columns, self.num_steps)
      inputs[inputs == 0] = self._indices[PAD]
    else:
      input_lengths = np.count_nonzero(text, axis=1).astype(np.int32)
      inputs = self._index_of_byte[text[:, : self.num_steps]]

    values = self._values(literals, variants, lengths)
    if self._has_numbers:
      targets = self._index_of_number[values][:, None]
      return Batch(inputs, input_lengths, targets, np.ones_like(input_lengths))
    answers = _digits(values, self.length + 1)
    if self.task == "reverse":
      answers = answers[:, ::-1]
    if self.task == "double":
      answers = np.concatenate([answers, answers], axis=1)
    answers, target_lengths = _compact(answers, self.num_steps_out)
    targets = self._index_of_byte[answers]
    return Batch(inputs, input_lengths, targets, target_lengths)

  def _encode(
      self, name: str, texts: Sequence[str], width: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns padded tokens `[n, width]` and lengths `[n]`."""
    rows = [self._encode_one(text) for text in texts]
    lengths = np.array([len(row) for row in rows], np.int32)
    if np.any(lengths > width):
      raise ValueError(
          f"{name} must have at most {width} tokens each, got "
          f"{texts[np.argmax(lengths)]!r} with {lengths.max()}."
      )
    pad = self._indices[PAD]
    rows = [row + [pad] * (width - len(row)) for row in rows]
    return np.array(rows, np.int32).reshape(-1, width), lengths

  def _encode_one(self, text: str) -> list[int]:
    tokens = _TOKEN.findall(text) if self._has_numbers else text
    return [self._indices.get(token, 0) for token in tokens]


class Curriculum:
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
    """Constructs a Curriculum.

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


def score(
    logits: jax.Array, targets: jax.Array, lengths: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Compares a decoder's logits with the answers.

  Args:
    logits: `[T', n, V]`.
    targets: tokens of the answers, `[T', n]`.
    lengths: their lengths, `[n]`; what is past them does not count.

  Returns:
    The loss, as normalised in the original: cross-entropy summed over the
    tokens of answers, divided by all T' n places, padding included. For each
    answer the number of tokens that are right, float32 `[n]`, and whether all
    are, 1.0 or 0.0.
  """
  steps = jnp.arange(targets.shape[0], dtype=lengths.dtype)
  counts = steps[:, None] < lengths[None]  # [T', n]
  log_probs = jax.nn.log_softmax(logits)
  picked = jnp.take_along_axis(log_probs, targets[..., None], axis=2)[..., 0]
  loss = -jnp.mean(jnp.where(counts, picked, jnp.zeros_like(picked)))
  guesses = jnp.argmax(logits, axis=2).astype(targets.dtype)
  correct = jnp.sum(counts & (guesses == targets), axis=0, dtype=lengths.dtype)
  solved = correct == lengths
  return loss, correct.astype(jnp.float32), solved.astype(jnp.float32)


_TOKEN = re.compile(r"[0-9]+|[a-z]+|.")
# Odd, from a stream that is the same for any number of them.
_HASH_FACTORS = np.random.Philox(key=2018).random_raw(256) | np.uint64(1)
_MAX_CHARACTERS = 8 * (len(_HASH_FACTORS) - 1)  # The last mixes the sum.


def split_of(program: str) -> str:
  """Returns which of `SPLITS` a program belongs to.

  Args:
    program: its text.

  Raises:
    ValueError: if it is longer than any that is drawn.
  """
  data = program.encode()
  if len(data) > _MAX_CHARACTERS:
    raise ValueError(
        f"program must be of at most {_MAX_CHARACTERS:,} characters, got "
        f"{len(data):,}."
    )
  data += bytes(-len(data) % 8)
  return SPLITS[_splits(np.frombuffer(data, np.uint8)[None])[0]]


def _splits(text: np.ndarray) -> np.ndarray:
  """Returns indices into `SPLITS` of bytes `[n, T]` padded with 0, T % 8 = 0.

  Words of 0 add nothing, so that the width of the padding does not matter.
  """
  words = np.ascontiguousarray(text).view("<u8")  # [n, T / 8]
  digest = words @ _HASH_FACTORS[: words.shape[1]]  # Modulo 2^64.
  digest = (digest ^ (digest >> np.uint64(32))) * _HASH_FACTORS[-1]
  bucket = digest >> np.uint64(60)  # One of 16.
  return np.where(bucket == 0, 2, np.where(bucket == 1, 1, 0))


def _choose(words: np.ndarray, count: np.ndarray | int) -> np.ndarray:
  """Returns uniform integers from 0 to count - 1, int64, count up to 2^27."""
  count = np.asarray(count, np.uint64)
  high = words >> np.uint64(27)  # 37 bits.
  return ((high * count) >> np.uint64(37)).astype(np.int64)


def _digits(values: np.ndarray, width: int) -> np.ndarray:
  """Writes numbers in decimal, leading zeros as 0 and not as a character.

  Args:
    values: numbers of at most `width` digits, `[...]`.
    width: number of columns.

  Returns:
    ASCII, uint8 `[..., width]`.
  """
  values = values.astype(np.int32 if width <= 9 else np.int64)
  columns = np.empty((*values.shape, width), np.uint8)
  for i in range(width - 1, -1, -1):
    rest = values // 10
    columns[..., i] = values - 10 * rest + ord("0")
    if i < width - 1:  # The last digit is there even for 0.
      columns[..., i] *= values > 0
    values = rest
  return columns


def _compact(columns: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
  """Moves what is not 0 to the left, `[n, columns]` to `[n, width]`.

  Args:
    columns: at most `width` of each row are not 0.
    width: columns of the result, padded with 0 on the right.

  Returns:
    The result, and how many are not 0, int32 `[n]`.
  """
  there = columns != 0
  lengths = np.count_nonzero(there, axis=1).astype(np.int32)
  packed = np.zeros((len(columns), width), columns.dtype)
  packed[np.arange(width, dtype=np.int32) < lengths[:, None]] = columns[there]
  return packed, lengths
LevelCurriculum = Curriculum
def evaluate(score_batch, test, size):
  count = len(test.inputs)
  losses, correct, solved = [], [], []
  for first in range(0, count, size):
    part = Batch(*(x[first : first + size] for x in test))
    found = jax.device_get(score_batch(part))
    losses.append(found[0] * len(part.inputs))
    correct.append(found[1])
    solved.append(found[2])
  correct = np.concatenate(correct, dtype=np.float64)
  characters = test.target_lengths.astype(np.float64)
  accuracy = correct.sum() / characters.sum()
  errors = correct - accuracy * characters
  solved = np.concatenate(solved, dtype=np.float64)
  return {
      "eval_loss": float(np.sum(losses)) / count,
      "eval_character_accuracy": float(accuracy),
      "eval_character_accuracy_standard_error": float(
          np.sqrt(np.sum(errors**2)) / characters.sum()
      ),
      "eval_answer_accuracy": float(solved.mean()),
      "eval_answer_accuracy_standard_error": float(
          solved.std() / np.sqrt(count)
      ),
  }
