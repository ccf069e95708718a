"""What the files of runs say, for tables and figures."""

import json
import pathlib
from typing import Any

from rmc import training


def group(workdirs: list[pathlib.Path]) -> dict[str, list[pathlib.Path]]:
  """Groups runs by their flags, the seed aside.

  Args:
    workdirs: directories of runs.

  Returns:
    The directories of each group, by the flags in which the groups differ.
  """
  by_flags = {}
  for workdir in workdirs:
    path = workdir / "flags.txt"
    lines = path.read_text().splitlines() if path.exists() else [str(workdir)]
    key = tuple(line for line in lines if not line.startswith("--seed="))
    by_flags.setdefault(key, []).append(workdir)
  shared = set.intersection(*(set(key) for key in by_flags))
  return {
      " ".join(x.removeprefix("--") for x in key if x not in shared)
      or same[0].name: same
      for key, same in by_flags.items()
  }


def summary(workdir: pathlib.Path) -> dict[str, Any]:
  """Returns the last figures; of a run that was stopped there are fewer.

  Args:
    workdir: the run's directory.

  Raises:
    ValueError: if there is no report.
  """
  path = workdir / "summary.json"
  if path.exists():
    return json.loads(path.read_text())
  last = {}
  for record in training.read_metrics(workdir):
    last |= record
  if not last:
    raise ValueError(f"{workdir} has no report of a run")
  return last
