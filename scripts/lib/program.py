"""How a program starts and ends: its flags, and errors as one line."""

from collections.abc import Callable, Iterator, Sequence
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


def positive_integers(name: str, or_zero: bool = False) -> list[int]:
  """Returns the value of a list flag.

  Args:
    name: the flag's name.
    or_zero: whether 0 is allowed too.

  Raises:
    UsageError: if the value is anything else.
  """
  texts = FLAGS[name].value
  try:
    numbers = [int(text) for text in texts]
  except ValueError:
    numbers = [-1]
  if min(numbers, default=1) < (0 if or_zero else 1):
    raise UsageError(
        f"--{name}={','.join(texts)} must be positive integers"
        f"{' or 0' if or_zero else ''}, separated by commas"
    )
  return numbers


def define_alias(old: str, new: str):
  """Keeps the old name of a flag, for command lines and saved flags.

  The old name is a flag of no program, so that it is neither in `--help` nor
  among the flags that a run records.

  Args:
    old: the name that the flag had.
    new: the name that it has.
  """
  flags.DEFINE_alias(old, new, module_name="old names of flags")


def expand_flagfiles(arguments: Sequence[str]) -> list[str]:
  """Replaces each `--flagfile` by the flags that the file contains.

  absl does this too, but it looks for a file that another one names in the
  current directory. Here it is looked for beside the file that names it.

  Args:
    arguments: a command line without the program's name.

  Returns:
    The command line without `--flagfile`.

  Raises:
    UsageError: if a file cannot be read or includes itself.
  """
  expanded, rest = [], list(arguments)
  while rest:
    argument = rest.pop(0)
    if argument == "--":
      return [*expanded, argument, *rest]
    name, equals, path = argument.partition("=")
    if name not in ("--flagfile", "-flagfile"):
      expanded.append(argument)
      continue
    if not equals:
      if not rest:
        raise UsageError("--flagfile must name a file")
      path = rest.pop(0)
    if path:
      expanded += _read_flagfile(pathlib.Path(path).expanduser(), ())
  return expanded


def _read_flagfile(
    path: pathlib.Path, including: tuple[pathlib.Path, ...]
) -> list[str]:
  """Returns the flags in a file and in those that it includes."""
  path = path.resolve()  # Or ".." would make a file look like another.
  if path in including:
    raise UsageError(f"--flagfile={path} must not include itself")
  try:
    lines = path.read_text(encoding="utf-8").splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise UsageError(f"--flagfile={path} cannot be read: {error}") from error
  found = []
  for line in map(str.strip, lines):
    name, _, nested = line.partition("=")
    if name in ("--flagfile", "-flagfile"):
      nested = path.parent / pathlib.Path(nested).expanduser()
      found += _read_flagfile(nested, (*including, path))
    elif line and not line.startswith(("#", "//")):
      found.append(line)
  return found


def parse(argv: Sequence[str]) -> list[str]:
  """Parses a command line; returns the program's name and what is no flag."""
  return FLAGS([argv[0], *expand_flagfiles(argv[1:])])


def run(
    main: Callable[..., None],
    *,
    takes_arguments: bool = False,
    parse: Callable[[Sequence[str]], list[str]] = parse,
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
