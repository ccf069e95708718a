"""Text as streams of words, for language models.

A corpus is tokenised once, by a TFDS builder that needs no TensorFlow, into
files that are then read a piece at a time, so that it may be larger than
memory:

  - `wikitext2` and `wikitext103` (Merity et al. 2016), the released files;
  - `gutenberg`: a folder of books. The paper's own split of Project Gutenberg
    is not published, so results on it cannot be compared with the paper's;
  - `gigaword`: LDC's English Gigaword, fifth edition (LDC2011T07);
  - `text`: any folder of .txt files;
  - `python`: the language reference that Python carries for `help()`. It needs
    no files and differs from one version of Python to the next.

Each line ends with `<eos>`, which is counted and predicted like any word. In
books and news a line is a paragraph, however it is wrapped.

Glossary of shapes:
  - N: words of a split.
  - T: steps of a window.
  - B: streams.
  - b: streams of one process or device.
  - V: words of the vocabulary.
"""

from tasks.language_modeling.builder import Corpus, LanguageModeling, load
from tasks.language_modeling.corpora import CORPORA, SPLITS, Source, tokenize
from tasks.language_modeling.perplexity import Perplexity, perplexity
from tasks.language_modeling.vocabulary import EOS, UNK, Vocabulary
from tasks.language_modeling.windows import (
    Split,
    TrainingWindows,
    evaluation_windows,
)

__all__ = [
    "CORPORA",
    "EOS",
    "SPLITS",
    "UNK",
    "Corpus",
    "LanguageModeling",
    "Perplexity",
    "Source",
    "Split",
    "TrainingWindows",
    "Vocabulary",
    "evaluation_windows",
    "load",
    "perplexity",
    "tokenize",
]
