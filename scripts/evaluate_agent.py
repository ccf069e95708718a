"""Plays what `train_mini_pacman` or `train_box_world` trained, and counts.

  python -m scripts.evaluate_agent --workdir=runs/box_world

Plays --eval_episodes episodes with the newest checkpoint, once with actions
drawn from the policy and once with the likeliest, on the same levels, apart
from those of training; another --eval_seed plays others. Prints a table and
adds it as a line to evaluations.jsonl, with the step of the checkpoint. The
flags are those of the run; any that are given overrule them, so that
--solution_length=2 tests longer ways to the gem, and the line names them.
"""

import json
import pathlib
import types
from typing import Any

from absl import flags
import haiku as hk
import jax
import tabulate

from scripts import train_box_world, train_mini_pacman
from scripts.lib import agent_flags, run_flags
from scripts.lib.agent import Agent, describe

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(agent_flags)
flags.adopt_module_key_flags(train_box_world)
flags.adopt_module_key_flags(train_mini_pacman)

flags.DEFINE_integer(
    "eval_seed",
    0,
    "Seed of the levels.",
    lower_bound=0,
    upper_bound=2**32 - 1,  # JAX keeps no more of it.
)


def load_agent() -> tuple[Agent, hk.Params, int]:
  """Returns the agent of --workdir, its parameters, and their step.

  Raises:
    UsageError: if no agent was trained there, or not with these flags.
  """
  trainer = _trainer()
  with run_flags.usage_errors():
    env = trainer.make_environment()
  agent = agent_flags.make_agent(env)
  expected = jax.eval_shape(agent.init, jax.random.key(0))
  return agent, *run_flags.load_params(expected)


def overruled() -> dict[str, Any]:
  """Returns the flags that are other than those of the run, by name."""
  saved = _saved_flags()
  return {
      flag.name: flag.value
      for flag in FLAGS.get_key_flags_for_module(_trainer().__name__)
      if not flag.using_default_value
      and flag.serialize() not in saved
      and flag.name not in run_flags.FREE
  }


def _trainer() -> types.ModuleType:
  """Returns the program that trained what is in --workdir.

  Raises:
    UsageError: if none did, or a flag is given that only another one has.
  """
  names = {line.partition("=")[0] for line in _saved_flags()}
  trainers = {"--grid_size": train_box_world, "--rules": train_mini_pacman}
  found = [trainer for name, trainer in trainers.items() if name in names]
  if not found:
    raise run_flags.UsageError(
        f"--workdir={FLAGS.workdir} must be of a run of train_box_world or "
        "train_mini_pacman"
    )
  for other in {*trainers.values()} - {found[0]}:
    for flag in FLAGS.flags_by_module_dict()[other.__name__]:
      if flag.present:
        raise run_flags.UsageError(
            f"{flag.serialize()} is no flag of a run like the one in "
            f"--workdir={FLAGS.workdir}"
        )
  return found[0]


def _saved_flags() -> list[str]:
  """Returns the flags of the run in --workdir, as lines; none if it is none."""
  path = pathlib.Path(FLAGS.workdir) / "flags.txt"
  if not path.is_file():
    return []
  return path.read_text(encoding="utf-8").splitlines()


def main():
  """Evaluates."""
  agent, params, step = load_agent()
  path = pathlib.Path(FLAGS.workdir) / "evaluations.jsonl"
  path.open("a").close()  # What cannot be written to is found before it plays.
  key = agent_flags.held_out_key(FLAGS.eval_seed)
  policies = {
      policy: describe(
          agent.play(
              params, key, FLAGS.eval_episodes, greedy=policy == "greedy"
          )
      )
      for policy in ("sampled", "greedy")
  }
  rows = [
      (policy, name, *numbers)
      for policy, figures in policies.items()
      for name, numbers in figures.items()
  ]
  headers = ["policy", "figure", "mean", "standard error", "episodes"]
  print(tabulate.tabulate(rows, headers, floatfmt=".4f"))
  evaluation = {
      "step": step,
      "eval_seed": FLAGS.eval_seed,
      "overruled": overruled(),
  }
  for policy, figures in policies.items():
    evaluation[policy] = {
        name: dict(zip(headers[2:], numbers, strict=True))
        for name, numbers in figures.items()
    }
  with path.open("a", encoding="utf-8") as file:
    file.write(json.dumps(evaluation) + "\n")


if __name__ == "__main__":
  FLAGS.set_default("mode", "eval")  # Begins with the flags of the run.
  run_flags.run(main)
