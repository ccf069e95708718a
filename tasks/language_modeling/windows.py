"""The words of a split, and the windows that are read from them.

Glossary of shapes:
  - N: words of a split.
  - T: steps of a window.
  - B: streams.
  - b: streams of one process or device.
"""

from collections.abc import Iterator, Sequence
import functools
from typing import Any

import numpy as np

RECORD_SIZE = 2**14  # Words read at a time. Another number is another VERSION.
_RECORDS_KEPT = 2**12  # 256 MB.
PADDING = -1


class Split:
  """The words of one split, read from disk as they are asked for."""

  def __init__(self, records: Sequence[Any], num_tokens: int):
    """Constructs a Split.

    Args:
      records: `{"tokens": [n]}`, all but the last of one and the same size.
      num_tokens: N.
    """
    self._num_tokens = num_tokens
    self._record = functools.lru_cache(_RECORDS_KEPT)(
        lambda i: records[i]["tokens"]
    )

  def __len__(self) -> int:
    """Returns N."""
    return self._num_tokens

  def read(self, start: int, stop: int) -> np.ndarray:
    """Returns the words from one place to another, int32."""
    first, last = start // RECORD_SIZE, -(-stop // RECORD_SIZE)
    parts = [self._record(i) for i in range(first, last)]
    whole = np.concatenate([np.zeros(0, np.int32), *parts])
    return whole[start - first * RECORD_SIZE : stop - first * RECORD_SIZE]


class TrainingWindows:
  """B streams that read the training text on and on, as if it were a ring.

  Stream i starts at i B-ths of the text. Each window begins where the one
  before it ended, so that a network's state can be carried on, and after as
  many words as the text has, every stream has read all of it. A window is a
  pure function of the update's number.
  """

  def __init__(self, split: Split, num_streams: int, window: int):
    """Constructs TrainingWindows.

    Args:
      split: the text.
      num_streams: B.
      window: T.

    Raises:
      ValueError: if the text is shorter than one batch of windows.
    """
    if len(split) < num_streams * window:
      raise ValueError(
          f"the training text has {len(split):,} words, and a batch of "
          f"{num_streams:,} streams of {window:,} words needs "
          f"{num_streams * window:,}."
      )
    self._split = split
    self._num_streams = num_streams
    self._window = window

  def __call__(self, step: int, indices: Sequence[int]) -> np.ndarray:
    """Returns windows with the word that comes after each.

    Args:
      step: how many updates came before.
      indices: which streams.

    Returns:
      Words, int32 `[b, T + 1]`: inputs, and a step later the targets.
    """
    length = len(self._split)
    return np.stack(
        [
            self._read(
                (int(i) * length // self._num_streams + step * self._window)
                % length
            )
            for i in indices
        ]
    )

  def _read(self, start: int) -> np.ndarray:
    """Returns T + 1 words from a place on, the first after the last."""
    stop = start + self._window + 1
    words = self._split.read(start, min(stop, len(self._split)))
    rest = stop - len(self._split)
    if rest > 0:
      words = np.concatenate([words, self._split.read(0, rest)])
    return words


def evaluation_windows(
    split: Split,
    starts: Sequence[int],
    length: int,
    window: int,
    eos: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields windows of streams, so that each word is a target once.

  The input before a target is the word before it in the text, and `<eos>`
  before the first.

  Args:
    split: the text.
    starts: the first target of each of B streams; one at N is empty.
    length: targets of each stream, as far as the text goes.
    window: T, unless streams are shorter.
    eos: the number of `<eos>`.

  Yields:
    Inputs and targets, int32 `[T, B]`, of one and the same shape: at the end of
    a stream there are targets -1, for none.
  """
  window = min(window, length)
  for offset in range(0, length, window):
    inputs = np.zeros([window, len(starts)], np.int32)
    targets = np.full([window, len(starts)], PADDING, np.int32)
    for i, start in enumerate(starts):
      first = min(start + offset, len(split))
      stop = min(first + window, start + length, len(split))
      words = split.read(max(first - 1, 0), stop)
      if first == 0:
        words = np.concatenate([np.array([eos], np.int32), words])
      size = max(stop - first, 0)
      inputs[:size, i] = words[:-1][:size]
      targets[:size, i] = words[1:][:size]
    yield inputs, targets
