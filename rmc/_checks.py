"""Checks of constructor arguments that the cores share."""


def at_least(least: int, **arguments: int):
  """Checks the sizes that a core is made of.

  Args:
    least: the smallest value allowed.
    **arguments: values by the name of the argument.

  Raises:
    ValueError: if a value is below that.
  """
  for argument, value in arguments.items():
    if value < least:
      raise ValueError(f"{argument} must be at least {least}, got {value}.")
