"""Prints a table of runs: what each came to, and how soon.

  python -m scripts.compare_runs runs/sweep/* --metrics=eval_accuracy \
      --reach=eval_accuracy:0.55,eval_accuracy:0.91

Runs whose flags differ in the seed alone become one row, with the mean over
the seeds and, behind the sign, its standard error. (On a curriculum `accuracy`
is that of the stage, `eval_accuracy` that of the whole task.)
"""

import pathlib

from absl import flags

from scripts.lib import program, run_table

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(run_table)


def main(arguments: list[str]):
  """Prints the table."""
  workdirs = [pathlib.Path(path) for path in arguments]
  if not workdirs:
    raise program.UsageError("name at least one directory of a run")
  reach = run_table.parse_reach(FLAGS.reach)
  print(run_table.table(workdirs, FLAGS.metrics, reach))


if __name__ == "__main__":
  program.run(main, takes_arguments=True)
