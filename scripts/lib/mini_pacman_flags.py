"""Flags of Mini Pacman, and the environment that they ask for."""

import dataclasses

from absl import flags

from scripts.lib import agent_flags
from tasks.environments import mini_pacman

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(agent_flags)

flags.DEFINE_enum(
    "rules", "regular", list(mini_pacman.RULES), "The mode of the game."
)
flags.DEFINE_enum(
    "encoding",
    "rgb",
    ["rgb", "planes"],
    "What a cell shows: its colour, or a plane for each kind of thing.",
)
flags.DEFINE_integer(
    "frame_cap", 3000, "Steps after which an episode ends.", lower_bound=1
)


def make_environment() -> mini_pacman.MiniPacman:
  """Returns the environment that the flags ask for."""
  return mini_pacman.MiniPacman(
      dataclasses.replace(
          mini_pacman.RULES[FLAGS.rules], frame_cap=FLAGS.frame_cap
      ),
      view=FLAGS.view,
      encoding=FLAGS.encoding,
  )
