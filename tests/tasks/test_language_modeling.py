"""Corpora, their vocabularies, and the streams that are read from them."""

from collections import Counter
import gzip
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from tensorflow_datasets.core import shuffle

from tasks.language_modeling import (
    EOS,
    SPLITS,
    UNK,
    LanguageModeling,
    Perplexity,
    Source,
    Split,
    TrainingWindows,
    Vocabulary,
    builder,
    evaluation_windows,
    load,
    perplexity,
    windows,
)

WIKITEXT2 = os.environ.get("WIKITEXT2_DIR")


def write(folder, **texts):
  """Writes files, with dots for double underscores in their names."""
  folder.mkdir(exist_ok=True)
  for name, text in texts.items():
    (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
  return folder


def words_of(corpus, split):
  tokens = corpus.splits[split].read(0, len(corpus.splits[split]))
  assert tokens.dtype == np.int32
  return [corpus.vocabulary.words[i] for i in tokens]


def make_split(num_tokens):
  """Returns a split whose words are their own places."""
  size = windows.RECORD_SIZE
  tokens = np.arange(num_tokens, dtype=np.int32)
  records = [
      {"tokens": tokens[i : i + size]} for i in range(0, num_tokens, size)
  ]
  return Split(records, num_tokens)


@pytest.fixture
def small_records(monkeypatch):
  monkeypatch.setattr(windows, "RECORD_SIZE", 8)


class TestVocabulary:
  COUNTS = Counter({"b": 5, "a": 5, EOS: 4, "d": 2, "c": 1, "e": 1})

  def test_order(self):
    vocabulary = Vocabulary.count(self.COUNTS)
    assert vocabulary.words == ["a", "b", EOS, "d", "c", "e", UNK]
    assert vocabulary.counts.tolist() == [5, 5, 4, 2, 1, 1, 0]
    assert len(vocabulary) == 7
    assert (vocabulary.eos, vocabulary.unk) == (2, 6)

  @pytest.mark.parametrize(
      "limits, words, unknown",
      [
          ({"min_count": 2}, ["a", "b", EOS, UNK, "d"], 2),
          ({"vocab_size": 4}, ["a", "b", EOS, UNK], 4),
          ({"vocab_size": 5, "min_count": 3}, ["a", "b", EOS, UNK], 4),
          ({"vocab_size": 3}, [UNK, "a", EOS], 9),
      ],
  )
  def test_limits(self, limits, words, unknown):
    """What is left out is `<unk>`, which has its place among the others."""
    vocabulary = Vocabulary.count(self.COUNTS, **limits)
    assert vocabulary.words == words
    assert vocabulary.counts[vocabulary.unk] == unknown
    assert vocabulary.counts.sum() == self.COUNTS.total()
    assert vocabulary.encode(["c", "a", "?"]) == [
        vocabulary.unk,
        words.index("a"),
        vocabulary.unk,
    ]

  def test_unk_of_the_text(self):
    """It is a word as others are, and is not left out itself."""
    counts = Counter({"a": 3, UNK: 2, "b": 1, EOS: 1})
    vocabulary = Vocabulary.count(counts, min_count=3)
    assert vocabulary.rows() == [(UNK, 3), ("a", 3), (EOS, 1)]

  def test_text_form(self):
    vocabulary = Vocabulary.count(Counter({"é\u2028": 3, "a": 2, EOS: 1}))
    text = vocabulary.dump()
    assert Vocabulary.parse(text) == vocabulary
    assert Vocabulary.parse(text.replace(" 2", " 3")) != vocabulary
    assert text.count("\n") == len(vocabulary)

  def test_decode(self):
    vocabulary = Vocabulary.count(self.COUNTS)
    tokens = vocabulary.encode(["a", "d", EOS, EOS, "b"])
    assert vocabulary.decode(tokens) == "a d\n\nb"


class TestText:
  def test_named_files(self, tmp_path, small_records):
    """Lines without words are left out; the training words alone count."""
    folder = write(
        tmp_path / "text",
        train__txt="one two, two!\n\nthree's <unk> ¿two\n" * 9,
        valid__txt="two four\n",
        test__txt="  three's",
        other__txt="not read",
    )
    corpus = load("text", str(folder), str(tmp_path))
    line = ["one", "two", ",", "two", "!", EOS, "three's", UNK, "¿", "two", EOS]
    assert words_of(corpus, "train") == line * 9
    assert words_of(corpus, "valid") == ["two", UNK, EOS]
    assert words_of(corpus, "test") == ["three's", EOS]
    assert corpus.vocabulary.rows()[:2] == [("two", 27), (EOS, 18)]
    assert "four" not in corpus.vocabulary.words
    assert "tensorflow" not in sys.modules

  def test_any_files(self, tmp_path):
    """The last lines of each file are for validation and test."""
    folder = write(
        tmp_path / "text",
        b__txt="".join(f"b{i}\n" for i in range(40)),
        a__txt="".join(f"a{i}\n" for i in range(25)),
        c__md="not read",
    )
    corpus = load("text", str(folder), str(tmp_path), min_count=1)
    lines = {
        split: " ".join(words_of(corpus, split)).split(f" {EOS}")
        for split in SPLITS
    }
    assert len(lines["train"]) == 23 + 36 + 1
    assert len(lines["valid"]) == len(lines["test"]) == 1 + 2 + 1
    assert lines["train"][:2] == ["a0", " a1"]
    assert set(words_of(corpus, "test")) == {UNK, EOS}

  def test_written_as_it_comes(self, tmp_path, small_records, monkeypatch):
    """A file at a time, and nothing of TFDS's that gathers a split first."""
    monkeypatch.setattr(builder, "_SHARD", 3)
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 100)
    texts = {
        "train": [[f"w{i}", "x"] for i in range(100)],
        "valid": [["x"] * 23],  # One full file, `<eos>` being the last word.
        "test": [["x"] * 24],
    }
    files = []  # How many there are whenever a line is read.

    def lines(split):
      for line in texts[split]:
        files.append(len(list(tmp_path.rglob("*train*array_record*"))))
        yield line

    corpus = tokenised(Source("of the test", lines), tmp_path)
    for split, expected in texts.items():
      assert words_of(corpus, split) == sum(
          ([*line, EOS] for line in expected), []
      )
    for split, shards in (("train", 13), ("valid", 1), ("test", 2)):
      paths = list(tmp_path.rglob(f"*-{split}.array_record-*"))
      assert len(paths) == shards  # Of 24 words.
    counted, written = files[:102], files[102:]
    assert set(counted) == {0} and len(counted) == len(written)
    assert len(set(written)) == 13
    assert "tensorflow" not in sys.modules

  def test_digests(self, tmp_path, small_records):
    """They are those of the tokens, in their order, wherever they are kept."""
    texts = {"valid__txt": "a b", "test__txt": "b"}

    def digests(name, train):
      folder = write(tmp_path / name, train__txt=train, **texts)
      corpus = load("text", str(folder), str(tmp_path / f"{name}_data"))
      again = load("text", str(folder), str(tmp_path / f"{name}_data"))
      assert again.digests == corpus.digests
      return corpus.digests

    first = digests("first", "a b c d\n" * 9)
    assert first.keys() == set(SPLITS)
    assert len(set(first.values())) == 3
    assert digests("second", "a b c d\n" * 9) == first
    other = digests("other", "a b c d\n" * 8 + "b a c d\n")
    assert other == first | {"train": other["train"]} != first

  def test_tokenised_once(self, tmp_path):
    """Until a file or a limit changes."""
    folder = write(
        tmp_path / "text", train__txt="a b", valid__txt="a", test__txt="b"
    )
    data_dir = tmp_path / "data"
    arguments = ("text", str(folder), str(data_dir))
    first = load(*arguments)
    files = tokenised_files(data_dir)
    assert load(*arguments).vocabulary == first.vocabulary
    assert tokenised_files(data_dir) == files
    assert len(load(*arguments, vocab_size=3).vocabulary) == 3
    limited = tokenised_files(data_dir)
    assert limited.items() > files.items()
    write(folder, train__txt="a c")
    assert load(*arguments).vocabulary != first.vocabulary
    assert tokenised_files(data_dir).items() > limited.items()

  def test_tokenised_by_an_older_module(self, tmp_path):
    """What was tokenised before this package was one is found."""
    source = Source("of the test", lambda split: iter([["a", split]]))
    first = tokenised(source, tmp_path)
    (info,) = tmp_path.rglob("dataset_info.json")
    facts = json.loads(info.read_text())
    assert facts["name"] == "text_db2b0fc6b486"
    assert facts["version"] == "1.2.0"
    facts["moduleName"] = "tasks.language_modeling"
    info.write_text(json.dumps(facts))
    again = tokenised(Source(source.identity, not_read), tmp_path)
    assert again.digests == first.digests
    assert again.vocabulary == first.vocabulary
    assert words_of(again, "valid") == ["a", UNK, EOS]


def tokenised(source, data_dir):
  """Returns the corpus of a source, tokenised if that has not been done."""
  made = LanguageModeling("text", source, str(data_dir), 0, 1)
  made.prepare()
  return made.read()


def tokenised_files(data_dir):
  """Returns the files of tokenised corpora and when they were written."""
  return {
      path: path.stat().st_mtime_ns
      for path in data_dir.rglob("*")
      if path.is_file() and path.suffix != ".lock"
  }


def not_read(split):
  raise AssertionError(f"the {split} split is read")


def test_started_together(tmp_path):
  """Two processes want one corpus: the second waits and then finds it."""
  program = f"""
import time
from tasks.language_modeling import LanguageModeling, Source

def slowly(split):
  if split == "train":
    print("tokenises", flush=True)
    time.sleep(0.5)
  return iter([["a", split]])

source = Source("of the test", slowly)
LanguageModeling("text", source, {str(tmp_path)!r}, 0, 1).prepare()
"""
  with subprocess.Popen(
      [sys.executable, "-c", program],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
  ) as first:
    assert first.stdout.readline() == "tokenises\n"
    corpus = tokenised(Source("of the test", not_read), tmp_path)
    _, errors = first.communicate(timeout=120)
  assert first.returncode == 0, errors
  assert words_of(corpus, "train") == ["a", "train", EOS]


@pytest.fixture(scope="module")
def python(tmp_path_factory):
  return load("python", None, str(tmp_path_factory.mktemp("python")))


def test_python_needs_no_files(python, tmp_path):
  corpus = load("python", None, str(tmp_path), min_count=2)
  assert 1000 < len(corpus.vocabulary) < 10_000
  assert len(corpus.vocabulary) < len(python.vocabulary)
  assert len(corpus.splits["train"]) > 50_000
  assert min(len(corpus.splits[split]) for split in SPLITS) > 1000
  assert {"the", "class", "yield", "."} < set(corpus.vocabulary.words)


def test_python_is_not_tested_on_what_it_trains_on(python):
  """Its topics repeat one another; a few lines are in several by themselves."""
  lines = {split: long_lines(words_of(python, split)) for split in SPLITS}
  train = set(lines["train"])
  assert len(train) > 4000
  for split in ("valid", "test"):
    assert len(lines[split]) > 100
    known = sum(line in train for line in lines[split])
    assert known < 0.1 * len(lines[split])


def long_lines(words):
  """Returns the lines of ten words and more."""
  lines = " ".join(words).split(f" {EOS}")
  return [line for line in lines if len(line.split()) >= 10]


def test_gutenberg(tmp_path):
  """Books, not parts of them; paragraphs; nothing of the wrapping."""
  book = (
      "\ufeffThe Project Gutenberg eBook\n\n"
      "*** START OF THE PROJECT GUTENBERG EBOOK A ***\n\nTitle {0}\n\n\n"
      "It was\r\nlate.\r\n\r\nVery.\n*** END OF THE PROJECT GUTENBERG EBOOK A "
      "***\nlicence\n"
  )
  folder = tmp_path / "books"
  (folder / "more").mkdir(parents=True)
  for i in range(5):
    where = folder if i else folder / "more"
    (where / f"{i}.txt").write_text(book.format(i), encoding="utf-8")
    copy = book.format(i).replace("\r\n", "\n").replace("licence", "another")
    (folder / "more" / f"{i}-0.txt").write_text(copy, encoding="utf-8")
  corpus = load("gutenberg", str(folder), str(tmp_path))
  plain = load("gutenberg", str(folder), str(tmp_path / "again"))
  titles = []
  for split, books in zip(SPLITS, (3, 1, 1), strict=True):
    words = words_of(corpus, split)
    assert words == words_of(plain, split)
    size = len(words) // books
    assert size * books == len(words)
    for i in range(0, len(words), size):
      assert words[i] == "Title"
      titles.append(words[i + 1])
      rest = ["It", "was", "late", ".", EOS, "Very", ".", EOS]
      assert words[i + 2 : i + size] == [EOS, *rest]
  train = {title for title in titles if title != UNK}
  assert len(train) == 3


def test_gigaword(tmp_path):
  """Stories of LDC's files; the last two months are not for training."""

  def news(*paragraphs):
    text = "".join(f"<P>\n{p}\n</P>\n" for p in paragraphs)
    return (
        '<DOC id="A" type="story" >\n<HEADLINE>\nNo\n</HEADLINE>\n<TEXT>\n'
        f"{text}</TEXT>\n</DOC>\n"
        '<DOC id="B" type="other" >\n<TEXT>\n<P>\nNo\n</P>\n</TEXT>\n</DOC>\n'
    )

  for name, text in {
      "data/xin_eng/xin_eng_199912.gz": news("old\nnews"),
      "data/afp_eng/afp_eng_200003.gz": news("R&amp;D"),
      "data/afp_eng/afp_eng_200001.gz": news("R&amp;D", "more &lt;here&gt;"),
      "data/afp_eng/afp_eng_200002.gz": news("news"),
  }.items():
    path = tmp_path / "gigaword" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
      file.write(text)
  corpus = load("gigaword", str(tmp_path / "gigaword"), str(tmp_path))
  assert sorted(words_of(corpus, "train")) == sorted(
      ["old", "news", EOS, "R", "&", "D", EOS, "more", "<", "here", ">", EOS]
  )
  assert words_of(corpus, "valid") == ["news", EOS]
  assert words_of(corpus, "test") == ["R", "&", "D", EOS]


@pytest.mark.skipif(
    WIKITEXT2 is None, reason="WIKITEXT2_DIR names no folder of WikiText-2"
)
def test_wikitext2(tmp_path):
  corpus = load("wikitext2", WIKITEXT2, str(tmp_path))
  sizes = {split: len(corpus.splits[split]) for split in SPLITS}
  assert sizes == {"train": 2_088_628, "valid": 217_646, "test": 245_569}
  assert len(corpus.vocabulary) == 33_278
  with pytest.raises(ValueError, match="which is wikitext2; wikitext103 has"):
    load("wikitext103", WIKITEXT2, str(tmp_path))


def test_another_tokenises_meanwhile(tmp_path):
  """Between looking for the tokens and opening them."""
  source = Source("of the test", lambda split: iter([["a", split]]))
  late, early = (
      LanguageModeling("text", source, str(tmp_path), 0, 1) for _ in range(2)
  )
  early.prepare()
  late.prepare()
  assert words_of(late.read(), "train") == ["a", "train", EOS]


def test_what_a_kill_left_is_cleared_away(tmp_path):
  folder = write(tmp_path / "files", a__txt="a b c d\n" * 20)
  arguments = ("text", str(folder), str(tmp_path / "data"))
  load(*arguments)
  (done,) = tmp_path.glob("data/text_*/1.*")
  done.rename(done.with_name(f"incomplete.ABCDEF_{done.name}"))
  load(*arguments)
  assert [path.name for path in done.parent.iterdir()] == [done.name]


class TestWrongFiles:
  @pytest.mark.parametrize("corpus", ["text", "wikitext103", "gigaword"])
  @pytest.mark.parametrize("folder", [None, "no/such/folder"])
  def test_no_folder(self, corpus, folder, tmp_path):
    message = f"manual_dir must be a folder, got {folder!r}. {corpus} needs"
    with pytest.raises(ValueError, match=message):
      load(corpus, folder, str(tmp_path))

  @pytest.mark.parametrize(
      "corpus, files, message",
      [
          ("text", {}, "there is no .txt file in it. text needs train.txt,"),
          ("text", {"train__txt": "a"}, "valid.txt, test.txt not found. text"),
          ("text", {"a__txt": "a\n" * 20, "b__txt": ""}, "b.txt is empty"),
          ("text", {"a__txt": "a\n" * 19}, "the valid split has no words"),
          (
              "gutenberg",
              {"a__txt": "a", "b__txt": "b", "c__txt": "a\n"},
              "there are 2 different books",
          ),
          ("gigaword", {"a_200001__gz": "", "b__gz": ""}, "of 1 months in it"),
          (
              "gigaword",
              {f"a_20000{i}__gz": "<P>" for i in (1, 2, 3)},
              "a_200001.gz is not a whole gzip file: Not a gzipped",
          ),
          (
              "wikitext2",
              {"wiki__train__tokens": "a", "wiki__valid__tokens": "a"},
              "wiki.test.tokens not found. wikitext2 needs wiki.train.tokens",
          ),
          (
              "wikitext2",
              {f"wiki__{split}__tokens": " a \n \n" for split in SPLITS},
              "have 3 / 3 / 3 words, 2 types; wikitext2 has 2,088,628 / "
              "217,646 / 245,569 words, 33,278 types",
          ),
          (
              "wikitext103",
              {f"wiki__{split}__tokens": " a \n \n" for split in SPLITS},
              "have 3 / 3 / 3 words, 2 types; wikitext103 has 103,227,021 / "
              "217,646 / 245,569 words, 267,735 types",
          ),
      ],
  )
  def test_files(self, corpus, files, message, tmp_path):
    folder = write(tmp_path / "files", **files)
    with pytest.raises(ValueError, match=message) as caught:
      load(corpus, str(folder), str(tmp_path / "data"))
    assert f"manual_dir={folder}: " in str(caught.value)
    assert not list((tmp_path / "data").glob("[!.]*"))

  @pytest.mark.parametrize(
      "pattern, data",
      [
          ("*train*", b""),
          ("*train*00000-of-*", None),
          ("*train*00001-of-*", None),
          ("dataset_info.json", b""),
          ("dataset_info.json", None),
          ("metadata.json", b""),
          ("metadata.json", None),
      ],
  )
  def test_tokenised(self, pattern, data, tmp_path, monkeypatch):
    """What was tokenised before and is not whole any more."""
    monkeypatch.setattr(windows, "RECORD_SIZE", 4)
    monkeypatch.setattr(builder, "_SHARD", 2)
    folder = write(tmp_path / "files", a__txt="a b c d\n" * 20)
    data_dir = tmp_path / "data"
    load("text", str(folder), str(data_dir))
    for path in [*data_dir.glob(f"text_*/*/{pattern}")]:
      path.unlink() if data is None else path.write_bytes(data)
    with pytest.raises(ValueError, match=r"data_dir: .* cannot be read \(.*\)"):
      load("text", str(folder), str(data_dir))
    shutil.rmtree(data_dir)
    load("text", str(folder), str(data_dir))

  @pytest.mark.parametrize("data_dir", ["/dev/null", "/proc/none"])
  def test_data_dir(self, data_dir):
    message = f"data_dir must be a directory that can .*, got {data_dir}: "
    with pytest.raises(ValueError, match=message):
      load("python", None, data_dir)

  def test_encoding(self, tmp_path):
    folder = write(tmp_path / "files", train__txt="a", valid__txt="a")
    (folder / "test.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match="test.txt is not UTF-8: 'utf-8' "):
      load("text", str(folder), str(tmp_path))

  @pytest.mark.parametrize(
      "damage, message",
      [
          (lambda data: data[:-20], "Compressed file ended before"),
          (lambda data: data[:20] + 9 * b"\xff" + data[29:], "Error -3 while"),
          (lambda data: data[:-8] + 8 * b"\0", "CRC check failed"),
      ],
      ids=["cut off", "garbled", "another checksum"],
  )
  def test_gzip(self, damage, message, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    text = "".join(f"<P>\n{i * i}\n</P>\n" for i in range(1000))
    for i in (1, 2, 3):
      data = gzip.compress(text.encode())
      (folder / f"a_20000{i}.gz").write_bytes(damage(data) if i == 2 else data)
    message = f"a_200002.gz is not a whole gzip file: {message}"
    with pytest.raises(ValueError, match=message):
      load("gigaword", str(folder), str(tmp_path))

  @pytest.mark.parametrize(
      "limits, message",
      [
          ({"vocab_size": -1}, "vocab_size must be 0, .* at least 3, got -1"),
          ({"vocab_size": 2}, "vocab_size must be 0, .* at least 3, got 2"),
          ({"min_count": 0}, "min_count must be at least 1, got 0"),
      ],
  )
  def test_limits(self, limits, message, tmp_path):
    with pytest.raises(ValueError, match=message):
      load("python", None, str(tmp_path), **limits)

  def test_a_folder_that_is_not_looked_at(self, tmp_path):
    with pytest.raises(ValueError, match="manual_dir=texts is of no use: .*'p"):
      load("python", "texts", str(tmp_path))

  def test_a_folder_that_cannot_be_read(self, tmp_path, monkeypatch):
    """Part of a corpus would pass for all of it."""
    folder = write(tmp_path / "files", a__txt="a\n" * 20)
    (folder / "locked").mkdir()
    scandir = os.scandir

    def refuse(path):
      if pathlib.Path(path).name == "locked":
        raise PermissionError(13, "Permission denied", str(path))
      return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for corpus in ("text", "gutenberg", "gigaword"):
      with pytest.raises(ValueError, match="locked: Permission denied"):
        load(corpus, str(folder), str(tmp_path / "data"))

  def test_links(self, tmp_path):
    """They are followed, once; one to nowhere is told."""
    folder = write(tmp_path / "files", a__txt="a\n" * 20)
    write(tmp_path / "others", b__txt="b\n" * 20)
    (folder / "linked").symlink_to(tmp_path / "others")
    (folder / "back").symlink_to(folder)
    (folder / "folder.txt").mkdir()
    corpus = load("text", str(folder), str(tmp_path / "data"))
    assert words_of(corpus, "test") == ["a", EOS, "b", EOS]
    (folder / "c.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="c.txt is a link to no file"):
      load("text", str(folder), str(tmp_path / "data"))

  def test_unknown_corpus(self):
    with pytest.raises(ValueError, match=r"one of \['python', .* got 'ptb'"):
      load("ptb")


class TestTrainingWindows:
  def test_streams_go_on_through_all_of_the_text(self, small_records):
    """Each window follows the one before, and a ring has no end."""
    num_tokens, num_streams, window = 45, 3, 7
    streams = TrainingWindows(make_split(num_tokens), num_streams, window)
    for i in range(num_streams):
      tokens = [streams(step, [i])[0] for step in range(20)]
      start = i * num_tokens // num_streams
      for step, words in enumerate(tokens):
        assert words.shape == (window + 1,)
        expected = start + step * window + np.arange(window + 1)
        np.testing.assert_array_equal(words, expected % num_tokens)

  def test_shares(self, small_records):
    """A process reads its own streams, whatever it read before."""
    streams = TrainingWindows(make_split(100), 4, 5)
    whole = streams(11, range(4))
    assert whole.shape == (4, 6)
    assert whole.dtype == np.int32
    again = TrainingWindows(make_split(100), 4, 5)
    np.testing.assert_array_equal(again(11, np.array([2, 3])), whole[2:])

  def test_too_short(self):
    TrainingWindows(make_split(20), 4, 5)
    with pytest.raises(ValueError, match="19 words, .* 4 streams .* needs 20"):
      TrainingWindows(make_split(19), 4, 5)


@pytest.mark.parametrize("window", [1, 4, 20, 100])
@pytest.mark.parametrize("num_streams", [1, 3, 7, 30])
def test_evaluation_windows(small_records, num_streams, window):
  """Each word is a target once, after the one before it, in order."""
  num_tokens, eos = 23, 99
  length = -(-num_tokens // num_streams)
  starts = length * np.arange(num_streams)
  streams = [[] for _ in starts]
  split = make_split(num_tokens)
  for inputs, targets in evaluation_windows(
      split, starts, length, window, eos
  ):
    assert inputs.shape == targets.shape == (min(window, length), num_streams)
    for i, stream in enumerate(streams):
      there = targets[:, i] >= 0
      assert np.all(targets[~there, i] == -1)
      pairs = np.stack([inputs[there, i], targets[there, i]], axis=1)
      stream.extend(map(tuple, pairs.tolist()))
  assert sum(streams, []) == [
      (place - 1 if place else eos, place) for place in range(num_tokens)
  ]
  for start, stream in zip(starts, streams, strict=True):
    assert len(stream) == np.clip(num_tokens - start, 0, length)


@pytest.mark.parametrize("window", [1, 3, 100])
def test_perplexity_of_a_split(small_records, window):
  """Each word counts once, with the state of its stream carried on."""
  num_tokens, length = 23, 4
  split = make_split(num_tokens)
  vocabulary = Vocabulary(
      [*map(str, range(22)), EOS, UNK], 10 * [20_000] + 14 * [1]
  )
  assert len(vocabulary) == 24

  def log_probs(inputs, targets, state):
    assert inputs.shape == targets.shape == (min(window, length), 3)
    steps = state["step"] + np.arange(1, 1 + len(inputs))[:, None]  # [T, B]
    values = -(steps + inputs / 100 + targets / 10_000)
    return values, {"step": state["step"] + len(inputs)}

  found = perplexity(
      log_probs, {"step": np.zeros(3)}, split, vocabulary, length, window
  )
  place = np.arange(num_tokens)
  before = np.where(place == 0, vocabulary.eos, place - 1)
  costs = 1 + place % length + before / 100 + place / 10_000
  assert found.total() == pytest.approx(np.exp(costs.mean()))
  assert found.parts() == pytest.approx(
      {
          "over_10k": np.exp(costs[:10].mean()),
          "under_1k": np.exp(costs[10:].mean()),
      }
  )


def test_perplexity_of_states_of_different_sizes():
  state = {"a": np.zeros(3), "b": np.zeros(2)}
  vocabulary = Vocabulary([EOS, UNK], [1, 1])
  with pytest.raises(ValueError, match=r"leading axis, got sizes \[2, 3\]"):
    perplexity(None, state, make_split(9), vocabulary, 4, 4)


def test_perplexity():
  """All of it is the mean of its parts, each by its number of words."""
  counts = [20_000, 10_001, 10_000, 1_000, 999, 0]
  vocabulary = Vocabulary(["a", EOS, "b", "c", "d", UNK], counts)
  targets = np.array([[0, 1, 2], [3, 4, -1], [5, 0, -1]])
  log_probs = -np.arange(1.0, 10.0, dtype=np.float32).reshape(3, 3)
  found = Perplexity(vocabulary)
  found.add(targets, log_probs)
  parts = found.parts()
  assert parts == pytest.approx(
      {
          "over_10k": np.exp((1 + 2 + 8) / 3),
          "1k_to_10k": np.exp((3 + 4) / 2),
          "under_1k": np.exp((5 + 7) / 2),
      }
  )
  assert found.total() == pytest.approx(np.exp(30 / 7))
  few = Perplexity(vocabulary)
  few.add(np.array([0]), np.array([-1.0]))
  assert list(few.parts()) == ["over_10k"]
