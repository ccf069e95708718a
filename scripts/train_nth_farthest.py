"""Trains a recurrent core on Nth Farthest (section 4.1 of the paper).

  python -m scripts.train_nth_farthest --workdir=runs/nth_farthest \
      --flagfile=scripts/presets/nth_farthest_demo.flags

Run the same command again to go on after an interruption. Afterwards the
directory holds metrics.jsonl, summary.json, checkpoints, learning_curve.png
and, for the RMC, attention.png. From a checkpoint the latter is drawn by

  python -m scripts.train_nth_farthest --workdir=runs/nth_farthest \
      --mode=eval --attention=attention.png
"""

import math
import pathlib

from absl import flags
import chex
import haiku as hk
import jax
import jax.numpy as jnp
import optax

import rmc
from rmc import training
from rmc.training import multihost
from scripts.lib import core_flags, plots, run_flags
from tasks.nth_farthest import (
  ORDERS,
  Curriculum,
  NthFarthest,
  parse_stages,
)

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(run_flags)
flags.adopt_module_key_flags(core_flags)

flags.DEFINE_integer("num_objects", 8, "Objects of a sequence.")
flags.DEFINE_integer("num_features", 16, "Coordinates of an object.")
flags.DEFINE_enum(
    "order",
    "farthest",
    ORDERS,
    "Whether rank n counts from the farthest object, as in the paper, or from "
    "the nearest, as in the released Sonnet code.",
)
flags.DEFINE_list(
    "curriculum",
    [],
    "What to learn before the whole task: OBJECTSxFEATURES[xLABELS]"
    "[@THRESHOLD], ...; as in 3x2,3x4,4x4x8@0.7. Without LABELS there are as "
    "many as objects. All stages have the shapes of the whole task, on which "
    "the run is evaluated.",
)
flags.DEFINE_float(
    "curriculum_threshold",
    0.9,
    "The next stage begins when the accuracy on the present one, a running "
    "mean of some 20 updates that starts from 0, is this much, unless the "
    "stage has a threshold of its own.",
)
flags.DEFINE_float(
    "curriculum_review",
    0.0,
    "Share of examples drawn from the stages before the present one.",
)
flags.DEFINE_integer(
    "eval_examples",
    10_000,
    "Fresh examples of an evaluation.",
    lower_bound=2,
)
flags.DEFINE_string(
    "attention",
    None,
    "--mode=eval, RMC: draw there what the slots attend to, as is drawn in "
    "--workdir after training.",
)

_EVAL_BATCH = 1000


def main():
  """Trains or evaluates."""
  parallel = run_flags.make_parallel()
  if FLAGS.attention and (FLAGS.mode, FLAGS.core) != ("eval", "rmc"):
    raise run_flags.UsageError(
        f"--attention={FLAGS.attention} goes with --mode=eval and --core=rmc"
    )
  if FLAGS.attention:
    with run_flags.usage_errors():
      plots.check_path(FLAGS.attention)
  with run_flags.usage_errors():
    task = NthFarthest(FLAGS.num_objects, FLAGS.num_features, FLAGS.order)
    curriculum = Curriculum(
        task,
        parse_stages(FLAGS.curriculum),
        FLAGS.curriculum_threshold,
        FLAGS.curriculum_review,
    )
  mlp_sizes = core_flags.mlp_sizes()
  init_key, data_key, eval_key = jax.random.split(jax.random.key(FLAGS.seed), 3)

  def classifier():
    return rmc.SequenceClassifier(
        core_flags.make_core,
        task.num_objects,
        mlp_sizes,
        **core_flags.unroll_options(),
    )

  def sample(key, indices):
    """Returns inputs `[k, b, d + 3k]` and labels `[b]`."""
    inputs, labels = jax.vmap(task.sample)(training.example_keys(key, indices))
    return jnp.swapaxes(inputs, 0, 1), labels

  network = hk.without_apply_rng(hk.transform(lambda *x: classifier()(*x)))
  optimizer = run_flags.make_optimizer()
  example = jnp.zeros((task.num_objects, 1, task.step_size))
  with run_flags.usage_errors():
    jax.eval_shape(network.init, init_key, example)

  def init():
    params = jax.jit(network.init)(init_key, example)
    carry = curriculum.initial(FLAGS.batch_size) if FLAGS.curriculum else None
    return training.init_state(params, optimizer, data_key, carry)

  def loss_fn(params, indices, carry, key):
    if FLAGS.curriculum:
      return stage_loss_fn(params, indices, carry, key)
    inputs, labels = sample(key, indices)
    loss, correct = _score(network.apply(params, inputs), labels)
    return loss, ({"accuracy": jnp.mean(correct)}, carry)

  def stage_loss_fn(params, indices, progress, key):
    inputs, labels, stages, present = jax.vmap(
        curriculum.sample, in_axes=(0, None)
    )(training.example_keys(key, indices), progress.stage[0])
    logits = network.apply(
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

  @jax.jit
  def eval_figures(params, key, indices):
    inputs, labels = sample(key, indices)
    loss, correct = _score(network.apply(params, inputs), labels)
    return loss, jnp.sum(correct)

  def evaluate(state):
    """Draws examples that depend on the step, apart from those of training."""
    key = jax.random.fold_in(eval_key, state.step)
    total_loss = total_correct = 0.0
    for first in range(0, FLAGS.eval_examples, _EVAL_BATCH):
      size = min(_EVAL_BATCH, FLAGS.eval_examples - first)
      indices = jnp.arange(first, first + size, dtype=jnp.int32)
      loss, correct = eval_figures(state.params, key, indices)
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

  def draw_attention(path):
    inspect = hk.transform(lambda x: classifier().inspect(x))
    plots.nth_farthest_attention(
        FLAGS.workdir, task, hk.without_apply_rng(inspect).apply, path
    )

  run_flags.train_or_evaluate(
      parallel,
      init,
      loss_fn,
      optimizer,
      evaluate,
      free_flags=("eval_examples", "attention"),
  )
  if FLAGS.mode == "train" and multihost.is_leader():
    if FLAGS.curriculum:
      names = [str(stage) for stage in curriculum.stages]
      plots.curriculum_curve(FLAGS.workdir, "accuracy", names, task.plateau)
    else:
      plots.learning_curve(FLAGS.workdir, "accuracy", task.plateau)
    if FLAGS.core == "rmc":
      draw_attention(pathlib.Path(FLAGS.workdir, "attention.png"))
  elif FLAGS.attention and multihost.is_leader():
    draw_attention(FLAGS.attention)


def _score(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the loss, and for each example whether it is right, `[B]`."""
  chex.assert_rank([logits, labels], [2, 1])
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  correct = jnp.argmax(logits, axis=1) == labels
  return jnp.mean(losses), correct.astype(losses.dtype)


if __name__ == "__main__":
  run_flags.run(main)
