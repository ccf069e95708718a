"""A table of runs: what each came to, and how soon."""

import math
import pathlib
import statistics
from typing import Any

from absl import flags
import tabulate

from rmc import training
from scripts.lib import program, runs

FLAGS = flags.FLAGS

flags.DEFINE_list(
    "metrics",
    [],
    "Which last metrics of the runs to show; none: what evaluations found, "
    "where all runs have it.",
)
program.define_alias("figures", "metrics")
flags.DEFINE_list(
    "reach",
    [],
    "METRIC:VALUE, ...: also show after how many updates and seconds a report "
    "first had the metric at the value or above; a loss or a perplexity, at "
    "the value or below.",
)

_EVALUATED = ("eval_", "valid_", "test_")


def parse_reach(names: list[str]) -> list[tuple[str, float]]:
  """Returns metrics and values for what --reach says.

  Raises:
    UsageError: if it cannot be read.
  """
  reach = []
  for name in names:
    metric, _, value = name.partition(":")
    try:
      reach.append((metric, float(value)))
      if not math.isfinite(reach[-1][1]):
        raise ValueError
    except ValueError:
      raise program.UsageError(
          f"--reach={','.join(names)} must be METRIC:VALUE, as in "
          "eval_accuracy:0.9"
      ) from None
  return reach


def table(
    workdirs: list[pathlib.Path],
    names: list[str],
    reach: list[tuple[str, float]],
) -> str:
  """Compares runs.

  Args:
    workdirs: directories of runs.
    names: last metrics to show; if none, those of evaluations that all runs
      have, without their standard errors.
    reach: metrics and values to be reached.

  Returns:
    A table in Markdown, a row for each group of runs.

  Raises:
    UsageError: if a run has no report or no such metric, or no run ever
      reported one that is to be reached.
  """
  with program.usage_errors():
    found = {run: runs.summary(run) for run in workdirs}
  reported = {
      name
      for run in workdirs
      for record in training.read_metrics(run)
      for name in record
  }
  for name, _ in reach:
    if name not in reported:
      raise program.UsageError(
          f"--reach: no run has reported {name}; there are {sorted(reported)}"
      )
  names = names or [
      name
      for name in found[workdirs[0]]
      if name.startswith(_EVALUATED)
      and not name.endswith("_standard_error")
      and all(name in summary for summary in found.values())
  ]
  rows = []
  for label, seeds in runs.group(workdirs).items():
    summaries = [found[run] for run in seeds]
    row = {
        "run": label,
        "seeds": len(seeds),
        "parameters": _show(summaries, "parameters"),
        "updates": _show(summaries, "step"),
        "updates/s": _show(summaries, "steps_per_second"),
        "seconds": _show(summaries, "wall_seconds"),
    }
    for name in names:
      for run, summary in zip(seeds, summaries, strict=True):
        if name not in summary:
          raise program.UsageError(
              f"--metrics: {run} has no {name}; there are {sorted(summary)}"
          )
      row[name] = _show(summaries, name)
    for name, value in reach:
      firsts = [_first(run, name, value) for run in seeds]
      for unit, values in zip(
          ("updates", "seconds"), zip(*firsts, strict=True), strict=True
      ):
        row[f"{unit} to {name} {value:g}"] = _show_reached(values)
    rows.append(row)
  return tabulate.tabulate(
      rows, headers="keys", tablefmt="github", disable_numparse=True
  )


def _first(
    workdir: pathlib.Path, name: str, value: float
) -> tuple[float, float]:
  """Returns updates and seconds at the first such report, or infinity."""
  sign = -1 if "loss" in name or "perplexity" in name else 1
  for record in training.read_metrics(workdir):
    if name in record and sign * record[name] >= sign * value:
      return record["step"], record["wall_seconds"]
  return math.inf, math.inf


def _show(summaries: list[dict[str, Any]], name: str) -> str:
  """Shows the mean and its standard error; nothing if a run has no such.

  Of words, as the device's, it shows all that there are.
  """
  values = [summary[name] for summary in summaries if name in summary]
  if len(values) < len(summaries):
    return ""
  if any(isinstance(value, str) for value in values):
    return ", ".join(sorted(set(map(str, values))))
  mean = statistics.mean(values)
  text = f"{mean:,.0f}" if abs(mean) >= 1000 else f"{mean:.4g}"
  if len(values) > 1 and isinstance(values[0], float):
    error = math.nan
    if all(map(math.isfinite, values)):
      error = statistics.stdev(values) / math.sqrt(len(values))
    text += f" ± {error:.2g}"
  return text


def _show_reached(values: tuple[float, ...]) -> str:
  """Shows least and most, and how many never did."""
  reached = [value for value in values if math.isfinite(value)]
  if not reached:
    return "never"
  least, most = min(reached), max(reached)
  text = f"{least:,.0f}" + (f" to {most:,.0f}" if most > least else "")
  if len(reached) < len(values):
    text += f" ({len(reached)} of {len(values)})"
  return text
