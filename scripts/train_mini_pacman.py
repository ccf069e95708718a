"""Trains an agent on Mini Pacman (section 4.2 of the paper).

  python -m scripts.train_mini_pacman --workdir=runs/mini_pacman \
      --flagfile=scripts/presets/mini_pacman_demo.flags

Run the same command again to go on after an interruption. The directory then
holds metrics.jsonl, summary.json, checkpoints and learning_curve.png;
`scripts.evaluate_agent` and `scripts.render_agent` show what was learnt.
"""

import dataclasses

from absl import flags

from scripts.lib import agent_flags, run_flags
from tasks import mini_pacman

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


def main():
  """Trains or evaluates."""
  agent_flags.train(make_environment)


if __name__ == "__main__":
  run_flags.run(main)
