"""Programs of the repository without an interpreter's start for each run.

An import takes seconds, so most tests run a program in their own process, with
`exit_of`. Programs whose flags have the names of other programs' flags cannot
be imported beside those. `own_process` runs them in one process of their own.
"""

import ast
from collections.abc import Callable, Iterator
import contextlib
import importlib
import inspect
import io
import json
import os
import subprocess
import sys
from unittest import mock

from absl.testing import flagsaver
import haiku as hk
import jax

from tests.helpers.programs import ROOT

Exit = tuple[int, str, str]


def exit_of(module, *arguments, stdin="") -> Exit:
  """Runs in this process what `python -m module` runs.

  Args:
    module: the program, whose last statement is `if __name__ == "__main__"`.
    *arguments: of its command line.
    stdin: what it reads there.

  Returns:
    The exit status, and what it printed on stdout and stderr.
  """
  block = ast.parse(inspect.getsource(module)).body[-1]
  start = compile(ast.Module(block.body, []), module.__file__, "exec")
  out, err = io.StringIO(), io.StringIO()
  precision = jax.config.jax_default_matmul_precision
  status = None
  try:
    with (
        mock.patch.object(sys, "argv", [module.__file__, *map(str, arguments)]),
        mock.patch.object(sys, "stdin", io.StringIO(stdin)),
        mock.patch.dict(os.environ),
        flagsaver.flagsaver(),
        jax.numpy_dtype_promotion("standard"),  # Optax asks for it.
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
      exec(start, vars(module))
  except SystemExit as error:
    status = error.code
  finally:
    jax.config.update("jax_default_matmul_precision", precision)
    hk.mixed_precision.clear_policy(hk.Linear)
  return status or 0, out.getvalue(), err.getvalue()


@contextlib.contextmanager
def own_process(module: str) -> Iterator[Callable[..., Exit]]:
  """Starts a process in which a program is run as often as one likes.

  Args:
    module: its name, as in `scripts.play`.

  Yields:
    `exit_of` there, without its first argument.
  """
  command = [sys.executable, "-m", "tests.helpers.in_process", module]
  with subprocess.Popen(
      command,
      cwd=ROOT,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
  ) as process:

    def exit_there(*arguments, stdin=""):
      request = [[*map(str, arguments)], stdin]
      print(json.dumps(request), file=process.stdin, flush=True)
      return tuple(json.loads(process.stdout.readline()))

    yield exit_there  # The process ends when its input is closed.


def _serve(requests, replies):
  module = importlib.import_module(sys.argv[1])
  for line in requests:
    arguments, stdin = json.loads(line)
    found = exit_of(module, *arguments, stdin=stdin)
    print(json.dumps(found), file=replies, flush=True)


if __name__ == "__main__":
  _serve(sys.stdin, sys.stdout)
