"""Pictures of runs, made from the files that they leave.

Glossary of shapes:
  - T: steps of a sequence; k objects in Nth Farthest.
  - B: sequences.
  - H: attention heads.
  - N: memory slots.
"""

from collections.abc import Callable, Mapping, Sequence
import math
import pathlib
import textwrap
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from rmc import training
from scripts.lib import runs
from tasks.nth_farthest import NthFarthest

_DPI = 120


def learning_curve(
    workdir: str | pathlib.Path, metric: str, plateau: float | None = None
):
  """Draws a run's `learning_curve.png`.

  Args:
    workdir: the run's directory.
    metric: which metric of `metrics.jsonl` to draw.
    plateau: where to draw a dotted line, if anywhere.
  """
  path = pathlib.Path(workdir) / "learning_curve.png"
  learning_curves({path.parent.name: [workdir]}, metric, path, plateau)


def curriculum_curve(
    workdir: str | pathlib.Path,
    metric: str,
    stages: Sequence[str],
    plateau: float,
):
  """Draws the `learning_curve.png` of a run with a curriculum.

  One curve is of training, on the present stage, and one of evaluation, on the
  whole task.

  Args:
    workdir: the run's directory, whose reports tell the `stage` by number.
    metric: which metric to draw; `eval_...` is that of evaluation.
    stages: names of the stages, whose beginnings are marked.
    plateau: where to draw a dotted line, for the whole task.
  """
  marks = {}
  for step, stage in _curve(workdir, "stage").items():
    # A report between two stages holds a number between theirs.
    for number in range(len(marks), math.ceil(stage) + 1):
      marks.setdefault(number, step)
  figure, axes = _axes("updates", metric)
  _draw(axes, "present stage", [_curve(workdir, metric)])
  _draw(axes, "whole task", [_curve(workdir, f"eval_{metric}")])
  axes.axhline(
      plateau, color="grey", linestyle=":", label="plateau of the whole task"
  )
  for i, (number, step) in enumerate(marks.items()):
    axes.axvline(step, color="grey", linewidth=0.5)
    axes.text(
        step,
        0.02 + 0.11 * (i % 4),  # So that neighbours can be told apart.
        f" {stages[number]}",
        rotation=90,
        fontsize=7,
        transform=axes.get_xaxis_transform(),
    )
  _legend(axes)
  figure.savefig(pathlib.Path(workdir) / "learning_curve.png", dpi=_DPI)


def learning_curves(
    groups: Mapping[str, Sequence[str | pathlib.Path]],
    metric: str,
    path: str | pathlib.Path,
    plateau: float | None = None,
    x: str = "step",
    reference: Mapping[str, Sequence[Sequence[float]]] | None = None,
):
  """Draws a curve for each group of runs: mean, and spread from least to most.

  Args:
    groups: the directories of runs that differ only in their seed, by label.
    metric: which metric of `metrics.jsonl` to draw.
    path: where to write the picture.
    plateau: where to draw a dotted line, if anywhere.
    x: which metric of `metrics.jsonl` to draw it against.
    reference: points `(x, y)` to draw too, by label; x is then logarithmic.

  Raises:
    ValueError: if a run has no report with that metric.
  """
  names = {"step": "updates"}
  figure, axes = _axes(
      names.get(x, x.replace("_", " ")), metric.replace("_", " ")
  )
  for label, workdirs in groups.items():
    _draw(axes, label, [_curve(workdir, metric, x) for workdir in workdirs])
  for label, points in (reference or {}).items():
    at, values = zip(*points, strict=True)
    axes.plot(at, values, "o", fillstyle="none", label=label)
  if reference:
    axes.set_xscale("log")
  if plateau is not None:
    axes.axhline(plateau, color="grey", linestyle=":", label="plateau")
  _legend(axes)
  figure.savefig(path, dpi=_DPI)


def perplexity_by_reset_interval(
    groups: Mapping[str, Sequence[str | pathlib.Path]],
    path: str | pathlib.Path,
):
  """Draws what resetting the state costs a language model, as in Fig. 12.

  Args:
    groups: the directories of runs of `train_language_model` that differ only
      in their seed, by label; with `--eval_reset_intervals`.
    path: where to write the picture.

  Raises:
    ValueError: if a run has no report of it.
  """
  figure, axes = _axes(
      "words after which the state is reset",
      "test perplexity above that of a carried state",
  )
  lengths = set()
  for label, workdirs in groups.items():
    curves = [_increases(workdir) for workdir in workdirs]
    _draw(axes, label, curves, "o")
    lengths.update(*curves)
  axes.set_xscale("log")
  axes.minorticks_off()
  axes.set_xticks(sorted(lengths), sorted(lengths))
  _legend(axes)
  figure.savefig(path, dpi=_DPI)


def metric_by_flags(
    workdirs: Sequence[pathlib.Path],
    metric: str,
    across: str,
    by: Sequence[str],
    path: str | pathlib.Path,
):
  """Draws what runs came to against a flag: mean, and from least to most.

  Args:
    workdirs: the directories of runs that differ in these flags and the seed.
    metric: which last metric of the runs to draw.
    across: name of the flag along the axis, whose values stand side by side.
    by: names of flags with a line for each combination of their values.
    path: where to write the picture.

  Raises:
    ValueError: if a run has no such flag or metric, or differs in more.
  """
  cells = runs.group_by(workdirs, [across, *by])
  ticks = sorted({values[0] for values in cells}, key=_order)
  figure, axes = _axes(across, metric.replace("_", " "))
  lines = {values[1:] for values in cells}
  for own in sorted(lines, key=lambda values: [_order(x) for x in values]):
    at = [tick for tick in ticks if (tick, *own) in cells]
    points = [
        [_last(workdir, metric) for workdir in cells[tick, *own]] for tick in at
    ]
    means = np.array([np.mean(values) for values in points])
    axes.errorbar(
        [ticks.index(tick) for tick in at],
        means,
        # The mean of equal values may be off by their last digit.
        np.maximum(
            0,
            [
                means - [min(values) for values in points],
                [max(values) for values in points] - means,
            ],
        ),
        marker="o",
        capsize=3,
        label=" ".join(map("=".join, zip(by, own, strict=True)))
        or metric.replace("_", " "),
    )
  axes.set_xticks(range(len(ticks)), ticks)
  _legend(axes)
  figure.savefig(path, dpi=_DPI)


def nth_farthest_attention(
    params: hk.Params,
    task: NthFarthest,
    inspect: Callable[[Any, jax.Array], tuple[jax.Array, Any]],
    path: str | pathlib.Path,
):
  """Draws who attends to whom through time.

  As in figure 3 of the paper, there are three sequences, with the reference m
  shown last, first and in the middle. A row is a slot that attends; a column is
  a slot, or the input, that it attends to, averaged over heads. Of several
  blocks in a step the first is drawn.

  Args:
    params: the network's parameters.
    task: the task that the network has learnt.
    inspect: `(params, inputs [T, B, d + 3k]) -> (logits, StepInfo)`.
    path: where to write the picture.
  """
  k = task.num_objects
  rank = k // 2
  places = (k - 1, 0, k // 2)
  key = jax.random.key(0)
  points = jax.random.uniform(
      key, (k, task.num_features), minval=-1.0, maxval=1.0
  )
  labels = jax.random.permutation(key, k)
  inputs, answers = zip(
      *(task.compose(points, labels, labels[i], rank) for i in places),
      strict=True,
  )
  logits, info = inspect(params, jnp.stack(inputs, axis=1))
  weights = np.mean(info.attention_weights[0], axis=2)  # [T, B, N, N + 1]
  guesses = np.argmax(logits, axis=1)

  num_slots = weights.shape[2]
  figure = Figure(
      figsize=(1.3 + 1.5 * k, 1.0 + 1.6 * len(places)), layout="constrained"
  )
  panels = figure.subplots(len(places), k, squeeze=False)
  for b, place in enumerate(places):
    for t in range(k):
      panel = panels[b, t]
      image = panel.imshow(weights[t, b], vmin=0, vmax=1, cmap="viridis")
      panel.axvline(num_slots - 0.5, color="white", linewidth=1.5)
      panel.set_xticks([num_slots // 2, num_slots], ["slots", "in"])
      panel.set_yticks([])
      name = int(labels[t]) + 1
      panel.set_title(
          f"shows {name}" + (" = m" if t == place else ""), fontsize=9
      )
    panels[b, 0].set_ylabel(
        f"m = {int(labels[place]) + 1}, answer {int(answers[b]) + 1}\n"
        f"network says {int(guesses[b]) + 1}",
        fontsize=8,
    )
  figure.suptitle(
      "What each slot (row) attends to at each step.\nThe question: which "
      f"object is number {rank + 1} of {k}, the {task.order} from m first?",
      fontsize=10,
  )
  figure.colorbar(image, ax=panels, shrink=0.6)
  figure.savefig(path, dpi=_DPI)


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
  """Returns a figure of one panel, and the panel."""
  figure = Figure(figsize=(6.4, 4.0), layout="constrained")
  axes = figure.subplots()
  axes.set_xlabel(x)
  axes.set_ylabel(y)
  axes.grid(alpha=0.3)
  return figure, axes


def _draw(
    axes: Axes,
    label: str,
    curves: Sequence[Mapping[int, float]],
    marker: str | None = None,
):
  """Draws the mean of curves where all have values, and their spread."""
  at = sorted(set.intersection(*(set(curve) for curve in curves)))
  values = np.array([[curve[x] for x in at] for curve in curves])
  (line,) = axes.plot(
      at,
      values.mean(axis=0),
      marker="." if len(at) == 1 else marker,
      label=label if len(curves) == 1 else f"{label} ({len(curves)} seeds)",
  )
  if len(curves) > 1:
    axes.fill_between(
        at,
        values.min(axis=0),
        values.max(axis=0),
        color=line.get_color(),
        alpha=0.2,
        linewidth=0,
    )


def check_path(path: str | pathlib.Path):
  """Checks, before long work, that a picture can be written.

  Args:
    path: of the picture.

  Raises:
    ValueError: if its folder is not there, or its format is not known.
  """
  path = pathlib.Path(path)
  if not path.absolute().parent.is_dir():
    raise ValueError(f"{path} must be in a folder that exists.")
  formats = sorted(Figure().canvas.get_supported_filetypes())
  if path.suffix[1:].lower() not in formats:
    raise ValueError(f"{path} must end like one of {formats}.")


def _legend(axes: Axes):
  """Draws the legend, in lines that are no longer than the panel is wide."""
  handles, labels = axes.get_legend_handles_labels()
  # A dollar would begin a formula.
  texts = [textwrap.fill(label, 55).replace("$", r"\$") for label in labels]
  axes.legend(handles, texts, frameon=False)


def _order(value: str) -> tuple[float, str]:
  """Orders values of a flag: numbers by size, before words."""
  try:
    return float(value), value
  except ValueError:
    return math.inf, value


def _last(workdir: pathlib.Path, metric: str) -> float:
  """Returns the last metric of a run."""
  summary = runs.summary(workdir)
  if metric not in summary:
    raise ValueError(
        f"{workdir} has no last {metric!r}; there are {sorted(summary)}."
    )
  if isinstance(summary[metric], str):
    raise ValueError(
        f"{metric!r} of {workdir} must be a number, got {summary[metric]!r}."
    )
  return summary[metric]


def _increases(workdir: str | pathlib.Path) -> dict[int, float]:
  """Returns by how much resets raise the perplexity, by words between them."""
  name = "test_perplexity"
  start = f"{name}_unroll_"
  last = {}
  for record in training.read_metrics(workdir):
    last = record if name in record else last
  found = {
      int(key.removeprefix(start)): value - last[name]
      for key, value in last.items()
      if key.startswith(start)
  }
  if not found:
    raise ValueError(
        f"{workdir} has no perplexities by reset interval; a run with "
        "--eval_reset_intervals=25,50,100, say, reports them at its end."
    )
  return found


def _curve(
    workdir: str | pathlib.Path, metric: str, x: str = "step"
) -> dict[int, float]:
  """Returns a metric by step, or by another metric of the same step."""
  reports = {}  # By step, since the last may have two.
  for record in training.read_metrics(workdir):
    reports[record["step"]] = reports.get(record["step"], {}) | record
  curve = {r[x]: r[metric] for r in reports.values() if {x, metric} <= r.keys()}
  if not curve:
    names = sorted(set().union(*reports.values()))
    which = repr(metric) if x == "step" else f"{metric!r} and {x!r}"
    raise ValueError(f"{workdir} has no report of {which}; there are {names}.")
  return curve
