"""Trains a recurrent core as a language model (section 4.3 of the paper).

  python -m scripts.train_language_model --workdir=runs/wikitext2 \
      --flagfile=scripts/presets/language_modeling/wikitext2.flags \
      --manual_dir=wikitext-2

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
the paper); and for each interval of `--eval_reset_intervals` the perplexity if
the state is reset after so many words (`..._unroll_25`, Fig. 12).
"""

import json
import pathlib
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp

from rmc import training
from rmc.training import multihost
from rmc.training.metrics import write_text
from scripts.lib import (
  experiment,
  language_model_flags,
  optimizer_flags,
  plots,
  program,
  run_flags,
)
from scripts.lib.program import UsageError
from tasks.language_modeling import Corpus, TrainingWindows, perplexity

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(language_model_flags)

_RESET_STREAMS = 64
_FREE_FLAGS = ("manual_dir", "data_dir", "eval_streams", "eval_reset_intervals")


def make_experiment(parallel: training.DataParallel) -> experiment.Experiment:
  """Returns the experiment that the flags ask for.

  Args:
    parallel: how an update is split over devices.

  Raises:
    UsageError: if the flags do not go together.
  """
  del parallel  # The loss needs no mean over devices.
  intervals = program.positive_integers("eval_reset_intervals")
  _check_folders()
  init_key, data_key = jax.random.split(jax.random.key(FLAGS.seed))
  example = jnp.zeros([1, FLAGS.batch_size], jnp.int32)

  def make_network(vocab_size):
    network = language_model_flags.make_network(vocab_size)
    jax.eval_shape(network.init, init_key, example)
    return network

  with program.usage_errors():
    # Most of what may be wrong shows before a text is tokenised.
    make_network(1 + max(program.positive_integers("cutoffs"), default=1))
    corpus = language_model_flags.load_corpus()
    windows = TrainingWindows(
        corpus.splits["train"], FLAGS.batch_size, FLAGS.window
    )
    network = make_network(len(corpus.vocabulary))
  optimizer = optimizer_flags.make_optimizer()

  def init():
    multihost.on_leader(lambda: _check_corpus(corpus))
    params = experiment.initial_params(
        lambda: jax.jit(network.init)(init_key, example)
    )
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

  return experiment.Experiment(
      network=network,
      init=init,
      loss_fn=loss_fn,
      optimizer=optimizer,
      evaluate=_make_evaluate(network, corpus, intervals),
      batches=batches,
      free_flags=_FREE_FLAGS,
  )


def _make_evaluate(network: Any, corpus: Corpus, intervals: list[int]):
  """Returns what evaluates a state; see `experiment.Experiment`."""
  log_probs = jax.jit(network.apply.log_probs)

  def evaluate(state):
    def measure(split, streams, length):
      return perplexity(
          lambda *args: log_probs(state.params, *args),
          network.apply.initial_state(state.params, streams),
          corpus.splits[split],
          corpus.vocabulary,
          length,
          FLAGS.window,
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
      for length in intervals:
        reset = measure("test", _RESET_STREAMS, length)
        found[f"test_perplexity_unroll_{length}"] = reset.total()
    return found

  return evaluate


def main():
  """Trains or evaluates."""
  experiment.train_or_evaluate(make_experiment)
  if experiment.trained():
    plots.learning_curve(FLAGS.workdir, "valid_perplexity")


def _check_folders():
  """Raises a UsageError if the run's own .txt files would be read as text."""
  names_folder = FLAGS.corpus in ("text", "gutenberg") and FLAGS.manual_dir
  if not names_folder or not FLAGS.workdir:
    return
  workdir = pathlib.Path(FLAGS.workdir).resolve()
  if workdir.is_relative_to(pathlib.Path(FLAGS.manual_dir).resolve()):
    raise UsageError(
        f"--workdir={FLAGS.workdir} must not be in "
        f"--manual_dir={FLAGS.manual_dir}, whose .txt files are the text of "
        f"--corpus={FLAGS.corpus}: a run writes some too"
    )


def _check_corpus(corpus: Corpus):
  """Keeps what the run reads, or raises an error if it is another text."""
  if FLAGS.weights:  # They hold no digests; another text is another test.
    found = language_model_flags.load_vocabulary()
    if found.dump() != corpus.vocabulary.dump():
      raise UsageError(
          f"{run_flags.origin()} has another vocabulary than "
          f"--corpus={FLAGS.corpus} --manual_dir={FLAGS.manual_dir}"
      )
    return
  digests = json.dumps(corpus.digests, indent=1, sort_keys=True) + "\n"
  kept = {
      language_model_flags.vocabulary_path(): corpus.vocabulary.dump(),
      language_model_flags.vocabulary_path().with_name("corpus.json"): digests,
  }
  for path, text in kept.items():
    if not path.exists():
      if FLAGS.mode == "train":
        write_text(path, text)
    elif path.read_text("utf-8") != text:
      raise UsageError(
          f"the run in --workdir={FLAGS.workdir} reads another text than "
          f"--corpus={FLAGS.corpus} --manual_dir={FLAGS.manual_dir}, whose "
          f"{path.name} is not the same"
      )


if __name__ == "__main__":
  experiment.run_program(main)
