"""Trains a recurrent core as a language model (section 4.3 of the paper).

  python -m scripts.train_language_model --workdir=runs/wikitext2 \
      --manual_dir=wikitext-2 --flagfile=scripts/presets/lm_wikitext2.flags

Run the same command again to go on after an interruption. The directory then
holds metrics.jsonl, summary.json, vocabulary.txt, corpus.json (digests of the
text, which must stay the same), checkpoints and learning_curve.png;
`python -m scripts.generate_text` writes text with it.

Training reads `--batch_size` streams, whose states go from each update to the
next. `loss` is in nats a word. Evaluation predicts every word of a split once,
`<eos>` at the end of each line too, and carries the state through all of it:
in one stream, or in `--eval_streams`, each from the core's own start.
`valid_perplexity` is reported at each evaluation. After the last update, and
with --mode=eval, come `test_perplexity`; its parts by how often a word is in
the training text (`..._over_10k`, `..._1k_to_10k`, `..._under_1k`, Table 3 of
the paper); and for each length of `--eval_unroll` what it is if the state is
reset after so many words (`..._unroll_25`, Fig. 12).
"""

from collections.abc import Callable
import json
import pathlib
from typing import Any, NamedTuple

from absl import flags
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

import rmc
from rmc import training
from rmc.training import multihost
from rmc.training.metrics import write_text
from scripts.lib import core_flags, plots, run_flags
from tasks import language_modeling
from tasks.language_modeling import (
  Perplexity,
  Split,
  TrainingWindows,
  Vocabulary,
  evaluation_windows,
)

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(run_flags)
flags.adopt_module_key_flags(core_flags)

flags.DEFINE_enum(
    "corpus",
    "python",
    list(language_modeling.CORPORA),
    "The text. python: Python's language reference, which needs no files.",
)
flags.DEFINE_string("manual_dir", None, "Folder with the files of --corpus.")
flags.DEFINE_string(
    "data_dir",
    None,
    "Where tokenised corpora are kept; default: where TensorFlow Datasets "
    "keeps its own.",
)
flags.DEFINE_integer(
    "vocab_size", 0, "Words that are told apart, at most; 0: all."
)
flags.DEFINE_integer(
    "min_count", 1, "How often a word is in the training text, at least."
)
flags.DEFINE_integer(
    "window",
    100,
    "Words of an update, in each stream: how far gradients go back.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "embedding_size", 512, "Size of a word's embedding.", lower_bound=1
)
flags.DEFINE_float("embedding_dropout", 0.5, "Dropout of embeddings.")
flags.DEFINE_float("output_dropout", 0.0, "Dropout of the core's output.")
flags.DEFINE_boolean(
    "output_projection",
    True,
    "Project the core's output to --embedding_size; without, it must have it.",
)
flags.DEFINE_boolean("tied", True, "Embeddings are the softmax's weights too.")
flags.DEFINE_enum(
    "softmax",
    "full",
    ["full", "adaptive"],
    "full: over all words. adaptive: Grave et al. (2017), with embeddings that "
    "are smaller for rare words.",
)
flags.DEFINE_list(
    "cutoffs",
    ["20000", "40000", "200000"],
    "Adaptive softmax: the first words of its tails, in order of frequency.",
)
flags.DEFINE_integer(
    "eval_streams",
    1,
    "Streams of an evaluation, each with a start of its own; 1 is the exact "
    "way, more are faster.",
    lower_bound=1,
)
flags.DEFINE_list(
    "eval_unroll", [], "Lengths after which to reset the state, see above."
)

_UNROLL_BATCH = 64
_FREE_FLAGS = ("manual_dir", "data_dir", "eval_streams", "eval_unroll")


def main():
  """Trains or evaluates."""
  parallel = run_flags.make_parallel()
  eval_unroll = run_flags.positive_integers("eval_unroll")
  _check_folders()
  init_key, data_key = jax.random.split(jax.random.key(FLAGS.seed))
  example = jnp.zeros([1, FLAGS.batch_size], jnp.int32)

  def check_network(vocab_size):
    network = make_network(vocab_size)
    jax.eval_shape(network.init, init_key, example)
    return network

  with run_flags.usage_errors():
    # Most of what may be wrong shows before a text is tokenised.
    check_network(1 + max(run_flags.positive_integers("cutoffs"), default=1))
    corpus = _load()
    windows = TrainingWindows(
        corpus.splits["train"], FLAGS.batch_size, FLAGS.window
    )
  vocabulary = corpus.vocabulary
  optimizer = run_flags.make_optimizer()
  with run_flags.usage_errors():
    network = check_network(len(vocabulary))

  def init():
    multihost.on_leader(lambda: _check_corpus(corpus))
    params = jax.jit(network.init)(init_key, example)
    carry = network.apply.initial_state(params, FLAGS.batch_size)
    return training.init_state(params, optimizer, data_key, carry)

  def loss_fn(params, batch, carry, key):
    words = batch["words"].T  # [T + 1, B]
    keys = training.example_keys(key, batch["indices"])
    loss, carry = network.apply.loss(
        params, words[:-1], words[1:], carry, keys
    )
    return loss, ({}, jax.lax.stop_gradient(carry))

  def batches(step, indices):
    return {"words": windows(step, indices), "indices": indices}

  log_probs = jax.jit(network.apply.log_probs)

  def evaluate(state):
    def measure(split, streams, length):
      initial_state = network.apply.initial_state(state.params, streams)
      return perplexity(
          lambda *args: log_probs(state.params, *args),
          initial_state,
          corpus.splits[split],
          vocabulary,
          length,
      )

    def carried(split):
      length = -(-len(corpus.splits[split]) // FLAGS.eval_streams)
      return measure(split, FLAGS.eval_streams, length)

    found = {
        "eval_streams": FLAGS.eval_streams,
        "valid_perplexity": carried("valid").total(),
    }
    if FLAGS.mode == "eval" or int(state.step) == FLAGS.steps:
      test = carried("test")
      found["test_perplexity"] = test.total()
      for name, value in test.parts().items():
        found[f"test_perplexity_{name}"] = value
      for length in eval_unroll:
        reset = measure("test", _UNROLL_BATCH, length)
        found[f"test_perplexity_unroll_{length}"] = reset.total()
    return found

  run_flags.train_or_evaluate(
      parallel,
      init,
      loss_fn,
      optimizer,
      evaluate,
      batches=batches,
      free_flags=_FREE_FLAGS,
  )
  if FLAGS.mode == "train" and multihost.is_leader():
    plots.learning_curve(FLAGS.workdir, "valid_perplexity")


class Apply(NamedTuple):
  """The network's functions, with its parameters before their arguments.

  Attributes:
    log_probs: `LanguageModel.__call__`.
    loss: `LanguageModel.loss`.
    step: `LanguageModel.step`.
    initial_state: `LanguageModel.initial_state`.
  """

  log_probs: Callable[..., tuple[jax.Array, Any]]
  loss: Callable[..., tuple[jax.Array, Any]]
  step: Callable[..., tuple[jax.Array, Any]]
  initial_state: Callable[..., Any]


def make_network(vocab_size: int) -> hk.MultiTransformed:
  """Returns the network that the flags ask for.

  Args:
    vocab_size: how many words there are.

  Returns:
    `init(key, tokens [T, B])`, and `apply`, an `Apply`. The flags are read
    whenever one of them is traced.

  Raises:
    UsageError: if `--cutoffs` or `--core` is wrong by itself.
    ValueError: if the flags do not go together.
  """
  cutoffs = run_flags.positive_integers("cutoffs")

  def make_softmax():
    sizes = (vocab_size, FLAGS.embedding_size)
    if FLAGS.softmax == "adaptive":
      return rmc.AdaptiveSoftmax(*sizes, cutoffs, tied=FLAGS.tied)
    return rmc.Softmax(*sizes, tied=FLAGS.tied)

  def build():
    model = rmc.LanguageModel(
        core_flags.make_core,
        make_softmax,
        FLAGS.embedding_dropout,
        FLAGS.output_dropout,
        FLAGS.output_projection,
        **core_flags.unroll_options(),
    )

    def init(tokens):
      return model(tokens, tokens, model.initial_state(tokens.shape[1]))

    return init, Apply(model, model.loss, model.step, model.initial_state)

  return hk.without_apply_rng(hk.multi_transform(build))


def perplexity(
    log_probs: Callable[..., tuple[jax.Array, Any]],
    initial_state: Any,
    split: Split,
    vocabulary: Vocabulary,
    length: int,
) -> Perplexity:
  """Predicts each word of a split once, in streams of a length.

  Args:
    log_probs: `(tokens, targets, state) -> (log-probabilities, state)`.
    initial_state: the state in which each stream begins; its batch is the
      number of streams that are read at a time.
    split: the text.
    vocabulary: its words.
    length: words of a stream.

  Returns:
    The log-probabilities, added up.
  """
  found = Perplexity(vocabulary)
  (batch_size,) = {len(x) for x in jax.tree.leaves(initial_state)}
  for first in range(0, len(split), batch_size * length):
    starts = first + length * np.arange(batch_size)
    state = initial_state
    for inputs, targets in evaluation_windows(
        split, starts, length, FLAGS.window, vocabulary.eos
    ):
      values, state = log_probs(inputs, np.maximum(targets, 0), state)
      found.add(targets, np.asarray(values))
  return found


def vocabulary_path() -> pathlib.Path:
  """Returns where a run keeps its vocabulary."""
  return pathlib.Path(FLAGS.workdir) / "vocabulary.txt"


def _check_folders():
  """Raises a UsageError if the run's own .txt files would be read as text."""
  if FLAGS.corpus not in ("text", "gutenberg") or not FLAGS.manual_dir:
    return
  workdir = pathlib.Path(FLAGS.workdir).resolve()
  if workdir.is_relative_to(pathlib.Path(FLAGS.manual_dir).resolve()):
    raise run_flags.UsageError(
        f"--workdir={FLAGS.workdir} must not be in "
        f"--manual_dir={FLAGS.manual_dir}, whose .txt files are the text of "
        f"--corpus={FLAGS.corpus}: a run writes some too"
    )


def _load() -> language_modeling.Corpus:
  """Returns the corpus, which process 0 tokenises if need be."""

  def load():
    return language_modeling.load(
        FLAGS.corpus,
        FLAGS.manual_dir,
        FLAGS.data_dir,
        FLAGS.vocab_size,
        FLAGS.min_count,
    )

  def prepare():
    load()

  multihost.on_leader(prepare)
  return load()


def _check_corpus(corpus: language_modeling.Corpus):
  """Keeps what the run reads, or raises an error if it is another text."""
  digests = json.dumps(corpus.digests, indent=1, sort_keys=True) + "\n"
  kept = {
      vocabulary_path(): corpus.vocabulary.dump(),
      vocabulary_path().with_name("corpus.json"): digests,
  }
  for path, text in kept.items():
    if not path.exists():
      if FLAGS.mode == "train":
        write_text(path, text)
    elif path.read_text("utf-8") != text:
      raise run_flags.UsageError(
          f"the run in --workdir={FLAGS.workdir} reads another text than "
          f"--corpus={FLAGS.corpus} --manual_dir={FLAGS.manual_dir}, whose "
          f"{path.name} is not the same"
      )


if __name__ == "__main__":
  run_flags.run(main)
