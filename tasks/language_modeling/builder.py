"""Tokenises a corpus once, with TFDS but without TensorFlow.

The builder's name, and with it the folder of a tokenised corpus, depends on
the text and the limits of the vocabulary, and not on this module's path.
"""

import array
from collections import Counter
from collections.abc import Callable, Iterator
import contextlib
import fcntl
import functools
import hashlib
import itertools
import pathlib
import shutil
import sys
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_builder import ShardBasedBuilder

from tasks.language_modeling import windows
from tasks.language_modeling.corpora import (
    CORPORA,
    SPLITS,
    Source,
    WrongFilesError,
    check_counts,
    digest,
)
from tasks.language_modeling.vocabulary import EOS, Vocabulary, check_limits

_SHARD = 2**10  # Records of a file, which are in memory while it is written.


class Corpus(NamedTuple):
  """A tokenised text.

  Attributes:
    vocabulary: its words.
    splits: by name.
    digests: what tells the tokens of each split from others.
  """

  vocabulary: Vocabulary
  splits: dict[str, windows.Split]
  digests: dict[str, str]


class LanguageModeling(ShardBasedBuilder):
  """Tokenises a corpus into records of words, in order.

  TFDS writes shard by shard, as they come. (Its `GeneratorBasedBuilder` first
  gathers a whole split, and needs TensorFlow for one of more than a gigabyte.)
  """

  VERSION = tfds.core.Version("1.2.0")

  def __init__(
      self,
      corpus: str,
      source: Source,
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
    self.name = f"{corpus}_{digest(identity)[:12]}"
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
          name: windows.Split(
              self.as_data_source(split=name), metadata["tokens"][name]
          )
          for name in SPLITS
      }
      for split in splits.values():
        for start in range(0, len(split), windows.RECORD_SIZE * _SHARD):
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
      return [shard] * -(-tokens[split] // (windows.RECORD_SIZE * _SHARD))

    return {split: shards(split) for split in SPLITS}

  def _count(self) -> tuple[Vocabulary, dict[str, int]]:
    """Reads all of the corpus; returns how many words each split has too."""
    counts = {
        split: Counter(itertools.chain.from_iterable(self._lines(split)))
        for split in SPLITS
    }
    tokens = {split: counts[split].total() for split in SPLITS}
    check_counts(self._corpus, tokens, len(counts["train"]))
    return Vocabulary.count(counts["train"], *self._limits), tokens

  def _records(
      self, split: str, vocabulary: Vocabulary
  ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    hasher = hashlib.blake2b(digest_size=16)
    for number, tokens in enumerate(self._pieces(split, vocabulary)):
      hasher.update(tokens)
      # Of all so far: TFDS may not come back after the last.
      self.info.metadata["digests"][split] = hasher.hexdigest()
      yield number, {"tokens": tokens}

  def _pieces(
      self, split: str, vocabulary: Vocabulary
  ) -> Iterator[np.ndarray]:
    left = array.array("i")
    for line in self._lines(split):
      left.extend(vocabulary.encode(line))
      while len(left) >= windows.RECORD_SIZE:
        yield np.array(left[: windows.RECORD_SIZE], np.int32)
        left = left[windows.RECORD_SIZE :]
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
  check_limits(vocab_size, min_count)
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
  except WrongFilesError as error:
    raise ValueError(
        f"manual_dir={manual_dir}: {error} {corpus} needs {files}."
    ) from error
  return builder.read()
