"""Old names that keep working for one release."""

from typing import Any
import warnings


def warn_moved(old: str, new: str):
  """Warns whoever imports a module under its old name.

  Args:
    old: the module's old name.
    new: its new name.
  """
  warnings.warn(
      f"{old} has moved to {new}. The old name goes with the next release.",
      DeprecationWarning,
      stacklevel=3,  # Skips this function and the module that calls it.
  )


def renamed(module: str, names: dict[str, Any], name: str) -> Any:
  """Returns what an old name stands for, with a warning.

  A module with renamed objects calls it in its `__getattr__`.

  Args:
    module: the module's name.
    names: the renamed objects, by their old names.
    name: what was looked up.

  Returns:
    The object.

  Raises:
    AttributeError: if it is none of the old names.
  """
  if name not in names:
    raise AttributeError(f"module {module!r} has no attribute {name!r}")
  warnings.warn(
      f"{module}.{name} is now called {names[name].__name__}. The old name "
      "goes away with the next release.",
      DeprecationWarning,
      stacklevel=3,  # Skips this function and `__getattr__`.
  )
  return names[name]
