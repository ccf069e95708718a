"""Flags of a language model and its corpus, and the network they ask for."""

from collections.abc import Callable
import pathlib
from typing import Any, NamedTuple

from absl import flags
import haiku as hk
import jax

import rmc
from rmc.training import multihost
from scripts.lib import core_flags, cores, optimizer_flags, program, run_flags
from tasks import language_modeling

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(run_flags)
flags.adopt_module_key_flags(optimizer_flags)
flags.adopt_module_key_flags(cores)

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
    "eval_reset_intervals",
    [],
    "Also evaluate with the core's state reset after so many words; several "
    "numbers are separated by commas (Fig. 12 of the paper).",
)
program.define_alias("eval_unroll", "eval_reset_intervals")
run_flags.NETWORK_FLAGS.update(
    ("embedding_size", "output_projection", "tied", "softmax", "cutoffs")
)


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
  cutoffs = program.positive_integers("cutoffs")

  def make_softmax():
    sizes = (vocab_size, FLAGS.embedding_size)
    if FLAGS.softmax == "adaptive":
      return rmc.AdaptiveSoftmax(*sizes, cutoffs, tied=FLAGS.tied)
    return rmc.Softmax(*sizes, tied=FLAGS.tied)

  def build():
    model = rmc.LanguageModel(
        cores.make_core,
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


def vocabulary_path() -> pathlib.Path:
  """Returns where a run keeps its vocabulary."""
  return pathlib.Path(FLAGS.workdir) / "vocabulary.txt"


def load_vocabulary() -> language_modeling.Vocabulary:
  """Returns the vocabulary of what --workdir or --weights holds.

  Raises:
    UsageError: if that is no language model.
  """
  text = None
  if FLAGS.weights:
    text = run_flags.read_weights(FLAGS.weights)[1].get("vocabulary")
  elif vocabulary_path().exists():
    text = vocabulary_path().read_text("utf-8")
  if text is None:
    raise program.UsageError(
        f"{run_flags.origin()} holds no run of a language model: there is no "
        f"{'vocabulary' if FLAGS.weights else vocabulary_path().name}"
    )
  return language_modeling.Vocabulary.parse(text)


def load_corpus() -> language_modeling.Corpus:
  """Returns the corpus, which process 0 tokenises if need be.

  Raises:
    ValueError: if the files of the corpus are missing or wrong.
  """

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
