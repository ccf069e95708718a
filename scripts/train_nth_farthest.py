"""Trains a recurrent core on Nth Farthest (section 4.1 of the paper).

  python -m scripts.train_nth_farthest --workdir=runs/nth_farthest \
      --flagfile=scripts/presets/nth_farthest/demo.flags

Run the same command again to go on after an interruption. Afterwards the
directory holds metrics.jsonl, summary.json, checkpoints, learning_curve.png
and, for the RMC, attention.png. From a checkpoint the latter is drawn by

  python -m scripts.train_nth_farthest --workdir=runs/nth_farthest \
      --mode=eval --attention=attention.png
"""

from collections.abc import Callable
import math
import pathlib

from absl import flags
import chex
import haiku as hk
import jax
import jax.numpy as jnp
import optax

from rmc import training
from rmc.training import multihost
from scripts.lib import (
  experiment,
  nth_farthest_flags,
  optimizer_flags,
  plots,
  program,
)
from tasks.nth_farthest import NthFarthest

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(nth_farthest_flags)

_EVAL_BATCH = 1000


def make_experiment(parallel: training.DataParallel) -> experiment.Experiment:
  """Returns the experiment that the flags ask for.

  Args:
    parallel: how an update is split over devices.

  Raises:
    UsageError: if the flags do not go together.
  """
  _check_attention()
  task, curriculum = nth_farthest_flags.make_task()
  network = nth_farthest_flags.make_network(task.num_objects)
  optimizer = optimizer_flags.make_optimizer()
  init_key, data_key, eval_key = jax.random.split(jax.random.key(FLAGS.seed), 3)
  example = jnp.zeros((task.num_objects, 1, task.step_size))
  with program.usage_errors():
    jax.eval_shape(network.init, init_key, example)

  def init():
    params = experiment.initial_params(
        lambda: jax.jit(network.init)(init_key, example)
    )
    carry = curriculum.initial(FLAGS.batch_size) if FLAGS.curriculum else None
    return training.init_state(params, optimizer, data_key, carry)

  def loss_fn(params, indices, carry, key):
    if FLAGS.curriculum:
      return stage_loss_fn(params, indices, carry, key)
    inputs, labels = _sample(task, key, indices)
    loss, correct = _score(network.apply.logits(params, inputs), labels)
    return loss, ({"accuracy": jnp.mean(correct)}, carry)

  def stage_loss_fn(params, indices, progress, key):
    inputs, labels, stages, present = jax.vmap(
        curriculum.sample, in_axes=(0, None)
    )(training.example_keys(key, indices), progress.stage[0])
    logits = network.apply.logits(
        params, jnp.swapaxes(inputs, 0, 1), stages.num_objects
    )
    loss, correct = _score(logits, labels)
    count = parallel.mean(jnp.mean(present, dtype=correct.dtype))
    metrics = {
        "accuracy": jnp.mean(correct),
        "stage": progress.stage[0].astype(correct.dtype),
    }
    correct = parallel.mean(jnp.mean(jnp.where(present, correct, 0.0)))
    return loss, (metrics, curriculum.advance(progress, correct, count))

  return experiment.Experiment(
      network=network,
      init=init,
      loss_fn=loss_fn,
      optimizer=optimizer,
      evaluate=_make_evaluate(task, network, eval_key),
      free_flags=("eval_examples", "attention"),
  )


def _make_evaluate(
    task: NthFarthest, network: hk.MultiTransformed, eval_key: jax.Array
) -> Callable[[training.TrainState], dict[str, float]]:
  """Returns what evaluates a state on fresh examples."""

  @jax.jit
  def score_batch(params, key, indices):
    inputs, labels = _sample(task, key, indices)
    loss, correct = _score(network.apply.logits(params, inputs), labels)
    return loss, jnp.sum(correct)

  def evaluate(state):
    """Draws examples that depend on the step, apart from those of training."""
    key = jax.random.fold_in(eval_key, state.step)
    total_loss = total_correct = 0.0
    for first in range(0, FLAGS.eval_examples, _EVAL_BATCH):
      size = min(_EVAL_BATCH, FLAGS.eval_examples - first)
      indices = jnp.arange(first, first + size, dtype=jnp.int32)
      loss, correct = score_batch(state.params, key, indices)
      total_loss += size * float(loss)
      total_correct += float(correct)
    accuracy = total_correct / FLAGS.eval_examples
    variance = accuracy * (1 - accuracy) / FLAGS.eval_examples
    return {
        "eval_loss": total_loss / FLAGS.eval_examples,
        "eval_accuracy": accuracy,
        "eval_accuracy_standard_error": math.sqrt(variance),
        "plateau": task.plateau,
    }

  return evaluate


def _check_attention():
  """Raises a UsageError if --attention cannot be drawn."""
  if not FLAGS.attention:
    return
  if (FLAGS.mode, FLAGS.core) != ("eval", "rmc"):
    raise program.UsageError(
        f"--attention={FLAGS.attention} goes with --mode=eval and --core=rmc"
    )
  with program.usage_errors():
    plots.check_path(FLAGS.attention)


def _sample(
    task: NthFarthest, key: jax.Array, indices: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns inputs `[k, b, d + 3k]` and labels `[b]`."""
  inputs, labels = jax.vmap(task.sample)(training.example_keys(key, indices))
  return jnp.swapaxes(inputs, 0, 1), labels


def _score(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the loss, and for each example whether it is right, `[B]`."""
  chex.assert_rank([logits, labels], [2, 1])
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  correct = jnp.argmax(logits, axis=1) == labels
  return jnp.mean(losses), correct.astype(losses.dtype)


def main():
  """Trains or evaluates."""
  learned, _ = experiment.train_or_evaluate(make_experiment)
  task, curriculum = nth_farthest_flags.make_task()
  attention = FLAGS.attention
  if experiment.trained():
    if FLAGS.curriculum:
      names = [str(stage) for stage in curriculum.stages]
      plots.curriculum_curve(FLAGS.workdir, "accuracy", names, task.plateau)
    else:
      plots.learning_curve(FLAGS.workdir, "accuracy", task.plateau)
    if FLAGS.core == "rmc":
      attention = pathlib.Path(FLAGS.workdir, "attention.png")
  if attention and multihost.is_leader():
    params, _ = experiment.load_params(jax.eval_shape(learned.init).params)
    plots.nth_farthest_attention(
        params, task, learned.network.apply.inspect, attention
    )


if __name__ == "__main__":
  experiment.run_program(main)
