"""How a program starts and ends: flags, then errors as one line."""

from collections.abc import Callable, Iterator
import contextlib
import pathlib
import signal
import sys
from typing import NoReturn

from absl import app, flags, logging

FLAGS = flags.FLAGS


class Failure(Exception):
  """The program cannot go on.

  Attributes:
    status: the exit status.
  """

  def __init__(self, message: str, status: int = 1):
    """Constructs a Failure.

    Args:
      message: what went wrong, for a person.
      status: the exit status.
    """
    super().__init__(message)
    self.status = status


class UsageError(Failure):
  """A flag or an argument is wrong; exit status 2."""

  def __init__(self, message: str):
    """Constructs a UsageError.

    Args:
      message: which flag or argument, its value, and what is allowed.
    """
    super().__init__(message, status=2)


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
  """Turns a ValueError about a setting into a usage error."""
  try:
    yield
  except ValueError as error:
    raise UsageError(str(error)) from error


def run(
    main: Callable[..., None],
    *,
    takes_arguments: bool = False,
    parse: Callable[[list[str]], list[str]] = FLAGS,
):
  """Runs a program.

  Args:
    main: the program.
    takes_arguments: whether there are arguments beside flags; `main` is then
      called with a list of them.
    parse: parses the command line and returns what is not a flag.
  """

  def parse_or_exit(argv):
    try:
      left = parse(argv)
      if len(left) > 1 and not takes_arguments:
        raise UsageError(f"{left[1]!r} is not a flag")
    except (flags.Error, Failure, OSError, UnicodeDecodeError) as error:
      _exit(error, 2)
    return left

  def guarded(argv):
    if not FLAGS["verbosity"].present:
      logging.set_verbosity(logging.WARNING)  # Libraries tell much at INFO.
    try:
      main(argv[1:]) if takes_arguments else main()
    except Failure as error:
      _exit(error, error.status)
    except OSError as error:
      _exit(error, 1)
    except KeyboardInterrupt:
      _exit(Failure("stopped"), 128 + signal.SIGINT)

  app.run(guarded, flags_parser=parse_or_exit)


def _exit(error: BaseException, status: int) -> NoReturn:
  name = pathlib.Path(sys.argv[0]).stem
  with contextlib.suppress(BrokenPipeError):  # Ctrl-C ended `| tee` too.
    print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
  sys.exit(status)
