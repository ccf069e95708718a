"""Trains an agent on Mini Pacman (section 4.2 of the paper).

  python -m scripts.train_mini_pacman --workdir=runs/mini_pacman \
      --flagfile=scripts/presets/mini_pacman/demo.flags

Run the same command again to go on after an interruption. The directory then
holds metrics.jsonl, summary.json, checkpoints and learning_curve.png;
`scripts.evaluate_agent` and `scripts.render_agent` show what was learnt.
"""

from absl import flags

from rmc import training
from scripts.lib import agent_flags, experiment, mini_pacman_flags

flags.adopt_module_key_flags(mini_pacman_flags)


def make_experiment(parallel: training.DataParallel) -> experiment.Experiment:
  """Returns the experiment that the flags ask for.

  Args:
    parallel: how an update is split over devices.

  Raises:
    UsageError: if the flags do not go together.
  """
  del parallel  # The loss needs no mean over devices.
  return agent_flags.make_experiment(mini_pacman_flags.make_environment)


def main():
  """Trains or evaluates."""
  _, summary = experiment.train_or_evaluate(make_experiment)
  if experiment.trained():
    agent_flags.report(summary)


if __name__ == "__main__":
  experiment.run_program(main)
