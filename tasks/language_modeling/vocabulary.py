"""The words that a language model tells apart."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

EOS = "<eos>"
UNK = "<unk>"


class Vocabulary:
  """Words in order of how often they are in the training text, most first.

  Attributes:
    words: all of them, V.
    counts: how often each is in the training text, int64 `[V]`. `<unk>` stands
      for all that are not among the words.
    unk: the number of `<unk>`.
    eos: the number of `<eos>`.
  """

  def __init__(self, words: Sequence[str], counts: Sequence[int]):
    """Constructs a Vocabulary.

    Args:
      words: in order, `<unk>` and `<eos>` among them.
      counts: how often each is in the training text.
    """
    self.words = list(words)
    self.counts = np.array(counts, np.int64)
    self._ids = {word: i for i, word in enumerate(self.words)}
    self.unk = self._ids[UNK]
    self.eos = self._ids[EOS]

  def __len__(self) -> int:
    """Returns V."""
    return len(self.words)

  def __eq__(self, other: object) -> bool:
    """Returns whether words and counts are the same."""
    return isinstance(other, Vocabulary) and self.rows() == other.rows()

  def rows(self) -> list[tuple[str, int]]:
    """Returns words with their counts."""
    return list(zip(self.words, self.counts.tolist(), strict=True))

  def encode(self, words: Iterable[str]) -> list[int]:
    """Returns the numbers of words."""
    return [self._ids.get(word, self.unk) for word in words]

  def decode(self, tokens: Iterable[int]) -> str:
    """Returns a text, words parted by spaces and lines by `<eos>`."""
    lines = [[]]
    for token in tokens:
      if token == self.eos:
        lines.append([])
      else:
        lines[-1].append(self.words[token])
    return "\n".join(" ".join(line) for line in lines)

  def dump(self) -> str:
    """Returns what `parse` reads: a line a word, with its count."""
    return "".join(f"{word} {count}\n" for word, count in self.rows())

  @classmethod
  def parse(cls, text: str) -> "Vocabulary":
    """Reads what `dump` wrote."""
    pairs = [line.rsplit(" ", 1) for line in text.split("\n")[:-1]]
    return cls([word for word, _ in pairs], [int(n) for _, n in pairs])

  @classmethod
  def count(
      cls, counts: Counter[str], vocab_size: int = 0, min_count: int = 1
  ) -> "Vocabulary":
    """Makes the vocabulary of a text.

    Args:
      counts: how often each word is in it, `<eos>` among them.
      vocab_size: V at most, the least frequent words left out; 0 for all.
      min_count: how often a word must be in the text.

    Returns:
      A vocabulary with `<unk>`, even if nothing is left out.

    Raises:
      ValueError: if one of the limits is out of range.
    """
    check_limits(vocab_size, min_count)
    by_count = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    kept = [
        (word, count)
        for word, count in by_count
        if count >= min_count and word not in (UNK, EOS)
    ]
    kept = kept[: vocab_size - 2] if vocab_size else kept
    left_out = counts.total() - counts[EOS] - sum(n for _, n in kept)
    rows = [*kept, (UNK, left_out), (EOS, counts[EOS])]
    rows.sort(key=lambda item: (-item[1], item[0]))
    return cls(*zip(*rows, strict=True))


def check_limits(vocab_size: int, min_count: int):
  if vocab_size != 0 and vocab_size < 3:
    raise ValueError(
        "vocab_size must be 0, for all words, or at least 3, got "
        f"{vocab_size}."
    )
  if min_count < 1:
    raise ValueError(f"min_count must be at least 1, got {min_count}.")
