"""Flags of Nth Farthest, and the task and the network that they ask for."""

from collections.abc import Callable
from typing import NamedTuple

from absl import flags
import haiku as hk
import jax

import rmc
from scripts.lib import core_flags, cores, optimizer_flags, program, run_flags
from tasks.nth_farthest import (
  ORDERS,
  NthFarthest,
  StageCurriculum,
  parse_stages,
)

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(run_flags)
flags.adopt_module_key_flags(optimizer_flags)
flags.adopt_module_key_flags(cores)

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

run_flags.NETWORK_FLAGS.add("mlp_sizes")


def make_task() -> tuple[NthFarthest, StageCurriculum]:
  """Returns the task and the curriculum that the flags ask for.

  Raises:
    UsageError: if a flag is wrong.
  """
  with program.usage_errors():
    task = NthFarthest(FLAGS.num_objects, FLAGS.num_features, FLAGS.order)
    curriculum = StageCurriculum(
        task,
        parse_stages(FLAGS.curriculum),
        FLAGS.curriculum_threshold,
        FLAGS.curriculum_review,
    )
  return task, curriculum


class Apply(NamedTuple):
  """The network's functions, with its parameters before their arguments.

  Attributes:
    logits: `SequenceClassifier.__call__`.
    inspect: `SequenceClassifier.inspect`.
  """

  logits: Callable[..., jax.Array]
  inspect: Callable[..., tuple[jax.Array, rmc.StepInfo]]


def make_network(num_objects: int) -> hk.MultiTransformed:
  """Returns the network that the flags ask for; `apply` is an `Apply`."""
  mlp_sizes = core_flags.mlp_sizes()

  def build():
    model = rmc.SequenceClassifier(
        cores.make_core, num_objects, mlp_sizes, **core_flags.unroll_options()
    )
    return model, Apply(model, model.inspect)

  return hk.without_apply_rng(hk.multi_transform(build))
