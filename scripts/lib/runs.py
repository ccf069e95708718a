"""What the files of runs say, for tables and plots."""

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
  by_flags = {}  # In any order, which says nothing.
  for workdir in workdirs:
    path = workdir / "flags.txt"
    lines = path.read_text().splitlines() if path.exists() else [str(workdir)]
    lines = [line for line in lines if not line.startswith("--seed=")]
    by_flags.setdefault(frozenset(lines), (lines, []))[1].append(workdir)
  shared = frozenset.intersection(*by_flags)
  return {
      " ".join(x.removeprefix("--") for x in lines if x not in shared)
      or same[0].name: same
      for lines, same in by_flags.values()
  }


def group_by(
    workdirs: list[pathlib.Path], names: list[str]
) -> dict[tuple[str, ...], list[pathlib.Path]]:
  """Groups runs by the values of some flags.

  Args:
    workdirs: directories of runs.
    names: of the flags.

  Returns:
    The directories of each group, by the flags' values in the order of `names`.

  Raises:
    ValueError: if a run does not say one of the flags, or two runs differ in
      more than these and the seed.
  """
  groups, others = {}, {}
  for workdir in workdirs:
    path = workdir / "flags.txt"
    values, other = {}, []
    for line in path.read_text().splitlines():
      name, equals, value = line.removeprefix("--").partition("=")
      if not equals:  # A boolean flag, --name or --noname.
        value = str(name in names).lower()
        name = name if name in names else name.removeprefix("no")
      if name in names:
        values[name] = value
      elif name != "seed":
        other.append(line)
    for name in names:
      if name not in values:
        raise ValueError(f"{path} has no line --{name}=")
    groups.setdefault(tuple(values[x] for x in names), []).append(workdir)
    others[workdir] = set(other)
    difference = others[workdirs[0]] ^ others[workdir]
    if difference:
      raise ValueError(
          f"{workdirs[0]} and {workdir} differ in more than --seed and "
          f"{' and '.join(f'--{name}' for name in names)}: "
          f"{' '.join(sorted(difference))}"
      )
  return groups


def summary(workdir: pathlib.Path) -> dict[str, Any]:
  """Returns the last metrics; of a run that was stopped there are fewer.

  The means of `evaluate_agent`'s last evaluation with the flags of the run are
  among them, as in `greedy_return`, if it is of the last update.

  Args:
    workdir: the run's directory.

  Raises:
    ValueError: if there is no report.
  """
  last = {}
  path = workdir / "summary.json"
  if path.exists():
    last = _parse(path, path.read_text())
  else:
    for record in training.read_metrics(workdir):
      last |= record
  if "step" not in last:
    raise ValueError(f"{workdir} has no report of a run")
  path = workdir / "evaluations.jsonl"
  for line in path.read_text().splitlines() if path.exists() else ():
    evaluation = _parse(path, line)
    if evaluation["step"] == last["step"] and not evaluation["overruled"]:
      for policy in ("sampled", "greedy"):
        for name, metric in evaluation[policy].items():
          last[f"{policy}_{name}"] = metric["mean"]
  return last


def _parse(path: pathlib.Path, text: str) -> dict[str, Any]:
  try:
    return json.loads(text)
  except ValueError as error:
    raise ValueError(f"{path} is damaged: {error}") from error
