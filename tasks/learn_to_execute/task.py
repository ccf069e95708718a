"""Learning to Execute: what does this short program print?

Glossary of shapes:
  - n: programs.
  - L: digits of a literal, at most.
  - N: operations of a program, at most (nesting).
  - T: tokens of a padded program, `num_steps`.
  - T': tokens of a padded answer, `num_steps_out`.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from tasks.learn_to_execute.curriculum import Level
from tasks.learn_to_execute.encoding import (
    PAD,
    START,
    Batch,
    Encoding,
    compact,
    write_digits,
)
from tasks.learn_to_execute.grammar import OPERATIONS, TASKS, Grammar, Spelling
from tasks.learn_to_execute.splits import (
    MAX_CHARACTERS,
    SPLITS,
    splits_of_bytes,
)

_MAX_LENGTH = 8  # Products, below 10^(2 L + 1), and choices fit 64 bits.
_MAX_LENGTH_BY_TOKEN = 6  # A vocabulary of a million.
_MAX_ATTEMPTS = 1000
_DRAWN_AT_ONCE = 4096  # More is no faster.


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
    if self._num_characters > MAX_CHARACTERS:
      raise ValueError(
          f"nesting must leave a program of length {self.length} at most "
          f"{MAX_CHARACTERS} characters, got {self.nesting}."
      )

  @property
  def operations(self) -> tuple[str, ...]:
    """What programs are made of."""
    return OPERATIONS[self.task]

  @property
  def vocabulary(self) -> tuple[str, ...]:
    """All tokens, by index; `UNKNOWN` is 0."""
    return self._encoding.vocabulary

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
    wrong = np.flatnonzero(splits_of_bytes(text) != bucket)
    for attempt in range(1, _MAX_ATTEMPTS):
      if not wrong.size:
        return self._batch(literals, variants, text, lengths)
      words = self._words([seed, bucket], examples[wrong], attempt)
      drawn = self._draw(words, lengths[wrong], nestings[wrong])
      literals[wrong], variants[wrong], text[wrong] = drawn
      wrong = wrong[splits_of_bytes(drawn[2]) != bucket]
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
        *self._encoding.encode("programs", programs, self.num_steps),
        *self._encoding.encode("answers", answers, self.num_steps_out),
    )

  def decode(self, tokens: np.ndarray, lengths: np.ndarray) -> list[str]:
    """Returns the text of tokens `[n, ...]` up to their lengths `[n]`."""
    return self._encoding.decode(tokens, lengths)

  @property
  def start_token(self) -> int:
    """Index of `START`, what a decoder is told before the first token."""
    return self._encoding.indices[START]

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
  def _encoding(self) -> Encoding:
    return Encoding(self.length, self._has_numbers)

  @functools.cached_property
  def _grammar(self) -> Grammar:
    return Grammar(self.operations, self.nesting)

  @functools.cached_property
  def _characters(self) -> Spelling:
    """The spelling in bytes."""
    return self._grammar.spell(
        lambda text: list("".join(text).encode()), np.uint8
    )

  @functools.cached_property
  def _tokens(self) -> Spelling:
    """The spelling in tokens."""
    indices = self._encoding.indices
    return self._grammar.spell(
        lambda text: [indices[token] for token in text], np.int32
    )

  def _words(
      self, key: list[int], examples: np.ndarray, attempt: int
  ) -> np.ndarray:
    """Returns each example's own random numbers, uint64 `[n, 3 + 4 N]`."""
    count = 3 + 4 * self._grammar.num_slots
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
    slots = self._grammar.num_slots
    slot_words = words[:, 3:].reshape(len(words), slots, 4)
    low = 10 ** (lengths[:, None] - 1)  # [n, 1]
    literals = np.concatenate(
        [words[:, 2:3], slot_words[..., 1:].reshape(len(words), 3 * slots)],
        axis=1,
    )
    literals = low + _choose(literals, 9 * low)
    choices = self._grammar.choices
    variants = choices[_choose(slot_words[..., 0], len(choices))]
    empty = np.arange(slots) >= nestings[:, None]  # [n, N]
    variants[empty] = len(self._grammar.variants) - 1
    digits = write_digits(literals, self.length)
    text, _ = compact(
        self._grammar.write(self._characters, digits, variants),
        -(-self._num_characters // 8) * 8,
    )
    return literals, variants, text

  def _batch(
      self,
      literals: np.ndarray,
      variants: np.ndarray,
      text: np.ndarray,
      lengths: np.ndarray,
  ) -> Batch:
    """Makes a batch of programs; the arguments are as from `_draw`."""
    encoding = self._encoding
    values = self._grammar.values(literals, variants, lengths)
    if self._has_numbers:
      numbers = encoding.index_of_number[literals][..., None]
      columns = self._grammar.write(self._tokens, numbers, variants)
      inputs, input_lengths = compact(columns, self.num_steps)
      inputs[inputs == 0] = encoding.indices[PAD]
      targets = encoding.index_of_number[values][:, None]
      return Batch(inputs, input_lengths, targets, np.ones_like(input_lengths))

    input_lengths = np.count_nonzero(text, axis=1).astype(np.int32)
    inputs = encoding.index_of_byte[text[:, : self.num_steps]]
    answers = write_digits(values, self.length + 1)
    if self.task == "reverse":
      answers = answers[:, ::-1]
    if self.task == "double":
      answers = np.concatenate([answers, answers], axis=1)
    answers, target_lengths = compact(answers, self.num_steps_out)
    targets = encoding.index_of_byte[answers]
    return Batch(inputs, input_lengths, targets, target_lengths)


def _choose(words: np.ndarray, count: np.ndarray | int) -> np.ndarray:
  """Returns uniform integers from 0 to count - 1, int64, count up to 2^27."""
  count = np.asarray(count, np.uint64)
  high = words >> np.uint64(27)  # 37 bits.
  return ((high * count) >> np.uint64(37)).astype(np.int64)
