"""The sweep runner and the table of runs."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest

from scripts import compare_runs
from tests.helpers.programs import ROOT, run

# A training program in small: its result is a function of its flags.
TRAINER = '''
import json, os, pathlib, sys
if "--wait=1" in sys.argv:
  import signal, time
  def stop(*_):
    print("saved")
    sys.exit(3)
  signal.signal(signal.SIGTERM, stop)
  print("ready", flush=True)
  time.sleep(60)
flags = dict(argument[2:].split("=", 1) for argument in sys.argv[1:])
workdir = pathlib.Path(flags.pop("workdir"))
if flags.get("rate") == "bad":
  sys.exit("no such rate")
before = workdir / "flags.txt"
if before.exists() and f"--size={flags['size']}" not in before.read_text():
  sys.exit("the run has another size")
with (workdir / "starts").open("a") as file:
  file.write(f"{len(os.sched_getaffinity(0))}\\n")
seed, rate = int(flags["seed"]), float(flags.get("rate", 1))
(workdir / "flags.txt").write_text(
    "".join(f"--{name}={value}\\n" for name, value in flags.items())
)
records = [
    {"step": 10 * i, "wall_seconds": 2.0 * i, "accuracy": i * rate / 4}
    for i in range(1, 4)
]
(workdir / "metrics.jsonl").write_text(
    "".join(json.dumps(record) + "\\n" for record in records)
)
summary = records[-1] | {
    "accuracy": records[-1]["accuracy"] + seed / 100,
    "parameters": 1234,
    "steps_per_second": 8.0,
}
(workdir / "summary.json").write_text(json.dumps(summary))
'''


@pytest.fixture
def sweep(tmp_path):
  (tmp_path / "trainer.py").write_text(TRAINER)

  def start(*arguments, shared=("--size=7",)):
    return run(
        "scripts.sweep",
        f"--sweep_dir={tmp_path / 'sweep'}",
        "--figures=accuracy",
        *arguments,
        "--",
        "trainer",
        *shared,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )

  return start


@pytest.mark.parametrize("jobs", [1, 2])
def test_each_combination_is_run_once(sweep, tmp_path, jobs):
  grid = ("--vary=rate=0.5|1", "--vary=seed=0|2", f"--jobs={jobs}")
  done = sweep(*grid, "--reach=accuracy:0.5,accuracy:0.7")
  assert (done.returncode, done.stderr) == (0, "")
  names = {f"rate={r},seed={s}" for r in ("0.5", "1") for s in (0, 2)}
  runs = list((tmp_path / "sweep").iterdir())
  assert {path.name for path in runs} == names
  for path in runs:
    assert "--size=7" in (path / "flags.txt").read_text().split()
  *_, header, rule, slow, fast = done.stdout.splitlines()
  assert set(rule) == {"|", "-"}
  cells = [
      [cell.strip() for cell in line.strip("|").split("|")]
      for line in (header, slow, fast)
  ]
  assert cells[0][:7] == [
      *("run", "seeds", "parameters", "updates", "updates/s", "seconds"),
      "accuracy",
  ]
  assert cells[0][7:] == [
      f"{unit} to accuracy {value}"
      for value in (0.5, 0.7)
      for unit in ("updates", "seconds")
  ]
  # Means of 0.375 and 0.395, and of 0.75 and 0.77.
  assert cells[1] == [
      *("rate=0.5", "2", "1,234", "30", "8 ± 0", "6 ± 0", "0.385 ± 0.01"),
      *["never"] * 4,
  ]
  assert cells[2][6:] == ["0.76 ± 0.01", "20", "4", "30", "6"]

  (tmp_path / "sweep" / "rate=1,seed=2" / "summary.json").unlink()
  again = sweep(*grid, "--reach=accuracy:0.5,accuracy:0.7")
  assert again.stdout.splitlines()[-4:] == done.stdout.splitlines()[-4:]
  starts = {
      path.name: len((path / "starts").read_text().split()) for path in runs
  }
  assert starts == dict.fromkeys(names, 1) | {"rate=1,seed=2": 2}


def test_a_finished_run_of_other_flags_is_no_result(sweep, tmp_path):
  """The program says whether it goes on or refuses; nothing is taken over."""
  assert sweep("--vary=seed=0").returncode == 0
  workdir = tmp_path / "sweep" / "seed=0"
  starts = workdir / "starts"
  assert sweep("--vary=seed=0", shared=("--size=7",)).returncode == 0
  assert len(starts.read_text().split()) == 1

  done = sweep("--vary=seed=0", shared=("--size=7", "--rate=0.5"))
  assert done.returncode == 0 and "| 0.375" in done.stdout
  assert len(starts.read_text().split()) == 2

  for _ in range(2):  # Nor may the refused command pass for one that finished.
    done = sweep("--vary=seed=0", shared=("--size=8",))
    assert (done.returncode, done.stdout) == (1, f"{workdir}\n")
    assert "1 of 1 runs failed" in done.stderr
  assert (workdir / "log.txt").read_text().endswith("another size\n")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_too(tmp_path, signum):
  """Left alone it would train on, and keep its directory from the next."""
  (tmp_path / "trainer.py").write_text(TRAINER)
  sweep = subprocess.Popen(
      [
          *(sys.executable, "-m", "scripts.sweep", "--vary=seed=0|1"),
          *(f"--sweep_dir={tmp_path / 'sweep'}", "--", "trainer", "--wait=1"),
      ],
      cwd=ROOT,
      env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
  )
  log = tmp_path / "sweep" / "seed=0" / "log.txt"
  while sweep.poll() is None and not (log.exists() and log.read_text()):
    time.sleep(0.05)
  sweep.send_signal(signum)
  _, err = sweep.communicate(timeout=30)
  assert err == "sweep: stopped; run the same command again to go on\n"
  assert sweep.returncode == 128 + signum
  assert log.read_text() == "ready\nsaved\n"
  assert not (tmp_path / "sweep" / "seed=1").exists()


def test_an_edited_flag_file_is_other_flags(sweep, tmp_path):
  path = tmp_path / "shared.flags"
  shared = (f"--flagfile={path}",)
  for rate, accuracy in (("0.5", "0.375"), ("1", "0.75")):
    path.write_text(f"--size=7\n--rate={rate}\n")
    assert f"| {accuracy} " in sweep("--vary=seed=0", shared=shared).stdout
  path.unlink()
  done = sweep("--vary=seed=0", shared=shared)
  assert done.returncode == 2 and done.stdout == ""
  assert "shared.flags" in done.stderr and done.stderr.count("\n") == 1


def test_a_failed_run_is_told_and_the_others_go_on(sweep, tmp_path):
  done = sweep("--vary=rate=bad|1", "--vary=seed=0")
  assert done.returncode == 1
  log = tmp_path / "sweep" / "rate=bad,seed=0" / "log.txt"
  assert done.stderr == f"sweep: 1 of 2 runs failed: {log}\n"
  assert log.read_text() == "no such rate\n"
  assert "0.75" in done.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--vary=seed",), "--vary=seed must be FLAG=VALUE|VALUE|..."),
        (("--vary=seed=0||1",), "must be FLAG=VALUE|VALUE|..."),
        (("--vary=seed=0", "--reach=accuracy"), "must be FIGURE:VALUE"),
        (("--vary=seed=0", "--reach=accuracy:nan"), "must be FIGURE:VALUE"),
        (("--jobs=0",), "jobs"),
        (("--vary=name=a/b|a_b",), "must differ in more than / and _"),
    ],
)
def test_wrong_flags(sweep, arguments, message):
  done = sweep(*arguments)
  assert (done.returncode, done.stdout) == (2, "")
  assert message in done.stderr and done.stderr.count("\n") == 1


def test_no_program_or_directory():
  done = run("scripts.sweep", "--sweep_dir=x")
  assert done.returncode == 2 and "name a training program" in done.stderr
  done = run("scripts.sweep", "--", "trainer")
  assert done.returncode == 2 and "--sweep_dir" in done.stderr


def test_a_run_that_never_reaches_it_is_counted(tmp_path):
  for seed, accuracies in enumerate([(0.2, 0.9), (0.2, 0.3)]):
    workdir = tmp_path / str(seed)
    workdir.mkdir()
    (workdir / "flags.txt").write_text(f"--core=rmc\n--seed={seed}\n")
    records = [
        {"step": i, "wall_seconds": 2.0 * i, "accuracy": accuracy}
        for i, accuracy in enumerate(accuracies, 1)
    ]
    (workdir / "metrics.jsonl").write_text(
        "".join(json.dumps(record) + "\n" for record in records)
    )
    summary = {"parameters": 5, "steps_per_second": 1.0, "device": "cpu"}
    (workdir / "summary.json").write_text(json.dumps(records[-1] | summary))
  done = run(
      *("scripts.compare_runs", tmp_path / "0", tmp_path / "1"),
      *("--figures=accuracy,device", "--reach=accuracy:0.5"),
  )
  assert done.stderr == ""
  assert "| 2 (1 of 2)" in done.stdout and "| 4 (1 of 2)" in done.stdout
  assert "| cpu " in done.stdout


def test_a_figure_that_is_infinite(tmp_path):
  """As the perplexity of a run that diverged."""
  for seed, loss in enumerate([math.inf, 2.5]):
    workdir = tmp_path / str(seed)
    workdir.mkdir()
    (workdir / "flags.txt").write_text(f"--core=rmc\n--seed={seed}\n")
    record = {"step": 3, "wall_seconds": 2.0, "loss": loss}
    (workdir / "metrics.jsonl").write_text(json.dumps(record) + "\n")
  workdirs = [tmp_path / "0", tmp_path / "1"]
  assert "| inf ± nan" in compare_runs.table(workdirs, ["loss"], [])


def test_what_cannot_be_compared(tmp_path):
  done = run("scripts.compare_runs")
  assert done.returncode == 2 and "at least one directory" in done.stderr
  done = run("scripts.compare_runs", tmp_path)
  assert done.returncode == 2 and "has no report of a run" in done.stderr
  record = {"step": 3, "wall_seconds": 2.0, "loss": 0.25}
  (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
  done = run("scripts.compare_runs", tmp_path, "--figures=eval_accuracy")
  assert done.returncode == 2 and "has no eval_accuracy" in done.stderr
  (tmp_path / "evaluations.jsonl").write_text('{"step": 3, "over')
  done = run("scripts.compare_runs", tmp_path)
  assert done.returncode == 2
  assert "evaluations.jsonl is damaged: Unterminated" in done.stderr
  (tmp_path / "evaluations.jsonl").unlink()
  done = run("scripts.compare_runs", tmp_path, "--reach=los:0.5")
  assert done.returncode == 2 and "no run has reported los;" in done.stderr


def test_without_figures_those_of_evaluations_are_shown(tmp_path):
  """Of a sweep over anything, and a perplexity is reached from above."""
  workdirs = [tmp_path / "0", tmp_path / "1"]
  for seed, workdir in enumerate(workdirs):
    workdir.mkdir()
    (workdir / "flags.txt").write_text(f"--seed={seed}\n")
    records = [
        {"step": i, "wall_seconds": 2.0 * i, "loss": 0.5, "valid_perplexity": x}
        for i, x in enumerate((500.0, 90.0, 80.0), 1)
    ]
    records[-1]["valid_perplexity_standard_error"] = 0.1
    records[-1][f"eval_{seed}"] = 0.1
    (workdir / "metrics.jsonl").write_text(
        "".join(json.dumps(record) + "\n" for record in records)
    )
  reach = [("valid_perplexity", 100.0), ("valid_perplexity", 70.0)]
  header, _, row = compare_runs.table(workdirs, [], reach).splitlines()
  cells = [
      [cell.strip() for cell in line.strip("|").split("|")]
      for line in (header, row)
  ]
  name = "valid_perplexity"
  assert cells[0][6:8] == [name, f"updates to {name} 100"]
  assert cells[1][6:] == ["80 ± 0", "2", "4", "never", "never"]


def test_a_part_of_a_perplexity_is_reached_from_above(tmp_path):
  """As that by frequency of the words, whose name does not end so."""
  name = "test_perplexity_over_10k"
  (tmp_path / "flags.txt").write_text("--seed=0\n")
  records = [
      {"step": i, "wall_seconds": 2.0 * i, name: x}
      for i, x in enumerate((500.0, 90.0), 1)
  ]
  (tmp_path / "metrics.jsonl").write_text(
      "".join(json.dumps(record) + "\n" for record in records)
  )
  table = compare_runs.table([tmp_path], [name], [(name, 100.0)])
  row = [cell.strip() for cell in table.splitlines()[-1].split("|")]
  assert row[-3:-1] == ["2", "4"]


def test_evaluations_of_an_agent_are_figures_of_its_run(tmp_path):
  """The last one; of other flags, or of fewer updates, it is of no run."""
  record = {"step": 3, "wall_seconds": 2.0, "return": 5.0}
  (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
  lines = [
      {
          "step": step,
          "overruled": overruled,
          "sampled": {"return": {"mean": mean}},
          "greedy": {"return": {"mean": mean + 0.5}},
      }
      for mean, step, overruled in (
          (100.0, 3, {}),
          (105.86, 3, {}),
          (7.0, 3, {"seed": 1}),
          (8.0, 2, {}),
      )
  ]
  path = tmp_path / "evaluations.jsonl"
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  names = ["sampled_return", "greedy_return"]
  *_, row = compare_runs.table([tmp_path], names, []).splitlines()
  cells = [cell.strip() for cell in row.strip("|").split("|")]
  assert cells[6:] == ["105.9", "106.4"]


def test_a_table_needs_no_pictures(tmp_path):
  """Neither the flags of plot_runs nor matplotlib."""
  done = run("scripts.compare_runs", tmp_path, "--metric=loss")
  assert done.returncode == 2 and "Unknown command line flag" in done.stderr
  program = "import sys, scripts.sweep; print('matplotlib' in sys.modules)"
  done = subprocess.run(
      [sys.executable, "-c", program],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
  )
  assert (done.stdout, done.stderr) == ("False\n", "")


def test_a_run_that_was_stopped_is_shown_by_its_reports(tmp_path):
  records = [{"step": i, "wall_seconds": 2.0, "loss": 1 / i} for i in (1, 4)]
  records[0]["eval_loss"] = 0.5
  (tmp_path / "metrics.jsonl").write_text(
      "".join(json.dumps(record) + "\n" for record in records)
  )
  names = ["loss", "eval_loss"]
  *_, row = compare_runs.table([tmp_path], names, []).splitlines()
  cells = [cell.strip() for cell in row.strip("|").split("|")]
  assert cells[1:] == ["1", "", "4", "", "2", "0.25", "0.5"]
