"""Trains a recurrent core on Learning to Execute (section 4.1 of the paper).

  python -m scripts.train_learn_to_execute --workdir=runs/copy \
      --flagfile=scripts/presets/learn_to_execute/copy.flags

Run the same command again to go on after an interruption. The directory then
holds metrics.jsonl, summary.json, checkpoints and learning_curve.png.

The metrics of training are means over programs: `correct_characters` of an
answer's `answer_characters`, whose ratio is the accuracy per character, and
`answer_accuracy`, the share of answers that are right as a whole. Evaluation
(`eval_...`) is on the same test programs, all of the largest length and
nesting, each time.
"""

import functools

from absl import flags
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import tabulate

from rmc import training
from rmc.training import multihost
from scripts.lib import (
  experiment,
  learn_to_execute_flags,
  optimizer_flags,
  plots,
  program,
)
from scripts.lib.adaptive_levels import EVAL_SEED, AdaptiveLevels
from tasks import learn_to_execute
from tasks.learn_to_execute import Batch, LearnToExecute, LevelCurriculum
from tasks.prefetch import Prefetcher

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(learn_to_execute_flags)

_EVAL_BATCH = 1280
_PROGRAMS_SHOWN = 8


def make_experiment(parallel: training.DataParallel) -> experiment.Experiment:
  """Returns the experiment that the flags ask for.

  Args:
    parallel: how an update is split over devices.

  Raises:
    UsageError: if the flags do not go together.
  """
  del parallel  # The loss needs no mean over devices.
  task = learn_to_execute_flags.make_task()
  test = _test_programs(task, FLAGS.test_programs)
  levels = _make_levels()
  network = learn_to_execute_flags.make_network(task)
  optimizer = optimizer_flags.make_optimizer()
  init_key, data_key = jax.random.split(jax.random.key(FLAGS.seed))
  example = Batch(*(x[:1] for x in test))
  with program.usage_errors():
    jax.eval_shape(network.init, init_key, example)

  def init():
    params = experiment.initial_params(
        lambda: jax.jit(network.init)(init_key, example)
    )
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
  def score(params, batch):
    return _score(network.apply.answer(params, batch), batch)

  curriculum = AdaptiveLevels(levels, task, score)

  def batches_from(step, setting):
    level, indices = setting
    return task.batches(
        FLAGS.seed, step, np.array(indices), FLAGS.batch_size, level
    )

  prefetcher = Prefetcher(batches_from)

  def evaluate(state):
    found = learn_to_execute.evaluate(
        functools.partial(score, state.params), test, _EVAL_BATCH
    )
    if levels.adapts and FLAGS.mode == "train":
      found |= curriculum.validate(state.params)
    return found

  return experiment.Experiment(
      network=network,
      init=init,
      loss_fn=loss_fn,
      optimizer=optimizer,
      evaluate=evaluate,
      batches=lambda step, indices: prefetcher(
          step, (curriculum.level, tuple(indices.tolist()))
      ),
      free_flags=("test_programs",),
      bound_flags=("eval_every",) if levels.adapts else (),
      close=prefetcher.close,
  )


def _test_programs(task: LearnToExecute, count: int) -> Batch:
  """Returns so many test programs, or raises a UsageError."""
  with program.usage_errors():
    return task.sample(EVAL_SEED, np.arange(count), split="test")


def _make_levels() -> LevelCurriculum:
  """Returns the curriculum of the flags at its first level."""
  strategy = FLAGS.curriculum_strategy
  levels = LevelCurriculum(strategy, FLAGS.length, FLAGS.nesting)
  if levels.adapts and not FLAGS.eval_every:
    raise program.UsageError(
        f"--curriculum_strategy={strategy} needs --eval_every above 0: it goes "
        "by the loss at evaluations"
    )
  return levels


def _score(logits: jax.Array, batch: Batch) -> tuple[jax.Array, ...]:
  """Returns the loss, and right characters and whether all are, `[B]`."""
  return learn_to_execute.score(logits, batch.targets.T, batch.target_lengths)


def _show(network: hk.MultiTransformed):
  """Prints programs, their answers and the network's."""
  task = learn_to_execute_flags.make_task()
  batch = _test_programs(task, _PROGRAMS_SHOWN)
  expected = jax.eval_shape(network.init, jax.random.key(0), batch)
  params, _ = experiment.load_params(expected)
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


def main():
  """Trains or evaluates."""
  learned, _ = experiment.train_or_evaluate(make_experiment)
  if multihost.is_leader():
    _show(learned.network)
  if experiment.trained():
    plots.learning_curve(FLAGS.workdir, "eval_character_accuracy")


if __name__ == "__main__":
  experiment.run_program(main)
