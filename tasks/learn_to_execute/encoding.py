"""Programs and answers as tokens.

Glossary of shapes:
  - n: programs.
  - L: digits of a literal, at most.
  - T: tokens of a padded program.
  - T': tokens of a padded answer.
"""

from collections.abc import Sequence
import functools
import re
from typing import NamedTuple

import numpy as np

PAD, START, UNKNOWN = ".", "~", "_unk_"

_WORDS = ("_null_", "_eos_", "|")
_KEYWORDS = ("if", "for", "else", "range")
_SYMBOLS = "+-*=:/() x|<>[]~!."
_TOKEN = re.compile(r"[0-9]+|[a-z]+|.")


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


class Encoding:
  """Numbers the tokens of programs and answers.

  Attributes:
    vocabulary: all tokens, by index; `UNKNOWN` is 0.
    indices: from tokens to their indices.
  """

  def __init__(self, length: int, by_token: bool):
    """Constructs an Encoding.

    Args:
      length: L.
      by_token: whether numbers and keywords are tokens, rather than
        characters. Numbers of more than L digits are then unknown.
    """
    self._length = length
    self._by_token = by_token
    digits = length if by_token else 1
    tokens = {str(number) for number in range(10**digits)}
    tokens.update(_SYMBOLS, _KEYWORDS, "".join(_KEYWORDS))
    self.vocabulary = (UNKNOWN, *_WORDS, *sorted(tokens - set(_WORDS)))
    self.indices = {token: i for i, token in enumerate(self.vocabulary)}

  @functools.cached_property
  def index_of_byte(self) -> np.ndarray:
    """Indices of characters, int32 `[256]`; of 0, that of `PAD`."""
    table = np.zeros(256, np.int32)
    for token, i in self.indices.items():
      if len(token) == 1:
        table[ord(token)] = i
    table[0] = self.indices[PAD]
    return table

  @functools.cached_property
  def index_of_number(self) -> np.ndarray:
    """Indices of numbers, int32 `[10^(L + 1)]`, some of them `UNKNOWN`."""
    table = np.zeros(10 ** (self._length + 1), np.int32)
    for number in range(10**self._length):
      table[number] = self.indices[str(number)]
    return table

  def encode(
      self, name: str, texts: Sequence[str], width: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Encodes texts.

    Args:
      name: what the texts are, for errors.
      texts: n texts.
      width: tokens to pad each to.

    Returns:
      Padded tokens, int32 `[n, width]`, and lengths, int32 `[n]`.

    Raises:
      ValueError: if one is too long.
    """
    rows = [self._encode_one(text) for text in texts]
    lengths = np.array([len(row) for row in rows], np.int32)
    if np.any(lengths > width):
      raise ValueError(
          f"{name} must have at most {width} tokens each, got "
          f"{texts[np.argmax(lengths)]!r} with {lengths.max()}."
      )
    pad = self.indices[PAD]
    rows = [row + [pad] * (width - len(row)) for row in rows]
    return np.array(rows, np.int32).reshape(-1, width), lengths

  def _encode_one(self, text: str) -> list[int]:
    tokens = _TOKEN.findall(text) if self._by_token else text
    return [self.indices.get(token, 0) for token in tokens]

  def decode(self, tokens: np.ndarray, lengths: np.ndarray) -> list[str]:
    """Returns the text of tokens `[n, ...]` up to their lengths `[n]`."""
    return [
        "".join(self.vocabulary[token] for token in row[:length])
        for row, length in zip(tokens, lengths, strict=True)
    ]


def write_digits(values: np.ndarray, width: int) -> np.ndarray:
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


def compact(columns: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
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
