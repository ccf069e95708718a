"""An agent that a training program left in `--workdir`, or in `--weights`.

Its flags, which a program that shows the agent adopts, are those of all games,
and `--eval_seed`.
"""

import types
from typing import Any

from absl import flags
import haiku as hk
import jax

from scripts.lib import (
  agent_flags,
  box_world_flags,
  experiment,
  mini_pacman_flags,
  program,
  run_flags,
)
from scripts.lib.agent import Agent

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(box_world_flags)
flags.adopt_module_key_flags(mini_pacman_flags)

flags.DEFINE_integer(
    "eval_seed",
    0,
    "Seed of the levels.",
    lower_bound=0,
    upper_bound=2**32 - 1,  # JAX keeps no more of it.
)

# By a flag that runs of this game alone record.
_GAMES = {"--grid_size": box_world_flags, "--rules": mini_pacman_flags}


def load_agent() -> tuple[Agent, hk.Params, int]:
  """Returns the agent that was trained, its parameters, and their step.

  Raises:
    UsageError: if no agent was trained there, or not with these flags.
  """
  with program.usage_errors():
    env = _game().make_environment()
  agent = agent_flags.make_agent(env)
  expected = jax.eval_shape(agent.init, jax.random.key(0))
  return agent, *experiment.load_params(expected)


def overruled() -> dict[str, Any]:
  """Returns the flags that are other than those of the run, by name."""
  saved = run_flags.saved_flags()
  return {
      flag.name: flag.value
      for flag in FLAGS.get_key_flags_for_module(_game())
      if not flag.using_default_value
      and flag.serialize() not in saved
      and flag.name not in run_flags.CHANGEABLE_ON_RESUME
  }


def _game() -> types.ModuleType:
  """Returns the flags of the game that the agent has learnt.

  Raises:
    UsageError: if there is none, or a flag is given that only another game has.
  """
  names = {line.partition("=")[0] for line in run_flags.saved_flags()}
  found = [game for name, game in _GAMES.items() if name in names]
  if not found:
    raise program.UsageError(
        f"{run_flags.origin()} must be of a run of train_box_world or "
        "train_mini_pacman"
    )
  for other in {*_GAMES.values()} - {found[0]}:
    for flag in FLAGS.flags_by_module_dict()[other.__name__]:
      if flag.present:
        raise program.UsageError(
            f"{flag.serialize()} is no flag of a run like the one in "
            f"{run_flags.origin()}"
        )
  return found[0]

