"""Plays what `train_mini_pacman` or `train_box_world` trained, and counts.

  python -m scripts.evaluate_agent --workdir=runs/box_world

Plays --eval_episodes episodes with the newest checkpoint, once with actions
drawn from the policy and once with the likeliest, on the same levels, apart
from those of training; another --eval_seed plays others. Prints a table and
writes it to evaluation.json. The flags are those of the run; any that are
given overrule them, so that --solution_length=6 tests longer ways to the gem.
"""

import json
import pathlib

from absl import flags
import haiku as hk
import jax
import tabulate

from rmc import training
from scripts import (
    agent_flags,
    common_flags,
    train_box_world,
    train_mini_pacman,
)
from scripts.agent import Agent, describe

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(agent_flags)
flags.adopt_module_key_flags(train_box_world)
flags.adopt_module_key_flags(train_mini_pacman)

flags.DEFINE_integer("eval_seed", 0, "Seed of the levels.", lower_bound=0)


def load_agent() -> tuple[Agent, hk.Params]:
  """Returns the agent of --workdir, and its parameters.

  Raises:
    UsageError: if no agent was trained there, or not with these flags.
  """
  if FLAGS.workdir is None:
    raise common_flags.UsageError("--workdir must name the directory of a run")
  saved = pathlib.Path(FLAGS.workdir) / "flags.txt"
  names = set()
  if saved.is_file():
    lines = saved.read_text(encoding="utf-8").split()
    names = {line.partition("=")[0] for line in lines}
  trainers = {"--grid_size": train_box_world, "--rules": train_mini_pacman}
  found = [trainer for name, trainer in trainers.items() if name in names]
  if not found:
    raise common_flags.UsageError(
        f"--workdir={FLAGS.workdir} must be of a run of train_box_world or "
        "train_mini_pacman"
    )
  with common_flags.usage_errors():
    env = found[0].make_environment()
  agent = agent_flags.make_agent(env)
  params = training.load_params(FLAGS.workdir)
  expected = jax.eval_shape(agent.init, jax.random.key(0))
  shapes = [
      {
          jax.tree_util.keystr(path): x.shape
          for path, x in jax.tree.leaves_with_path(tree)
      }
      for tree in (params, expected)
  ]
  if shapes[0] != shapes[1]:
    raise common_flags.UsageError(
        f"the network in --workdir={FLAGS.workdir} is not the one of the flags "
        "that were given"
    )
  return agent, params


def main():
  """Evaluates."""
  agent, params = load_agent()
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
  path = pathlib.Path(FLAGS.workdir) / "evaluation.json"
  evaluation = {"eval_seed": FLAGS.eval_seed}
  for policy, figures in policies.items():
    evaluation[policy] = {
        name: dict(zip(headers[2:], numbers, strict=True))
        for name, numbers in figures.items()
    }
  path.write_text(json.dumps(evaluation, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
  FLAGS.set_default("mode", "eval")  # Begins with the flags of the run.
  common_flags.run(main)
