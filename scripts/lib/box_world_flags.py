"""Flags of BoxWorld, and the environment that they ask for."""

from absl import flags

from scripts.lib import agent_flags, program
from tasks.environments import box_world

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(agent_flags)

flags.DEFINE_integer("grid_size", 12, "Side of the room without its wall.")
flags.DEFINE_list(
    "solution_length",
    ["1", "2", "3", "4", "5"],
    "Numbers of boxes on the way to the gem; a level has one of them.",
)
flags.DEFINE_list(
    "num_forward",
    ["0", "1", "2", "3", "4", "5"],
    "Numbers of distractor branches; a level has one of them.",
)
flags.DEFINE_integer("branch_length", 1, "Boxes of a distractor branch.")
flags.DEFINE_integer(
    "max_steps",
    120,
    "An episode ends with the step after this many.",
    lower_bound=1,
)


def make_environment() -> box_world.BoxWorld:
  """Returns the environment that the flags ask for."""
  return box_world.BoxWorld(
      grid_size=FLAGS.grid_size,
      solution_length=program.positive_integers("solution_length"),
      num_forward=program.positive_integers("num_forward", or_zero=True),
      branch_length=FLAGS.branch_length,
      max_steps=FLAGS.max_steps,
      view=FLAGS.view,
  )
