"""Text as streams of words, for language models.

A corpus is tokenised once, by a TFDS builder that needs no TensorFlow, into
files that are then read a piece at a time, so that it may be larger than
memory:

  - `wikitext2` and `wikitext103` (Merity et al. 2016), the released files;
  - `gutenberg`: a folder of books. The paper's own split of Project Gutenberg
    is not published, so figures on it are ours;
  - `gigaword`: LDC's English Gigaword, fifth edition (LDC2011T07);
  - `text`: any folder of .txt files;
  - `python`: the language reference that Python carries for `help()`. It needs
    no files and differs from one version of Python to the next.

Each line ends with `<eos>`, which is counted and predicted as any word is. In
books and news a line is a paragraph, however it is wrapped.

Glossary of shapes:
  - N: words of a split.
  - T: steps of a window.
  - B: streams.
  - b: streams of one process or device.
  - V: words of the vocabulary.
"""

import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import fcntl
import functools
import gzip
import hashlib
import html
import itertools
import os
import pathlib
import re
import shutil
import sys
from typing import Any, NamedTuple
import zlib

import jax
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_builder import ShardBasedBuilder

EOS = "<eos>"
UNK = "<unk>"
SPLITS = ("train", "valid", "test")

_RECORD = 2**14  # Words read at a time. Another number is another VERSION.
_RECORDS_KEPT = 2**12  # 256 MB.
_SHARD = 2**10  # Records of a file, which are in memory while it is written.
_PADDING = -1

# Words in all of train, in valid and in test, `<eos>` counted, and V.
_PUBLISHED = {
    "wikitext2": ((2_088_628, 217_646, 245_569), 33_278),
    "wikitext103": ((103_227_021, 217_646, 245_569), 267_735),
}


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
    _check_limits(vocab_size, min_count)
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
    first, last = start // _RECORD, -(-stop // _RECORD)
    parts = [self._record(i) for i in range(first, last)]
    whole = np.concatenate([np.zeros(0, np.int32), *parts])
    return whole[start - first * _RECORD : stop - first * _RECORD]


class Corpus(NamedTuple):
  """A tokenised text.

  Attributes:
    vocabulary: its words.
    splits: by name.
    digests: what tells the tokens of each split from others.
  """

  vocabulary: Vocabulary
  splits: dict[str, Split]
  digests: dict[str, str]


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
    targets = np.full([window, len(starts)], _PADDING, np.int32)
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
    """Adds what `evaluation_windows` yields, `[T, B]`, and its figures."""
    there = targets != _PADDING
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


class _Source(NamedTuple):
  """Where a corpus comes from.

  Attributes:
    identity: changes when the text does.
    lines: the lines of a split, as words without `<eos>`.
  """

  identity: str
  lines: Callable[[str], Iterator[list[str]]]


class LanguageModeling(ShardBasedBuilder):
  """Tokenises a corpus into records of words, in order.

  TFDS writes shard by shard, as they come. (Its `GeneratorBasedBuilder` first
  gathers a whole split, and needs TensorFlow for one of more than a gigabyte.)
  """

  VERSION = tfds.core.Version("1.2.0")

  def __init__(
      self,
      corpus: str,
      source: _Source,
      data_dir: str | None,
      vocab_size: int,
      min_count: int,
  ):
    """Constructs a LanguageModeling.

    Args:
      corpus: its name.
      source: its text.
      data_dir: as in `load`.
      vocab_size: as in `load`.
      min_count: as in `load`.
    """
    identity = f"{source.identity} {vocab_size} {min_count}"
    self.name = f"{corpus}_{_digest(identity)[:12]}"
    self._corpus = corpus
    self._source = source
    self._limits = (vocab_size, min_count)
    with self._damage_named():
      super().__init__(data_dir=data_dir, file_format="array_record")

  def prepare(self):
    """Tokenises the corpus, unless that has been done or another does it."""
    if not self.data_path.exists():
      with self._lock():
        if not self.data_path.exists():
          for left in self.data_path.parent.glob("incomplete.*"):
            shutil.rmtree(left)  # By a run that was killed.
          self._counted = self._count()  # Finds wrong files before it writes.
          with contextlib.redirect_stdout(sys.stderr):
            self.download_and_prepare()
    if not self.info.initialized:  # Another was faster.
      with self._damage_named():
        self.info.read_from_directory(self.data_path)

  def read(self) -> Corpus:
    """Returns the tokenised corpus."""
    with self._damage_named():
      metadata = self.info.metadata
      splits = {
          name: Split(self.as_data_source(split=name), metadata["tokens"][name])
          for name in SPLITS
      }
      for split in splits.values():
        for start in range(0, len(split), _RECORD * _SHARD):
          split.read(start, start + 1)  # Opens each file of it.
      vocabulary = Vocabulary.parse(metadata["vocabulary"])
      return Corpus(vocabulary, splits, metadata["digests"])

  @contextlib.contextmanager
  def _damage_named(self) -> Iterator[None]:
    """Says what to do about tokenised files that cannot be read."""
    try:
      yield
    except MemoryError:
      raise
    except Exception as error:  # Of many kinds: JSON, protobuf, array_record.
      raise ValueError(
          f"data_dir: {self.data_path} cannot be read ({error}). If it is "
          "damaged, remove that folder, and the corpus is tokenised anew."
      ) from error

  @contextlib.contextmanager
  def _lock(self) -> Iterator[None]:
    """Waits until nobody else tokenises this corpus here."""
    folder = self.data_path.parents[1]
    try:
      folder.mkdir(parents=True, exist_ok=True)
      file = (folder / f".{self.name}.lock").open("w")
    except OSError as error:
      raise ValueError(
          f"data_dir must be a directory that can be written to, got {folder}: "
          f"{error.strerror}."
      ) from error
    with file:
      fcntl.flock(file, fcntl.LOCK_EX)
      yield

  def _info(self) -> tfds.core.DatasetInfo:
    tokens = tfds.features.Tensor(shape=(None,), dtype=np.int32)
    return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict({"tokens": tokens}),
        disable_shuffling=True,  # The order of the text is kept.
        metadata=tfds.core.MetadataDict(),
    )

  def _shard_iterators_per_split(
      self, dl_manager
  ) -> dict[str, list[Callable[[], Iterator]]]:
    del dl_manager
    vocabulary, tokens = self._counted
    self.info.metadata["tokens"] = tokens
    self.info.metadata["vocabulary"] = vocabulary.dump()
    self.info.metadata["digests"] = {}

    def shards(split):
      records = self._records(split, vocabulary)
      shard = functools.partial(itertools.islice, records, _SHARD)
      return [shard] * -(-tokens[split] // (_RECORD * _SHARD))

    return {split: shards(split) for split in SPLITS}

  def _count(self) -> tuple[Vocabulary, dict[str, int]]:
    """Reads all of the corpus; returns how many words each split has too."""
    counts = {
        split: Counter(itertools.chain.from_iterable(self._lines(split)))
        for split in SPLITS
    }
    tokens = {split: counts[split].total() for split in SPLITS}
    _check_counts(self._corpus, tokens, len(counts["train"]))
    return Vocabulary.count(counts["train"], *self._limits), tokens

  def _records(
      self, split: str, vocabulary: Vocabulary
  ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    digest = hashlib.blake2b(digest_size=16)
    for number, tokens in enumerate(self._pieces(split, vocabulary)):
      digest.update(tokens)
      # Of all so far: TFDS may not come back after the last.
      self.info.metadata["digests"][split] = digest.hexdigest()
      yield number, {"tokens": tokens}

  def _pieces(
      self, split: str, vocabulary: Vocabulary
  ) -> Iterator[np.ndarray]:
    left = array.array("i")
    for line in self._lines(split):
      left.extend(vocabulary.encode(line))
      while len(left) >= _RECORD:
        yield np.array(left[:_RECORD], np.int32)
        left = left[_RECORD:]
    if left:
      yield np.array(left, np.int32)

  def _lines(self, split: str) -> Iterator[list[str]]:
    for line in self._source.lines(split):
      yield [*line, EOS]


def load(
    corpus: str,
    manual_dir: str | None = None,
    data_dir: str | None = None,
    vocab_size: int = 0,
    min_count: int = 1,
) -> Corpus:
  """Opens a corpus, after tokenising it if that has not been done.

  Args:
    corpus: one of `CORPORA`.
    manual_dir: the folder with its files.
    data_dir: where tokenised corpora are kept; None for TFDS's own place. The
      same files, vocabulary limits and folder are not tokenised twice.
    vocab_size: as in `Vocabulary.count`.
    min_count: as in `Vocabulary.count`.

  Returns:
    The corpus.

  Raises:
    ValueError: if the files are not there or not what they should be, or what
      was tokenised before is damaged.
  """
  if corpus not in CORPORA:
    raise ValueError(f"corpus must be one of {list(CORPORA)}, got {corpus!r}.")
  _check_limits(vocab_size, min_count)
  open_source, _, files = CORPORA[corpus]
  folder = None
  if manual_dir and not files:
    raise ValueError(
        f"manual_dir={manual_dir} is of no use: corpus {corpus!r} needs no "
        "files. The corpus of a folder of one's own is 'text'."
    )
  if files:
    folder = pathlib.Path(manual_dir or "")
    if not manual_dir or not folder.is_dir():
      raise ValueError(
          f"manual_dir must be a folder, got {manual_dir!r}. {corpus} needs "
          f"{files}."
      )
  try:
    source = open_source(folder)
    builder = LanguageModeling(corpus, source, data_dir, vocab_size, min_count)
    builder.prepare()
  except _WrongFilesError as error:
    raise ValueError(
        f"manual_dir={manual_dir}: {error} {corpus} needs {files}."
    ) from error
  return builder.read()


def tokenize(corpus: str, text: str) -> list[str]:
  """Cuts text into words as those of a corpus are, without `<eos>`."""
  return CORPORA[corpus].tokenize(text)


class _WrongFilesError(Exception):
  """A folder does not hold the corpus."""


def _open_wikitext(folder: pathlib.Path) -> _Source:
  paths = _named(folder, {split: f"wiki.{split}.tokens" for split in SPLITS})

  def lines(split):
    return map(str.split, _read(paths[split]))

  return _Source(_identity(folder, paths.values()), lines)


def _open_text(folder: pathlib.Path) -> _Source:
  names = {split: f"{split}.txt" for split in SPLITS}
  if any((folder / name).exists() for name in names.values()):
    named = _named(folder, names)

    def lines(split):
      return _words_of_lines(_read(named[split]))

    return _Source(_identity(folder, named.values()), lines)
  paths = _find(folder, ".txt")
  if not paths:
    raise _WrongFilesError("there is no .txt file in it.")

  def lines_of_parts(split):
    for path in paths:
      part = _part(functools.partial(_read, path), split)
      yield from _words_of_lines(part)

  return _Source(_identity(folder, paths), lines_of_parts)


def _open_python(folder: None) -> _Source:
  del folder
  try:
    from pydoc_data.topics import topics
  except ImportError as error:
    raise ValueError(
        "corpus 'python' is pydoc_data.topics of Python's standard library, "
        "which this Python lacks."
    ) from error
  texts, seen = [], set()
  for name in sorted(topics):
    texts.append([])
    for paragraph in re.split(r"\n\s*\n", topics[name]):
      words = tuple(paragraph.split())
      if words not in seen:  # Topics repeat whole parts of others.
        texts[-1] += paragraph.splitlines()
      seen.add(words)

  def lines(split):
    for text in texts:
      yield from _words_of_lines(_part(functools.partial(iter, text), split))

  return _Source(_digest(repr(texts)), lines)


def _open_gutenberg(folder: pathlib.Path) -> _Source:
  """One book in 160, at least one, is for validation, and as many for test."""
  paths = sorted(
      _find(folder, ".txt"),
      key=lambda path: _digest(path.relative_to(folder).as_posix()),
  )

  @functools.cache
  def books() -> dict[str, list[pathlib.Path]]:
    """Copies of a book, of which one might be for test, are left out."""
    found = {}
    for path in paths:
      words = " ".join(_book(_read(path))).split()
      found.setdefault(_digest(" ".join(words)), path)
    distinct = list(found.values())
    if len(distinct) < 3:
      raise _WrongFilesError(
          f"there are {len(distinct)} different books (.txt) in it."
      )
    size = max(1, len(distinct) // 160)
    return {
        "valid": distinct[:size],
        "test": distinct[size : 2 * size],
        "train": distinct[2 * size :],
    }

  def lines(split):
    for path in books()[split]:
      yield from _paragraphs(_book(_read(path)))

  return _Source(_identity(folder, paths), lines)


def _open_gigaword(folder: pathlib.Path) -> _Source:
  """The last month is for test, the one before it for validation."""
  months = {}
  for path in _find(folder, ".gz"):
    found = re.fullmatch(r"\w+_(\d{6})\.gz", path.name)
    if found:
      months.setdefault(found[1], []).append(path)
  if len(months) < 3:
    raise _WrongFilesError(
        "there are files <source>_<year><month>.gz of "
        f"{len(months)} months in it."
    )
  *train, valid, test = (months[month] for month in sorted(months))
  paths = {"train": sum(train, []), "valid": valid, "test": test}

  def lines(split):
    for path in paths[split]:
      yield from _paragraphs(_stories(_read(path)))

  return _Source(_identity(folder, sum(months.values(), [])), lines)


def _find(folder: pathlib.Path, suffix: str) -> list[pathlib.Path]:
  """Returns the files in a folder and those below, links followed, sorted."""

  def fail(error):
    raise _WrongFilesError(f"{error.filename}: {error.strerror}.") from error

  paths, seen = [], set()
  for here, folders, files in os.walk(folder, onerror=fail, followlinks=True):
    real = os.path.realpath(here)
    if real in seen:  # A link led back.
      folders.clear()
      continue
    seen.add(real)
    folders.sort()
    for name in files:
      path = pathlib.Path(here, name)
      if path.suffix == suffix:
        if not path.is_file():
          raise _WrongFilesError(f"{path} is a link to no file.")
        paths.append(path)
  return sorted(paths)


def _named(
    folder: pathlib.Path, names: dict[str, str]
) -> dict[str, pathlib.Path]:
  """Returns the paths of files, which must be there."""
  paths = {split: folder / name for split, name in names.items()}
  missing = [path.name for path in paths.values() if not path.is_file()]
  if missing:
    raise _WrongFilesError(f"{', '.join(missing)} not found.")
  return paths


def _identity(folder: pathlib.Path, paths: Iterable[pathlib.Path]) -> str:
  """Tells files from others and from themselves before a change."""
  facts = [
      (
          path.relative_to(folder).as_posix(),
          path.stat().st_size,
          path.stat().st_mtime_ns,
      )
      for path in paths
  ]
  return _digest(repr(sorted(facts)))


def _digest(text: str) -> str:
  return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _read(path: pathlib.Path) -> Iterator[str]:
  """Yields the lines of a file."""
  opened = gzip.open if path.suffix == ".gz" else open
  empty = True
  try:
    with opened(path, "rt", encoding="utf-8-sig", newline="\n") as file:
      for line in file:
        empty = False
        yield line
  except UnicodeDecodeError as error:
    raise _WrongFilesError(f"{path.name} is not UTF-8: {error}.") from error
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise _WrongFilesError(
        f"{path.name} is not a whole gzip file: {error}."
    ) from error
  except OSError as error:
    raise _WrongFilesError(f"{path.name}: {error.strerror}.") from error
  if empty:
    raise _WrongFilesError(f"{path.name} is empty.")


def _part(lines: Callable[[], Iterator[str]], split: str) -> Iterator[str]:
  """Yields a split of a text: the last tenth is for validation and test."""
  stop = sum(1 for _ in lines())
  size = stop // 20
  first, last = {
      "train": (0, stop - 2 * size),
      "valid": (stop - 2 * size, stop - size),
      "test": (stop - size, stop),
  }[split]
  return itertools.islice(lines(), first, last)


def _check_limits(vocab_size: int, min_count: int):
  if vocab_size != 0 and vocab_size < 3:
    raise ValueError(
        "vocab_size must be 0, for all words, or at least 3, got "
        f"{vocab_size}."
    )
  if min_count < 1:
    raise ValueError(f"min_count must be at least 1, got {min_count}.")


def _words(text: str) -> list[str]:
  """Cuts text into words and punctuation marks; `<unk>` and `<eos>` stay."""
  return re.findall(r"<unk>|<eos>|\w+(?:['’]\w+)*|[^\w\s]", text)


def _words_of_lines(lines: Iterable[str]) -> Iterator[list[str]]:
  """Yields the words of lines that have any."""
  return filter(None, map(_words, lines))


def _paragraphs(lines: Iterable[str]) -> Iterator[list[str]]:
  """Yields the words of paragraphs, which blank lines part."""
  for blank, group in itertools.groupby(lines, lambda line: not line.strip()):
    if not blank:
      yield _words(" ".join(group))


def _book(lines: Iterable[str]) -> Iterator[str]:
  """Leaves out what Project Gutenberg puts before and after a book."""
  book = list(lines)
  marks = {"START": -1, "END": len(book)}
  for i, line in enumerate(book):
    found = re.match(r"\*\*\* ?(START|END) OF (THE|THIS) PROJECT", line)
    if found:
      marks[found[1]] = i
  yield from book[marks["START"] + 1 : marks["END"]]


def _stories(lines: Iterable[str]) -> Iterator[str]:
  """Yields the paragraphs of LDC's stories, a blank line after each."""
  in_story = in_paragraph = False
  for line in lines:
    tag = line.strip()
    if tag.startswith("<DOC "):
      in_story = 'type="story"' in tag
    elif tag == "<P>":
      in_paragraph = in_story
    elif tag == "</P>":
      in_paragraph = False
      yield ""
    elif in_paragraph:
      yield html.unescape(line)


def _check_counts(corpus: str, tokens: dict[str, int], num_types: int):
  """Raises an error unless the text is what it is said to be."""
  for split, count in tokens.items():
    if not count:
      raise _WrongFilesError(
          f"the {split} split has no words; .txt files that are not named by "
          "split give some to each if they have at least 20 lines."
      )
  if corpus not in _PUBLISHED:
    return
  found = (tuple(tokens[split] for split in SPLITS), num_types)
  if found != _PUBLISHED[corpus]:

    def described(figures):
      counts, types = figures
      return f"{' / '.join(f'{n:,}' for n in counts)} words, {types:,} types"

    others = [name for name, known in _PUBLISHED.items() if known == found]
    raise _WrongFilesError(
        f"the files have {described(found)}"
        + "".join(f", which is {name}" for name in others)
        + f"; {corpus} has {described(_PUBLISHED[corpus])}."
    )


def _wikitext_files(name: str) -> str:
  return (
      "wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens, the files of "
      f"the release {name}-v1.zip (its first address, research.metamind.io, is "
      "no more; https://wikitext.smerity.com is said to have it)"
  )


class _Kind(NamedTuple):
  """A corpus that can be asked for.

  Attributes:
    open: finds its text in a folder.
    tokenize: cuts a line of it into words.
    files: what must be in the folder; empty if it needs none.
  """

  open: Callable[[pathlib.Path | None], _Source]
  tokenize: Callable[[str], list[str]]
  files: str


CORPORA = {
    "python": _Kind(_open_python, _words, ""),
    "text": _Kind(
        _open_text,
        _words,
        "train.txt, valid.txt and test.txt in UTF-8, or any .txt files, whose "
        "last lines then are for validation (5 %) and test (5 %)",
    ),
    "wikitext2": _Kind(
        _open_wikitext, str.split, _wikitext_files("wikitext-2")
    ),
    "wikitext103": _Kind(
        _open_wikitext, str.split, _wikitext_files("wikitext-103")
    ),
    "gutenberg": _Kind(
        _open_gutenberg,
        _words,
        "at least 3 books as .txt files in UTF-8, anywhere in the folder",
    ),
    "gigaword": _Kind(
        _open_gigaword,
        _words,
        "the files <source>_<year><month>.gz of LDC2011T07, at least 3 months, "
        "anywhere in the folder (the summarisation set of the same name is "
        "another thing)",
    ),
}
def perplexity(log_probs, initial_state, split, vocabulary, length, window):
  found = Perplexity(vocabulary)
  (batch_size,) = {len(x) for x in jax.tree.leaves(initial_state)}
  for first in range(0, len(split), batch_size * length):
    starts = first + length * np.arange(batch_size)
    state = initial_state
    for inputs, targets in evaluation_windows(
        split, starts, length, window, vocabulary.eos
    ):
      values, state = log_probs(inputs, np.maximum(targets, 0), state)
      found.add(targets, np.asarray(values))
  return found
