"""What the benchmarks of training programs share."""

from collections.abc import Callable, Iterator
import contextlib
from typing import Any
from unittest import mock


class _Left(Exception):
  """Leaves a program."""


@contextlib.contextmanager
def instead_of(
    owner: Any, name: str, function: Callable[..., Any]
) -> Iterator[None]:
  """Runs a program up to a call, in the place of which it calls another.

  Args:
    owner: a module or an object.
    name: the name there of what is not to be called.
    function: takes the arguments of that call, whereupon the block ends.

  Yields:
    Nothing.
  """

  def call(*args, **options):
    function(*args, **options)
    raise _Left

  with contextlib.suppress(_Left), mock.patch.object(owner, name, call):
    yield
