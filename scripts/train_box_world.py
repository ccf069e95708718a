"""Trains an agent on BoxWorld (section 4.2 of the paper).

  python -m scripts.train_box_world --workdir=runs/box_world \
      --flagfile=scripts/presets/box_world/demo.flags

Run the same command again to go on after an interruption. The directory then
holds metrics.jsonl, summary.json, checkpoints and learning_curve.png;
`scripts.evaluate_agent` and `scripts.render_agent` show what was learnt. The
metric `solved` is the share of episodes in which the gem was taken, `solved_3`
that share of the episodes with 3 boxes on the way to it.
"""

from absl import flags

from rmc import training
from scripts.lib import agent_flags, box_world_flags, experiment

flags.adopt_module_key_flags(box_world_flags)


def make_experiment(parallel: training.DataParallel) -> experiment.Experiment:
  """Returns the experiment that the flags ask for.

  Args:
    parallel: how an update is split over devices.

  Raises:
    UsageError: if the flags do not go together.
  """
  del parallel  # The loss needs no mean over devices.
  return agent_flags.make_experiment(box_world_flags.make_environment)


def main():
  """Trains or evaluates."""
  _, summary = experiment.train_or_evaluate(make_experiment)
  if experiment.trained():
    agent_flags.report(summary)


if __name__ == "__main__":
  experiment.run_program(main)
