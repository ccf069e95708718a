"""The flag that says how a benchmark prints its rows."""

from absl import flags

JSON = flags.DEFINE_boolean(
    "json", False, "Print a list of rows in JSON rather than a table."
)
