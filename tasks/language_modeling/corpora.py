"""Where the text of each corpus comes from, and how it is cut into words."""

from collections.abc import Callable, Iterable, Iterator
import functools
import gzip
import hashlib
import html
import itertools
import os
import pathlib
import re
from typing import NamedTuple
import zlib

SPLITS = ("train", "valid", "test")
# Words in all of train, in valid and in test, `<eos>` counted, and V.
_PUBLISHED = {
    "wikitext2": ((2_088_628, 217_646, 245_569), 33_278),
    "wikitext103": ((103_227_021, 217_646, 245_569), 267_735),
}


class Source(NamedTuple):
  """Where a corpus comes from.

  Attributes:
    identity: changes when the text does.
    lines: the lines of a split, as words without `<eos>`.
  """

  identity: str
  lines: Callable[[str], Iterator[list[str]]]


class WrongFilesError(Exception):
  """A folder does not hold the corpus."""


def tokenize(corpus: str, text: str) -> list[str]:
  """Cuts text into words as those of a corpus are, without `<eos>`."""
  return CORPORA[corpus].tokenize(text)


def _open_wikitext(folder: pathlib.Path) -> Source:
  paths = _named(folder, {split: f"wiki.{split}.tokens" for split in SPLITS})

  def lines(split):
    return map(str.split, _read(paths[split]))

  return Source(_identity(folder, paths.values()), lines)


def _open_text(folder: pathlib.Path) -> Source:
  names = {split: f"{split}.txt" for split in SPLITS}
  if any((folder / name).exists() for name in names.values()):
    named = _named(folder, names)

    def lines(split):
      return _words_of_lines(_read(named[split]))

    return Source(_identity(folder, named.values()), lines)
  paths = _find(folder, ".txt")
  if not paths:
    raise WrongFilesError("there is no .txt file in it.")

  def lines_of_parts(split):
    for path in paths:
      part = _part(functools.partial(_read, path), split)
      yield from _words_of_lines(part)

  return Source(_identity(folder, paths), lines_of_parts)


def _open_python(folder: None) -> Source:
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

  return Source(digest(repr(texts)), lines)


def _open_gutenberg(folder: pathlib.Path) -> Source:
  """One book in 160, at least one, is for validation, and as many for test."""
  paths = sorted(
      _find(folder, ".txt"),
      key=lambda path: digest(path.relative_to(folder).as_posix()),
  )

  @functools.cache
  def books() -> dict[str, list[pathlib.Path]]:
    """Copies of a book, of which one might be for test, are left out."""
    found = {}
    for path in paths:
      words = " ".join(_book(_read(path))).split()
      found.setdefault(digest(" ".join(words)), path)
    distinct = list(found.values())
    if len(distinct) < 3:
      raise WrongFilesError(
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

  return Source(_identity(folder, paths), lines)


def _open_gigaword(folder: pathlib.Path) -> Source:
  """The last month is for test, the one before it for validation."""
  months = {}
  for path in _find(folder, ".gz"):
    found = re.fullmatch(r"\w+_(\d{6})\.gz", path.name)
    if found:
      months.setdefault(found[1], []).append(path)
  if len(months) < 3:
    raise WrongFilesError(
        "there are files <source>_<year><month>.gz of "
        f"{len(months)} months in it."
    )
  *train, valid, test = (months[month] for month in sorted(months))
  paths = {"train": sum(train, []), "valid": valid, "test": test}

  def lines(split):
    for path in paths[split]:
      yield from _paragraphs(_stories(_read(path)))

  return Source(_identity(folder, sum(months.values(), [])), lines)


def _find(folder: pathlib.Path, suffix: str) -> list[pathlib.Path]:
  """Returns the files in a folder and those below, links followed, sorted."""

  def fail(error):
    raise WrongFilesError(f"{error.filename}: {error.strerror}.") from error

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
          raise WrongFilesError(f"{path} is a link to no file.")
        paths.append(path)
  return sorted(paths)


def _named(
    folder: pathlib.Path, names: dict[str, str]
) -> dict[str, pathlib.Path]:
  """Returns the paths of files, which must be there."""
  paths = {split: folder / name for split, name in names.items()}
  missing = [path.name for path in paths.values() if not path.is_file()]
  if missing:
    raise WrongFilesError(f"{', '.join(missing)} not found.")
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
  return digest(repr(sorted(facts)))


def digest(text: str) -> str:
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
    raise WrongFilesError(f"{path.name} is not UTF-8: {error}.") from error
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise WrongFilesError(
        f"{path.name} is not a whole gzip file: {error}."
    ) from error
  except OSError as error:
    raise WrongFilesError(f"{path.name}: {error.strerror}.") from error
  if empty:
    raise WrongFilesError(f"{path.name} is empty.")


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


def check_counts(corpus: str, tokens: dict[str, int], num_types: int):
  """Raises an error unless the text is what it is said to be."""
  for split, count in tokens.items():
    if not count:
      raise WrongFilesError(
          f"the {split} split has no words; .txt files that are not named by "
          "split give some to each if they have at least 20 lines."
      )
  if corpus not in _PUBLISHED:
    return
  found = (tuple(tokens[split] for split in SPLITS), num_types)
  if found != _PUBLISHED[corpus]:

    def described(sizes):
      counts, types = sizes
      return f"{' / '.join(f'{n:,}' for n in counts)} words, {types:,} types"

    others = [name for name, known in _PUBLISHED.items() if known == found]
    raise WrongFilesError(
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

  open: Callable[[pathlib.Path | None], Source]
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
