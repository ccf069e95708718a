"""Pictures of runs, and the programs that make them."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from rmc import StepInfo
from scripts import plot_runs
from scripts.lib import plots, program, runs
from tasks.nth_farthest import NthFarthest
from tests.helpers.in_process import exit_of
from tests.helpers.programs import ROOT, run


def make_run(path, seed, accuracies, core="rmc", steps=9, size=4):
  """Writes the files of a run that plots read."""
  path.mkdir(parents=True)
  (path / "flags.txt").write_text(
      f"--core={core}\n--seed={seed}\n--steps={steps}\n--head_size={size}\n"
  )
  lines = [
      json.dumps({"step": 10 * (i + 1), "accuracy": accuracy})
      for i, accuracy in enumerate(accuracies)
  ]
  (path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
  return path


def test_curves_show_mean_and_spread(tmp_path, monkeypatch):
  """The drawn data are the runs' mean, least and most at shared steps."""
  drawn = {}

  def save(figure, path, **kwargs):
    del kwargs
    (axes,) = figure.axes
    (line, dotted) = axes.lines
    drawn["line"] = line.get_xydata()
    drawn["plateau"] = dotted.get_ydata()
    (band,) = axes.collections
    drawn["band"] = band.get_paths()[0].vertices
    drawn["labels"] = [text.get_text() for text in axes.get_legend().texts]
    pathlib.Path(path).touch()

  monkeypatch.setattr(plots.Figure, "savefig", save)
  runs = [
      make_run(tmp_path / "a", 0, [0.2, 0.4, 0.9]),
      make_run(tmp_path / "b", 1, [0.4, 0.8]),
  ]
  plots.learning_curves({"rmc": runs}, "accuracy", tmp_path / "c.png", 0.25)
  np.testing.assert_allclose(drawn["line"], [[10, 0.3], [20, 0.6]])
  assert drawn["plateau"] == [0.25, 0.25]
  for point in ([10, 0.2], [10, 0.4], [20, 0.4], [20, 0.8]):
    assert np.any(np.all(np.isclose(drawn["band"], point), axis=1))
  assert drawn["labels"] == ["rmc (2 seeds)", "plateau"]


def test_a_long_label_stays_in_the_panel(tmp_path, monkeypatch):
  """Runs that differ in many flags have labels wider than the figure."""
  drawn = []

  def save(figure, path, **kwargs):
    del path, kwargs
    figure.draw_without_rendering()
    (axes,) = figure.axes
    panel, legend = axes.bbox, axes.get_legend().get_window_extent()
    assert panel.x0 <= legend.x0 and legend.x1 <= panel.x1
    drawn.extend(text.get_text() for text in axes.get_legend().texts)

  monkeypatch.setattr(plots.Figure, "savefig", save)
  workdir = make_run(tmp_path / "a", 0, [0.2, 0.4])
  label = " ".join(f"name_of_flag_{i}={i}000" for i in range(8))
  plots.learning_curves({label: [workdir]}, "accuracy", tmp_path / "c.png")
  assert drawn[0].replace("\n", " ") == label


def test_published_points_lie_under_a_curve(tmp_path, monkeypatch):
  """What two reports of one step say is put together."""
  drawn, axes = {}, None

  def save(figure, path, **kwargs):
    nonlocal axes
    del path, kwargs
    (axes,) = figure.axes
    drawn.update(
        (line.get_label(), line.get_xydata().tolist()) for line in axes.lines
    )

  monkeypatch.setattr(plots.Figure, "savefig", save)
  (tmp_path / "metrics.jsonl").write_text(
      '{"step": 1, "environment_steps": 40, "return": 2.0}\n'
      '{"step": 2, "environment_steps": 80}\n'
      '{"step": 2, "return": 3.0}\n'
      '{"step": 3, "return": 9.0}\n'
  )
  reference = plot_runs.read_points(
      ROOT / "results" / "reinforcement_learning" / "paper_fig10.json"
  )
  plots.learning_curves(
      {"ours": [tmp_path]},
      "return",
      tmp_path / "c.png",
      x="environment_steps",
      reference=reference,
  )
  assert drawn.pop("ours") == [[40, 2], [80, 3]]
  assert axes.get_xlabel() == "environment steps"
  assert axes.get_xscale() == "log"
  assert drawn["paper: RMC, viewport"][-2:] == [[2e9, 677], [3e9, 710]]
  assert drawn["paper: LSTM, full"][-1] == [2e9, 598]
  assert drawn["paper: RMC, full"][-1] == [1.7e9, 1159]
  assert len(drawn) == 4
  with pytest.raises(ValueError, match="'return' and 'updates'.*return"):
    plots.learning_curves(
        {"ours": [tmp_path]}, "return", tmp_path / "c.png", x="updates"
    )


@pytest.mark.parametrize(
    "text", [None, "{", "[[1, 2]]", '{"a": 1}', '{"a": [[1]]}', '{"a": ["x"]}']
)
def test_points_that_cannot_be_read(tmp_path, text):
  path = tmp_path / "points.json"
  if text is not None:
    path.write_text(text)
  with pytest.raises(program.UsageError, match="points.json must be a JSON"):
    plot_runs.read_points(path)


def test_learning_curve_is_a_picture(tmp_path):
  workdir = make_run(tmp_path / "a", 0, [0.2, 0.4])
  plots.learning_curve(workdir, "accuracy")
  assert (workdir / "learning_curve.png").read_bytes()[:4] == b"\x89PNG"


def test_a_name_with_dollars_is_no_formula(tmp_path):
  workdir = make_run(tmp_path / "x$^$y" / "run", 0, [0.2, 0.4])
  plots.learning_curves({"x$^$y": [workdir]}, "accuracy", tmp_path / "c.png")
  assert (tmp_path / "c.png").exists()


def test_missing_metric(tmp_path):
  workdir = make_run(tmp_path / "a", 0, [0.2])
  with pytest.raises(ValueError, match="no report of 'loss'.*accuracy"):
    plots.learning_curve(workdir, "loss")


def test_plot_runs(tmp_path):
  for seed in (0, 1):
    make_run(tmp_path / f"rmc{seed}", seed, [0.2, 0.4])
    make_run(tmp_path / f"lstm{seed}", seed, [0.2, 0.3], core="lstm")
  output = tmp_path / "curves.png"
  runs = sorted(p for p in tmp_path.iterdir() if p.is_dir())
  (tmp_path / "points.json").write_text('{"theirs": [[30, 0.5]]}')
  options = ["--x=step", f"--reference={tmp_path}/points.json"]
  result = run("scripts.plot_runs", *runs, f"--output={output}", *options)
  assert result.returncode == 0, result.stderr
  assert output.read_bytes()[:4] == b"\x89PNG"

  for arguments, message in (
      ([*runs, "--output=no/such/folder.png"], "in a folder that exists"),
      ([tmp_path / "nothing"], "nothing has no report"),
  ):
    status, _, err = exit_of(plot_runs, *arguments)
    assert (status, err.count("\n")) == (2, 1)
    assert message in err


def make_language_model(path, seed, perplexities):
  """Writes what a run of a language model reports in the end."""
  path.mkdir(parents=True)
  (path / "flags.txt").write_text(f"--core=rmc\n--seed={seed}\n")
  last = {f"test_perplexity_unroll_{n}": p for n, p in perplexities.items()}
  records = [
      {"step": 5, "loss": 6.0},
      # The end of the run before --steps and the intervals were others.
      {"step": 7, "test_perplexity": 150.0, "test_perplexity_unroll_7": 190.0},
      {"step": 9, "test_perplexity": 100.0, **last},
      {"step": 11, "valid_perplexity": 90.0},
  ]
  (path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
  return path


def test_perplexity_by_reset_interval(tmp_path, monkeypatch):
  drawn = []

  def save(figure, path, **kwargs):
    del path, kwargs
    (axes,) = figure.axes
    drawn.extend(line.get_xydata().tolist() for line in axes.lines)

  monkeypatch.setattr(plots.Figure, "savefig", save)
  runs = [
      make_language_model(tmp_path / "a", 0, {100: 102.0, 25: 120.0}),
      make_language_model(tmp_path / "b", 1, {25: 124.0, 100: 104.0}),
  ]
  plots.perplexity_by_reset_interval({"rmc": runs}, tmp_path / "c.png")
  assert drawn == [[[25, 22], [100, 3]]]


@pytest.mark.parametrize("kind", ["reset_interval", "unroll"])
def test_plot_runs_by_reset_interval(tmp_path, kind):
  """The kind has an old name too."""
  workdir = make_language_model(tmp_path / "a", 0, {25: 120.0})
  arguments = (f"--kind={kind}", f"--output={tmp_path / 'interval.png'}")
  status, out, err = exit_of(plot_runs, workdir, *arguments)
  assert (status, out, err) == (0, f"{tmp_path / 'interval.png'}\n", "")
  assert (tmp_path / "interval.png").read_bytes()[:4] == b"\x89PNG"
  other = make_run(tmp_path / "b", 0, [0.2])
  status, _, err = exit_of(plot_runs, other, *arguments)
  assert (status, err.count("\n")) == (2, 1)
  assert "--eval_reset_intervals" in err


def make_grid(path, **lstm):
  return [
      make_run(path / "a", 0, [0.7, 0.2]),
      make_run(path / "b", 1, [0.4]),
      make_run(path / "c", 0, [0.9], steps=10),
      make_run(path / "d", 0, [0.5], steps=10, core="lstm", **lstm),
  ]


def test_metric_by_flags(tmp_path, monkeypatch):
  """Last metrics: their mean, least and most; numbers in their order."""
  drawn = {}

  def save(figure, path, **kwargs):
    del path, kwargs
    (axes,) = figure.axes
    drawn["lines"] = [c[0].get_xydata() for c in axes.containers]
    drawn["bars"] = [c[2][0].get_segments() for c in axes.containers]
    drawn["ticks"] = [text.get_text() for text in axes.get_xticklabels()]
    drawn["labels"] = [text.get_text() for text in axes.get_legend().texts]

  monkeypatch.setattr(plots.Figure, "savefig", save)
  grid = make_grid(tmp_path, size=7)
  with pytest.raises(ValueError, match="differ in more"):
    plots.metric_by_flags(grid, "accuracy", "steps", ["core"], "x.png")
  plots.metric_by_flags(
      grid, "accuracy", "steps", ["core", "head_size"], "x.png"
  )
  lstm, rmc = drawn["lines"]
  np.testing.assert_allclose(lstm, [[1, 0.5]])
  np.testing.assert_allclose(rmc, [[0, 0.3], [1, 0.9]])
  np.testing.assert_allclose(drawn["bars"][1][0], [[0, 0.2], [0, 0.4]])
  np.testing.assert_allclose(drawn["bars"][1][1], [[1, 0.9], [1, 0.9]])
  assert drawn["ticks"] == ["9", "10"]
  assert drawn["labels"] == ["core=lstm head_size=7", "core=rmc head_size=4"]


def test_equal_metrics_have_no_spread(tmp_path):
  """The mean of three times 0.1 is not 0.1."""
  grid = [make_run(tmp_path / f"{i}", i, [0.1]) for i in range(3)]
  assert np.mean([0.1] * 3) > 0.1
  output = tmp_path / "grid.png"
  plots.metric_by_flags(grid, "accuracy", "core", [], output)
  assert output.exists()


def test_plot_runs_by_flags(tmp_path):
  grid = make_grid(tmp_path)
  output = tmp_path / "grid.png"
  status, _, err = exit_of(
      plot_runs,
      *grid[:3],
      *("--kind=flags", "--across=steps", f"--output={output}"),
  )
  assert (status, err) == (0, "")
  assert output.read_bytes()[:4] == b"\x89PNG"
  for workdir in grid:
    (workdir / "summary.json").write_text('{"step": 10, "kind": "cpu"}')
  for arguments, message in (
      (["--across=steps"], "differ in more than --seed and --steps: --core="),
      (["--across=heads"], "has no line --heads="),
      (["--across=steps", "--by=core", "--metric=loss"], "has no last 'loss'"),
      (["--across=steps", "--by=core", "--metric=kind"], "number, got 'cpu'"),
      (["--by=core"], "--kind=flags must come with --across"),
      (["--kind=reset_interval", "--across=core"], "must come with --across"),
      (["--across=core", "--x=step"], "--x is for --kind=learning_curves"),
      (
          ["--kind=reset_interval", "--metric=loss"],
          "--metric is not for --kind=reset_interval",
      ),
  ):
    status, _, err = exit_of(plot_runs, *grid, "--kind=flags", *arguments)
    assert (status, err.count("\n")) == (2, 1)
    assert message in err


def test_a_boolean_flag_has_two_values(tmp_path):
  """absl writes it --remat or --noremat."""
  workdirs = [make_run(tmp_path / name, 0, [0.2]) for name in "ab"]
  for workdir, line in zip(workdirs, ("--remat", "--noremat"), strict=True):
    path = workdir / "flags.txt"
    path.write_text(path.read_text() + f"--notied\n{line}\n")
  assert runs.group_by(workdirs, ["remat", "tied"]) == {
      ("true", "false"): workdirs[:1],
      ("false", "false"): workdirs[1:],
  }
  with pytest.raises(ValueError, match="--noremat --remat"):
    runs.group_by(workdirs, ["tied"])


def test_runs_are_grouped_by_flags(tmp_path):
  workdirs = [
      make_run(tmp_path / "a", 0, [0.2]),
      make_run(tmp_path / "b", 1, [0.2]),
      make_run(tmp_path / "c", 0, [0.2], core="lstm"),
  ]
  assert runs.group(workdirs) == {
      "core=rmc": workdirs[:2],
      "core=lstm": workdirs[2:],
  }
  assert runs.group(workdirs[:1]) == {"a": workdirs[:1]}
  path = workdirs[1] / "flags.txt"
  path.write_text("".join(reversed(path.read_text().splitlines(True))))
  assert runs.group(workdirs[:2]) == {"a": workdirs[:2]}


def test_a_curve_marks_where_stages_begin(tmp_path, monkeypatch):
  """A report of two stages at once lies between them in number."""
  drawn = {}

  def save(figure, path, **kwargs):
    del path, kwargs
    (axes,) = figure.axes
    present, whole, plateau, *marks = axes.lines
    drawn["present"] = present.get_ydata()
    drawn["whole"] = whole.get_xydata()
    drawn["plateau"] = plateau.get_ydata()[0]
    names = [text.get_text().strip() for text in axes.texts]
    lines = [line.get_xdata()[0] for line in marks]
    drawn["marks"] = list(zip(lines, names, strict=True))

  monkeypatch.setattr(plots.Figure, "savefig", save)
  stages = [0, 0, 0.5, 1, 2.9, 3]
  accuracies = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
  run = make_run(tmp_path / "run", 0, accuracies)
  path = run / "metrics.jsonl"
  records = [json.loads(line) for line in path.read_text().splitlines()]
  for record, stage in zip(records, stages, strict=True):
    record["stage"] = stage
  records[-1]["eval_accuracy"] = 0.7
  path.write_text("".join(json.dumps(record) + "\n" for record in records))
  plots.curriculum_curve(run, "accuracy", ["a", "b", "c", "d"], 0.25)
  assert drawn["marks"] == [(10, "a"), (30, "b"), (50, "c"), (50, "d")]
  np.testing.assert_array_equal(drawn["present"], accuracies)
  np.testing.assert_array_equal(drawn["whole"], [[60, 0.7]])
  assert drawn["plateau"] == 0.25


def test_attention_of_three_sequences(tmp_path, monkeypatch):
  """The reference is shown last, first and in the middle; heads are averaged,
  and the first of two blocks is drawn.
  """
  task = NthFarthest(3, 2)
  weights = np.random.default_rng(0).uniform(size=(3, 3, 2, 4, 5))
  guesses, asked, drawn = [2, 0, 1], [], []
  made = {"linear": {"b": np.arange(3.0)}}

  def inspect(params, inputs):
    assert params is made
    asked.append(np.asarray(inputs))
    return np.eye(3)[guesses], StepInfo(None, None, (weights, 1 - weights))

  def save(figure, path, **kwargs):
    del path, kwargs
    drawn.extend(figure.axes[:9])

  monkeypatch.setattr(plots.Figure, "savefig", save)
  plots.nth_farthest_attention(made, task, inspect, tmp_path / "a.png")
  (inputs,) = asked
  labels, m = inputs[..., 2:5].argmax(-1), inputs[0, :, 5:8].argmax(-1)
  np.testing.assert_array_equal(labels[[2, 0, 1], range(3)], m)
  for b in range(3):
    for t, panel in enumerate(drawn[3 * b : 3 * b + 3]):
      np.testing.assert_allclose(
          panel.images[0].get_array(), weights[t, b].mean(axis=0)
      )
      shown = labels[t, b]
      title = f"shows {shown + 1}" + (" = m" if shown == m[b] else "")
      assert panel.get_title() == title
    answer = int(task.answer(jnp.asarray(inputs[:, b]))) + 1
    assert drawn[3 * b].get_ylabel() == (
        f"m = {m[b] + 1}, answer {answer}\nnetwork says {guesses[b] + 1}"
    )
