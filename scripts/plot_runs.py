"""Draws several runs into one plot.

  python -m scripts.plot_runs runs/demo/*_seed* --output=curves.png
  python -m scripts.plot_runs runs/lm/* --kind=reset_interval \
      --output=reset_interval.png
  python -m scripts.plot_runs runs/grid/* --kind=flags --metric=eval_accuracy \
      --across=mem_slots --by=num_heads --output=grid.png
  python -m scripts.plot_runs runs/mini_pacman/* --metric=return \
      --x=environment_steps \
      --reference=results/reinforcement_learning/paper_fig10.json

Runs whose flags differ in the seed alone become one curve, or one point of
--kind=flags: their mean, with the spread from the least to the most.
"""

from collections.abc import Sequence
import json
import pathlib

from absl import flags

from rmc import training
from scripts.lib import plots, program, runs

FLAGS = flags.FLAGS

flags.DEFINE_string("output", "learning_curves.png", "The picture to write.")
flags.DEFINE_enum(
    "kind",
    "learning_curves",
    ["learning_curves", "reset_interval", "flags", "unroll"],
    "learning_curves: a metric of the reports against updates. "
    "reset_interval: for language models trained with --eval_reset_intervals, "
    "by how much the test perplexity rises if the state is reset (Fig. 12 of "
    "the paper); unroll is its old name. flags: a last metric against the "
    "values of a flag of the runs.",
)
flags.DEFINE_string(
    "metric", "accuracy", "learning_curves, flags: which metric."
)
flags.DEFINE_string("across", None, "flags: the flag of the runs to go along.")
flags.DEFINE_list(
    "by", [], "flags: other flags of the runs, each setting of them a line."
)
flags.DEFINE_enum(
    "x",
    "step",
    ["step", "environment_steps"],
    "learning_curves: what the metric is drawn against; step: updates.",
)
flags.DEFINE_string(
    "reference",
    None,
    "learning_curves: JSON file of points to draw too, {label: [[x, y], ...]}; "
    "x is then logarithmic, for they may lie far beyond the runs.",
)


def main(arguments: list[str]):
  """Draws."""
  workdirs = [pathlib.Path(path) for path in arguments]
  if not workdirs:
    raise program.UsageError("name at least one directory of a run")
  for workdir in workdirs:
    if not training.read_metrics(workdir):
      raise program.UsageError(f"{workdir} has no report of a run")
  if (FLAGS.kind == "flags") != bool(FLAGS.across) or (
      FLAGS.by and not FLAGS.across
  ):
    raise program.UsageError(
        "--kind=flags must come with --across, and with it alone --across and "
        "--by"
    )
  for name in ("x", "reference"):
    if FLAGS.kind != "learning_curves" and FLAGS[name].present:
      raise program.UsageError(f"--{name} is for --kind=learning_curves")
  resets = FLAGS.kind in ("reset_interval", "unroll")
  if resets and FLAGS["metric"].present:
    raise program.UsageError(f"--metric is not for --kind={FLAGS.kind}")
  groups = runs.group(workdirs)
  with program.usage_errors():
    plots.check_path(FLAGS.output)
    if FLAGS.kind == "flags":
      plots.metric_by_flags(
          workdirs, FLAGS.metric, FLAGS.across, FLAGS.by, FLAGS.output
      )
    elif resets:
      plots.perplexity_by_reset_interval(groups, FLAGS.output)
    else:
      plots.learning_curves(
          groups,
          FLAGS.metric,
          FLAGS.output,
          x=FLAGS.x,
          reference=read_points(FLAGS.reference) if FLAGS.reference else {},
      )
  print(FLAGS.output)


def read_points(path: str) -> dict[str, list[Sequence[float]]]:
  """Reads points, `(x, y)`, by label.

  Args:
    path: of a JSON file, `{label: [[x, y], ...]}`.

  Raises:
    UsageError: if it is anything else.
  """
  try:
    points = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    return {
        label: [(float(x), float(y)) for x, y in pairs]
        for label, pairs in points.items()
    }
  except (AttributeError, OSError, TypeError, ValueError) as error:
    raise program.UsageError(
        f"--reference={path} must be a JSON file {{label: [[x, y], ...]}}: "
        f"{error}"
    ) from error


if __name__ == "__main__":
  program.run(main, takes_arguments=True)
