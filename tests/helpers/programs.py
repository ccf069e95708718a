"""Programs of the repository, run as a person runs them, and their flags."""

import contextlib
import pathlib
import subprocess
import sys

from absl.testing import flagsaver

from scripts.lib import program

ROOT = pathlib.Path(__file__).parents[2]


def run(module, *arguments, **options):
  """Runs `python -m module` by itself.

  Args:
    module: as in `scripts.train_nth_farthest`.
    *arguments: of its command line.
    **options: of `subprocess.run`.

  Returns:
    The finished process, with what it printed as text.
  """
  return subprocess.run(
      [sys.executable, "-m", module, *map(str, arguments)],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
      **options,
  )


@contextlib.contextmanager
def parsed(*arguments):
  """Parses flags in this process, and forgets them afterwards."""
  with flagsaver.flagsaver():
    program.parse(["program", *map(str, arguments)])
    yield
