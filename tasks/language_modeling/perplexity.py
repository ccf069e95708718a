"""How well a language model predicts a text.

Glossary of shapes:
  - T: steps of a window.
  - B: streams.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from tasks.language_modeling.vocabulary import Vocabulary
from tasks.language_modeling.windows import PADDING, Split, evaluation_windows


class Perplexity:
  """Adds up log-probabilities: of all words, and by how frequent they are.

  The parts are those of Table 3 of the paper, by how often a word is in the
  training text: more than 10,000 times, 1,000 to 10,000 times, less.
  """

  _PARTS = ("under_1k", "1k_to_10k", "over_10k")

  def __init__(self, vocabulary: Vocabulary):
    """Constructs a Perplexity.

    Args:
      vocabulary: of the text.
    """
    self._parts = np.searchsorted([1_000, 10_001], vocabulary.counts, "right")
    self._sums = np.zeros(len(self._PARTS))
    self._counts = np.zeros(len(self._PARTS), np.int64)

  def add(self, targets: np.ndarray, log_probs: np.ndarray):
    """Adds targets of `evaluation_windows` and their log-probabilities.

    Args:
      targets: `[T, B]`, -1 for none.
      log_probs: `[T, B]`.
    """
    there = targets != PADDING
    parts = self._parts[targets[there]]
    size = len(self._PARTS)
    self._counts += np.bincount(parts, minlength=size)
    self._sums += np.bincount(
        parts, log_probs[there].astype(np.float64), minlength=size
    )

  def total(self) -> float:
    """Returns the perplexity of all words."""
    return float(np.exp(-self._sums.sum() / self._counts.sum()))

  def parts(self) -> dict[str, float]:
    """Returns the perplexity of each part that has words."""
    return {
        name: float(np.exp(-total / count))
        for name, total, count in zip(
            self._PARTS, self._sums, self._counts, strict=True
        )
        if count
    }


def perplexity(
    log_probs: Callable[..., tuple[jax.Array, Any]],
    initial_state: Any,
    split: Split,
    vocabulary: Vocabulary,
    length: int,
    window: int,
) -> Perplexity:
  """Predicts each word of a split once, in streams of a fixed length.

  Args:
    log_probs: `(inputs, targets, state) -> (log_probs, state)`, where inputs,
      targets and log-probabilities are `[T, B]`.
    initial_state: the state in which each stream begins. The leading axis of
      its arrays is B, the number of streams that are read at a time.
    split: the text.
    vocabulary: its words.
    length: words of a stream.
    window: T, unless streams are shorter.

  Returns:
    The log-probabilities, added up.

  Raises:
    ValueError: if the arrays of `initial_state` differ in their leading axis.
  """
  found = Perplexity(vocabulary)
  sizes = {len(x) for x in jax.tree.leaves(initial_state)}
  if len(sizes) != 1:
    raise ValueError(
        "initial_state must have arrays with one and the same leading axis, "
        f"got sizes {sorted(sizes)}."
    )
  (batch_size,) = sizes
  for first in range(0, len(split), batch_size * length):
    starts = first + length * np.arange(batch_size)
    state = initial_state
    for inputs, targets in evaluation_windows(
        split, starts, length, window, vocabulary.eos
    ):
      values, state = log_probs(inputs, np.maximum(targets, 0), state)
      found.add(targets, np.asarray(values))
  return found
