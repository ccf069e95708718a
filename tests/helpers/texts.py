"""Small texts for language models."""

import numpy as np

from tasks import language_modeling
from tasks.language_modeling import SPLITS


def make_text(folder, num_types=20, turned=False):
  """Writes a text of words that depend on the word before.

  Args:
    folder: where to; it must not be there.
    num_types: how many words there are.
    turned: whether each split has its last line first.

  Returns:
    The folder.
  """
  steps = 1 + (np.random.default_rng(0).random(400) < 0.2)
  folder.mkdir()
  lines = np.array([f"w{i % num_types}" for i in np.cumsum(steps)])
  for split, size in zip(SPLITS, (400, 90, 70), strict=True):
    rows = np.roll(lines[:size].reshape(-1, 10), int(turned), axis=0)
    text = "\n".join(" ".join(line) for line in rows)
    (folder / f"{split}.txt").write_text(text)
  return folder


def load(folder):
  """Returns the corpus of `make_text`, tokenised beside its folder.

  The first use of a corpus in a process defines flags, which a flagsaver would
  take back; so it must be outside of one.
  """
  data_dir = str(folder.parent / "data")
  return language_modeling.load("text", str(folder), data_dir)
