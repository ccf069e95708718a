"""Flags of Learning to Execute, and the network that they ask for."""

from collections.abc import Callable
from typing import NamedTuple

from absl import flags
import haiku as hk
import jax
import jax.numpy as jnp

import rmc
from scripts.lib import core_flags, cores, optimizer_flags, program, run_flags
from tasks import learn_to_execute
from tasks.learn_to_execute import LearnToExecute

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(run_flags)
flags.adopt_module_key_flags(optimizer_flags)
flags.adopt_module_key_flags(cores)

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

run_flags.NETWORK_FLAGS.update(
    ("by_token", "decoder", "share_core", "mlp_sizes")
)


def make_task() -> LearnToExecute:
  """Returns the task that the flags ask for.

  Raises:
    UsageError: if a flag is wrong.
  """
  with program.usage_errors():
    return LearnToExecute(
        FLAGS.task, FLAGS.length, FLAGS.nesting, FLAGS.by_token
    )


def _make_core() -> hk.RNNCore:
  """Returns the core of the flags, in as many layers as its entry says."""
  layers = cores.CORES[FLAGS.core].seq2seq_layers
  if layers == 1:
    return cores.make_core()
  return hk.deep_rnn_with_skip_connections(
      [cores.make_core() for _ in range(layers)]
  )


class Apply(NamedTuple):
  """The network's functions, `(params, batch) -> logits [T', B, V]`.

  Attributes:
    teach: in training.
    answer: in evaluation.
  """

  teach: Callable[..., jax.Array]
  answer: Callable[..., jax.Array]


def make_network(task: LearnToExecute) -> hk.MultiTransformed:
  """Returns the network of the flags; `apply` is an `Apply`."""
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

    return teach, Apply(teach, answer)

  return hk.without_apply_rng(hk.multi_transform(build))
