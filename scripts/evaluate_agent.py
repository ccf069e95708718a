"""Plays what `train_mini_pacman` or `train_box_world` trained, and counts.

  python -m scripts.evaluate_agent --workdir=runs/box_world

Plays --eval_episodes episodes with the newest checkpoint, once with actions
drawn from the policy and once with the likeliest, on the same levels, apart
from those of training; another --eval_seed plays others. Prints a table and,
unless the agent is in --weights, adds it as a line to evaluations.jsonl, with
the step of the checkpoint. The flags are those of the run; any that are given
overrule them, so that --solution_length=2 tests longer ways to the gem, and the
line names them.
"""

import json
import pathlib

from absl import flags
import tabulate

from scripts.lib import agent_flags, experiment, trained_agent
from scripts.lib.agent import describe

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(trained_agent)


def main():
  """Evaluates."""
  agent, params, step = trained_agent.load_agent()
  if FLAGS.workdir:  # What cannot be written to is found before it plays.
    path = pathlib.Path(FLAGS.workdir) / "evaluations.jsonl"
    path.open("a").close()
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
      for policy, metrics in policies.items()
      for name, numbers in metrics.items()
  ]
  headers = ["policy", "metric", "mean", "standard error", "episodes"]
  print(tabulate.tabulate(rows, headers, floatfmt=".4f"))
  if not FLAGS.workdir:
    return
  evaluation = {
      "step": step,
      "eval_seed": FLAGS.eval_seed,
      "overruled": trained_agent.overruled(),
  }
  for policy, metrics in policies.items():
    evaluation[policy] = {
        name: dict(zip(headers[2:], numbers, strict=True))
        for name, numbers in metrics.items()
    }
  with path.open("a", encoding="utf-8") as file:
    file.write(json.dumps(evaluation) + "\n")


if __name__ == "__main__":
  FLAGS.set_default("mode", "eval")  # Begins with the flags of the run.
  experiment.run_program(main)
