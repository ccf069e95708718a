"""Programs of the repository, run in this process: no second start of JAX."""

import ast
import contextlib
import io
import os
import pathlib
import sys
from unittest import mock

from absl import app
from absl.testing import flagsaver
import haiku as hk
import jax
import pytest


def exit_of(module, *arguments):
  """Runs what `python -m` would run of a program.

  Args:
    module: the program's module.
    *arguments: of its command line.

  Returns:
    The exit status, and what the program printed and reported as errors.
  """
  source = pathlib.Path(module.__file__).read_text(encoding="utf-8")
  *_, block = ast.parse(source).body  # if __name__ == "__main__"
  start = compile(ast.Module(block.body, []), module.__file__, "exec")
  argv = [module.__file__, *map(str, arguments)]
  out, err = io.StringIO(), io.StringIO()
  precision = jax.config.jax_default_matmul_precision
  app.define_help_flags()  # Or flagsaver would forget them.
  with (
      flagsaver.flagsaver(),
      mock.patch.object(sys, "argv", argv),
      mock.patch.dict(os.environ),
      contextlib.redirect_stdout(out),
      contextlib.redirect_stderr(err),
      jax.numpy_dtype_promotion("standard"),  # Optax divides by a mixture.
      pytest.raises(SystemExit) as ended,
  ):
    try:
      exec(start, vars(module))
    finally:
      jax.config.update("jax_default_matmul_precision", precision)
      hk.mixed_precision.clear_policy(hk.Linear)
  return ended.value.code or 0, out.getvalue(), err.getvalue()
