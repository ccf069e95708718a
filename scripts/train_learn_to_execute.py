"""Trains a recurrent core on Learning to Execute (section 4.1 of the paper).

  python -m scripts.train_learn_to_execute --workdir=runs/copy \
      --flagfile=scripts/presets/lte_copy.flags

Run the same command again to go on after an interruption. The directory then
holds metrics.jsonl, summary.json, checkpoints and learning_curve.png.

Figures of training are means over programs: `correct_characters` of an
answer's `answer_characters`, whose ratio is the accuracy per character, and
`answer_accuracy`, the share of answers that are right as a whole. Evaluation
(`eval_...`) is on the same test programs, all of the largest length and
nesting, each time.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

from absl import flags
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import tabulate

import rmc
from rmc import training
from rmc.training import multihost
from scripts.lib import core_flags, plots, run_flags
from tasks import learn_to_execute
from tasks.learn_to_execute import Batch, Curriculum, LearnToExecute, score
from tasks.prefetch import Prefetcher

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(run_flags)
flags.adopt_module_key_flags(core_flags)

flags.DEFINE_enum("task", "program", learn_to_execute.TASKS, "What to learn.")
flags.DEFINE_integer("length", 5, "Digits of a literal, at most.")
flags.DEFINE_integer("nesting", 1, "Operations of a program, at most.")
flags.DEFINE_enum(
    "curriculum_strategy",
    "mix",
    learn_to_execute.CURRICULA,
    "How hard the programs of training are. baseline: the most; mix: all up to "
    "that, as in the paper; naive, combine: harder by and by, as the loss on "
    "validation programs at each evaluation stands still.",
)
flags.DEFINE_boolean(
    "by_token",
    False,
    "Numbers and keywords are tokens, rather than characters; accuracies "
    "'per character' are then per token.",
)
flags.DEFINE_enum(
    "decoder",
    "non_autoregressive",
    ["non_autoregressive", "teacher_forcing"],
    "What each step of the decoder reads. non_autoregressive: zeros; "
    "teacher_forcing: the character before, which is the right one in training "
    "and the network's own in evaluation.",
)
flags.DEFINE_boolean(
    "share_core", True, "One core encodes and decodes, as in the original."
)
flags.DEFINE_integer(
    "test_programs",
    12_800,
    "Test programs of an evaluation.",
    lower_bound=2,
)

_EVAL_BATCH = 1280
_VALID_PROGRAMS = 1280
_PROGRAMS_SHOWN = 8
_EVAL_SEED = 0  # The same test programs whatever the seed of the run.


def main():
  """Trains or evaluates."""
  parallel = run_flags.make_parallel()
  with run_flags.usage_errors():
    task = LearnToExecute(
        FLAGS.task, FLAGS.length, FLAGS.nesting, FLAGS.by_token
    )
    test = task.sample(
        _EVAL_SEED, np.arange(FLAGS.test_programs), split="test"
    )
  strategy = FLAGS.curriculum_strategy
  curriculum = Curriculum(strategy, FLAGS.length, FLAGS.nesting)
  if curriculum.adapts and not FLAGS.eval_every:
    raise run_flags.UsageError(
        f"--curriculum_strategy={strategy} needs --eval_every above 0: it goes "
        "by the loss at evaluations"
    )
  network = _make_network(task)
  optimizer = run_flags.make_optimizer()
  init_key, data_key = jax.random.split(jax.random.key(FLAGS.seed))
  example = Batch(*(x[:1] for x in test))
  with run_flags.usage_errors():
    jax.eval_shape(network.init, init_key, example)

  def init():
    params = jax.jit(network.init)(init_key, example)
    return training.init_state(params, optimizer, data_key)

  def loss_fn(params, batch, carry, key):
    del key
    logits = network.apply.teach(params, batch)
    loss, correct, solved = _score(logits, batch)
    metrics = {
        "correct_characters": jnp.mean(correct),
        "answer_characters": jnp.mean(batch.target_lengths, dtype=jnp.float32),
        "answer_accuracy": jnp.mean(solved),
    }
    return loss, (metrics, carry)

  @jax.jit
  def eval_figures(params, batch):
    return _score(network.apply.answer(params, batch), batch)

  def batches_from(step, setting):
    level, indices = setting
    return task.batches(
        FLAGS.seed, step, np.array(indices), FLAGS.batch_size, level
    )

  prefetcher = Prefetcher(batches_from)

  @functools.cache
  def recall():
    """Brings the curriculum to where the run was interrupted, once."""
    if curriculum.adapts:
      for record in multihost.on_leader(
          lambda: training.read_metrics(FLAGS.workdir)
      ):
        if "valid_loss" in record:
          curriculum.update(record["valid_loss"])

  def batches(step, indices):
    recall()
    return prefetcher(step, (curriculum.level, tuple(indices.tolist())))

  def validate(params):
    """Evaluates on the curriculum's level and tells it."""
    recall()  # A finished run that is run again asks for no batch.
    level = curriculum.level
    numbers = np.arange(_VALID_PROGRAMS)
    valid = task.sample(_EVAL_SEED, numbers, level, "valid")
    loss = float(eval_figures(params, valid)[0])  # On all processes.
    loss = multihost.on_leader(lambda: loss)  # To the last bit the same.
    curriculum.update(loss)
    return {
        "valid_loss": loss,
        "level_length": level.length,
        "level_nesting": level.nesting,
    }

  def evaluate(state):
    found = _evaluate(lambda batch: eval_figures(state.params, batch), test)
    if curriculum.adapts and FLAGS.mode == "train":
      found |= validate(state.params)
    return found

  try:
    run_flags.train_or_evaluate(
        parallel,
        init,
        loss_fn,
        optimizer,
        evaluate,
        batches=batches,
        free_flags=("test_programs",),
        bound_flags=("eval_every",) if curriculum.adapts else (),
    )
  finally:
    prefetcher.close()
  if multihost.is_leader():
    _show(task, network, Batch(*(x[:_PROGRAMS_SHOWN] for x in test)))
    if FLAGS.mode == "train":
      plots.learning_curve(FLAGS.workdir, "eval_character_accuracy")


def _make_core() -> hk.RNNCore:
  """Returns the core of the flags; the LSTM has two layers, as in the paper.

  Both see the input, and their outputs are concatenated (appendix A.2).
  """
  if FLAGS.core == "lstm":
    return hk.deep_rnn_with_skip_connections(
        [core_flags.make_core() for _ in range(2)]
    )
  return core_flags.make_core()


class _Apply(NamedTuple):
  """The network's functions, `(params, batch) -> logits [T', B, V]`.

  Attributes:
    teach: in training.
    answer: in evaluation.
  """

  teach: Callable[..., jax.Array]
  answer: Callable[..., jax.Array]


def _make_network(task: LearnToExecute) -> hk.MultiTransformed:
  """Returns the network of the flags; `apply` is an `_Apply`."""
  mlp_sizes = core_flags.mlp_sizes()
  forced = FLAGS.decoder == "teacher_forcing"

  def build():
    model = rmc.Seq2Seq(
        _make_core,
        len(task.vocabulary),
        mlp_sizes,
        FLAGS.share_core,
        **core_flags.unroll_options(),
    )

    def teach(batch):
      targets = batch.targets.T  # [T', B]
      told = task.shift(targets) if forced else jnp.full_like(targets, -1)
      return model(
          batch.inputs.T, batch.input_lengths, told, batch.target_lengths
      )

    def answer(batch):
      if not forced:
        return teach(batch)
      return model.generate(
          batch.inputs.T,
          batch.input_lengths,
          task.start_token,
          task.num_steps_out,
      )

    return teach, _Apply(teach, answer)

  return hk.without_apply_rng(hk.multi_transform(build))


def _score(logits: jax.Array, batch: Batch) -> tuple[jax.Array, ...]:
  """Returns the loss, and right characters and whether all are, `[B]`."""
  return score(logits, batch.targets.T, batch.target_lengths)


def _evaluate(
    score_batch: Callable[[Batch], tuple[jax.Array, ...]], test: Batch
) -> dict[str, float]:
  """Returns figures for test programs, with standard errors."""
  count = len(test.inputs)
  losses, correct, solved = [], [], []
  for first in range(0, count, _EVAL_BATCH):
    part = Batch(*(x[first : first + _EVAL_BATCH] for x in test))
    found = jax.device_get(score_batch(part))
    losses.append(found[0] * len(part.inputs))
    correct.append(found[1])
    solved.append(found[2])
  correct = np.concatenate(correct, dtype=np.float64)
  characters = test.target_lengths.astype(np.float64)
  accuracy = correct.sum() / characters.sum()
  # A ratio of two sums over programs, whose answers differ in length.
  errors = correct - accuracy * characters
  solved = np.concatenate(solved, dtype=np.float64)
  return {
      "eval_loss": float(np.sum(losses)) / count,
      "eval_character_accuracy": float(accuracy),
      "eval_character_accuracy_standard_error": float(
          np.sqrt(np.sum(errors**2)) / characters.sum()
      ),
      "eval_answer_accuracy": float(solved.mean()),
      "eval_answer_accuracy_standard_error": float(
          solved.std() / np.sqrt(count)
      ),
  }


def _show(task: LearnToExecute, network: hk.MultiTransformed, batch: Batch):
  """Prints programs, their answers and the network's."""
  params = training.load_params(FLAGS.workdir)
  logits = jax.jit(network.apply.answer)(params, batch)
  guesses = np.argmax(logits, axis=2).T  # [B, T']
  rows = zip(
      task.decode(batch.inputs, batch.input_lengths),
      task.decode(batch.targets, batch.target_lengths),
      task.decode(guesses, batch.target_lengths),
      strict=True,
  )
  headers = ["program", "answer", "network"]
  print(tabulate.tabulate(rows, headers, disable_numparse=True))


if __name__ == "__main__":
  run_flags.run(main)
