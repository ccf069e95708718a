"""The sweep runner and the table of runs."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from scripts import compare_runs, sweep
from scripts.lib import cores, run_table
from tests.helpers.in_process import exit_of
from tests.helpers.programs import ROOT

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
def trainer(tmp_path, monkeypatch):
  """Puts the small training program where a sweep finds it."""
  (tmp_path / "trainer.py").write_text(TRAINER)
  monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")


@pytest.fixture
def start(tmp_path, trainer):
  """Returns a function that sweeps: to exit status, output and errors."""
  del trainer

  def start(*arguments, shared=("--size=7",)):
    return exit_of(
        sweep,
        f"--sweep_dir={tmp_path / 'sweep'}",
        "--metrics=accuracy",
        *arguments,
        "--",
        "trainer",
        *shared,
    )

  return start


def write_run(workdir, records, flags=(), summary=None):
  """Writes the files of a run that a table reads."""
  workdir.mkdir(exist_ok=True)
  if flags:
    (workdir / "flags.txt").write_text("\n".join(flags) + "\n")
  (workdir / "metrics.jsonl").write_text(
      "".join(json.dumps(record) + "\n" for record in records)
  )
  if summary is not None:
    (workdir / "summary.json").write_text(json.dumps(summary))
  return workdir


def cells_of(line):
  """Returns the cells of a row of a table."""
  return [cell.strip() for cell in line.strip("|").split("|")]


def test_each_combination_is_run_once(start, tmp_path):
  """Two side by side, each with its share of the cores; then one by one."""
  grid = ("--vary=rate=0.5|1", "--vary=seed=0|2")
  reach = "--reach=accuracy:0.5,accuracy:0.7"
  status, out, err = start(*grid, reach, "--jobs=2")
  assert (status, err) == (0, "")
  names = {f"rate={r},seed={s}" for r in ("0.5", "1") for s in (0, 2)}
  runs = list((tmp_path / "sweep").iterdir())
  assert {path.name for path in runs} == names
  for path in runs:
    assert "--size=7" in (path / "flags.txt").read_text().split()
  *_, header, rule, slow, fast = out.splitlines()
  assert set(rule) == {"|", "-"}
  cells = [cells_of(line) for line in (header, slow, fast)]
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
  _, again, _ = start(*grid, reach)
  assert again.splitlines()[-4:] == out.splitlines()[-4:]
  starts = {path.name: (path / "starts").read_text().split() for path in runs}
  assert {name: len(sizes) for name, sizes in starts.items()} == (
      dict.fromkeys(names, 1) | {"rate=1,seed=2": 2}
  )
  if hasattr(os, "sched_getaffinity"):
    every = len(os.sched_getaffinity(0))
    halves = {str(max(1, n)) for n in (every // 2, every - every // 2)}
    assert {sizes[0] for sizes in starts.values()} <= halves
    assert starts["rate=1,seed=2"][1] == str(every)


def test_a_finished_run_of_other_flags_is_no_result(start, tmp_path):
  """The program says whether it goes on or refuses; nothing is taken over."""
  workdir = tmp_path / "sweep" / "seed=0"
  starts = workdir / "starts"
  for _ in range(2):
    assert start("--vary=seed=0")[0] == 0
    assert len(starts.read_text().split()) == 1

  status, out, _ = start("--vary=seed=0", shared=("--size=7", "--rate=0.5"))
  assert status == 0 and "| 0.375" in out
  assert len(starts.read_text().split()) == 2

  for _ in range(2):  # Nor may the refused command pass for one that finished.
    status, out, err = start("--vary=seed=0", shared=("--size=8",))
    assert (status, out) == (1, f"{workdir}\n")
    assert "1 of 1 runs failed" in err
  assert (workdir / "log.txt").read_text().endswith("another size\n")


def ready(workdir):
  """Waits until the run in a directory has said that it trains."""
  log = workdir / "log.txt"
  for _ in range(1200):
    if log.exists() and log.read_text():
      return
    time.sleep(0.05)


def check_stopped(status, errors, signum, sweep_dir):
  assert errors == "sweep: stopped; run the same command again to go on\n"
  assert status == 128 + signum
  assert (sweep_dir / "seed=0/log.txt").read_text() == "ready\nsaved\n"
  assert not (sweep_dir / "seed=1").exists()


def test_sigterm_stops_the_run_too(trainer, tmp_path):
  """Left alone it would train on, and keep its directory from the next."""
  del trainer
  sweep_dir = tmp_path / "sweep"
  process = subprocess.Popen(
      [
          *(sys.executable, "-m", "scripts.sweep", "--vary=seed=0|1"),
          *(f"--sweep_dir={sweep_dir}", "--", "trainer", "--wait=1"),
      ],
      cwd=ROOT,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
  )
  ready(sweep_dir / "seed=0")
  process.terminate()
  _, errors = process.communicate(timeout=30)
  check_stopped(process.returncode, errors, signal.SIGTERM, sweep_dir)


def test_ctrl_c_stops_the_run_too(start, tmp_path):
  def press():
    ready(tmp_path / "sweep" / "seed=0")
    os.kill(os.getpid(), signal.SIGINT)

  # Whoever runs the tests may ignore the signal.
  handler = signal.signal(signal.SIGINT, signal.default_int_handler)
  pressing = threading.Thread(target=press)
  pressing.start()
  status, _, errors = start("--vary=seed=0|1", shared=("--wait=1",))
  pressing.join()
  assert signal.signal(signal.SIGINT, handler) is signal.default_int_handler
  check_stopped(status, errors, signal.SIGINT, tmp_path / "sweep")


def test_an_edited_flag_file_is_other_flags(start, tmp_path):
  path = tmp_path / "shared.flags"
  shared = (f"--flagfile={path}",)
  for rate, accuracy in (("0.5", "0.375"), ("1", "0.75")):
    path.write_text(f"--size=7\n--rate={rate}\n")
    assert f"| {accuracy} " in start("--vary=seed=0", shared=shared)[1]
  path.unlink()
  status, out, err = start("--vary=seed=0", shared=shared)
  assert (status, out) == (2, "")
  assert "shared.flags" in err and err.count("\n") == 1


def test_a_failed_run_is_told_and_the_others_go_on(start, tmp_path):
  status, out, err = start("--vary=rate=bad|1", "--vary=seed=0")
  log = tmp_path / "sweep" / "rate=bad,seed=0" / "log.txt"
  assert (status, err) == (1, f"sweep: 1 of 2 runs failed: {log}\n")
  assert log.read_text() == "no such rate\n"
  assert "0.75" in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--vary=seed",), "--vary=seed must be FLAG=VALUE|VALUE|..."),
        (("--vary=seed=0||1",), "must be FLAG=VALUE|VALUE|..."),
        (("--vary=seed=0", "--reach=accuracy"), "must be METRIC:VALUE"),
        (("--vary=seed=0", "--reach=accuracy:nan"), "must be METRIC:VALUE"),
        (("--jobs=0",), "jobs"),
        (("--vary=name=a/b|a_b",), "must differ in more than / and _"),
        (
            ("--vary=seed=0", "--vary=core=rmc|foo"),
            f"--vary=core=rmc|foo must name cores of {', '.join(cores.CORES)}",
        ),
    ],
)
def test_wrong_flags(start, tmp_path, arguments, message):
  status, out, err = start(*arguments)
  assert (status, out) == (2, "")
  assert message in err and err.count("\n") == 1
  assert not (tmp_path / "sweep").exists()


def test_no_program_or_directory():
  status, _, err = exit_of(sweep, "--sweep_dir=x")
  assert status == 2 and "name a training program" in err
  status, _, err = exit_of(sweep, "--", "trainer")
  assert status == 2 and "--sweep_dir" in err


def test_the_old_name_of_metrics(start):
  status, out, err = start("--vary=seed=0", "--figures=loss,step")
  assert (status, out.count("\n")) == (2, 1)
  assert "--metrics: " in err and "has no loss; there are" in err


def test_a_run_that_never_reaches_it_is_counted(tmp_path):
  for seed, accuracies in enumerate([(0.2, 0.9), (0.2, 0.3)]):
    records = [
        {"step": i, "wall_seconds": 2.0 * i, "accuracy": accuracy}
        for i, accuracy in enumerate(accuracies, 1)
    ]
    summary = {"parameters": 5, "steps_per_second": 1.0, "device": "cpu"}
    write_run(
        tmp_path / str(seed),
        records,
        ["--core=rmc", f"--seed={seed}"],
        records[-1] | summary,
    )
  status, out, err = exit_of(
      compare_runs,
      *(tmp_path / "0", tmp_path / "1"),
      *("--metrics=accuracy,device", "--reach=accuracy:0.5"),
  )
  assert (status, err) == (0, "")
  assert "| 2 (1 of 2)" in out and "| 4 (1 of 2)" in out
  assert "| cpu " in out


def test_a_metric_that_is_infinite(tmp_path):
  """As the perplexity of a run that diverged."""
  workdirs = [
      write_run(
          tmp_path / str(seed),
          [{"step": 3, "wall_seconds": 2.0, "loss": loss}],
          ["--core=rmc", f"--seed={seed}"],
      )
      for seed, loss in enumerate([math.inf, 2.5])
  ]
  assert "| inf ± nan" in run_table.table(workdirs, ["loss"], [])


def test_what_cannot_be_compared(tmp_path):
  def check(message, *arguments):
    status, out, err = exit_of(compare_runs, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err

  check("at least one directory")
  check("has no report of a run", tmp_path)
  write_run(tmp_path, [{"step": 3, "wall_seconds": 2.0, "loss": 0.25}])
  check("has no eval_accuracy", tmp_path, "--metrics=eval_accuracy")
  check("no run has reported los;", tmp_path, "--reach=los:0.5")
  (tmp_path / "evaluations.jsonl").write_text('{"step": 3, "over')
  check("evaluations.jsonl is damaged: Unterminated", tmp_path)


def test_without_metrics_those_of_evaluations_are_shown(tmp_path):
  """Of a sweep over anything, and a perplexity is reached from above."""
  name = "valid_perplexity"
  workdirs = [tmp_path / "0", tmp_path / "1"]
  for seed, workdir in enumerate(workdirs):
    records = [
        {"step": i, "wall_seconds": 2.0 * i, "loss": 0.5, name: x}
        for i, x in enumerate((500.0, 90.0, 80.0), 1)
    ]
    records[-1] |= {f"{name}_standard_error": 0.1, f"eval_{seed}": 0.1}
    write_run(workdir, records, [f"--seed={seed}"])
  reach = [(name, 100.0), (name, 70.0)]
  header, _, row = run_table.table(workdirs, [], reach).splitlines()
  assert cells_of(header)[6:8] == [name, f"updates to {name} 100"]
  assert cells_of(row)[6:] == ["80 ± 0", "2", "4", "never", "never"]


def test_a_part_of_a_perplexity_is_reached_from_above(tmp_path):
  """As that by frequency of the words, whose name does not end so."""
  name = "test_perplexity_over_10k"
  records = [
      {"step": i, "wall_seconds": 2.0 * i, name: x}
      for i, x in enumerate((500.0, 90.0), 1)
  ]
  write_run(tmp_path, records, ["--seed=0"])
  *_, row = run_table.table([tmp_path], [name], [(name, 100.0)]).splitlines()
  assert cells_of(row)[-2:] == ["2", "4"]


def test_evaluations_of_an_agent_are_metrics_of_its_run(tmp_path):
  """The last one; of other flags, or of fewer updates, it is of no run."""
  write_run(tmp_path, [{"step": 3, "wall_seconds": 2.0, "return": 5.0}])
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
  *_, row = run_table.table([tmp_path], names, []).splitlines()
  assert cells_of(row)[6:] == ["105.9", "106.4"]


def test_a_table_needs_no_pictures(tmp_path):
  """Neither the flags of plot_runs nor matplotlib."""
  program = f"""
import runpy, sys
sys.argv = ["compare_runs", {str(tmp_path)!r}, "--metric=loss"]
try:
  runpy.run_module("scripts.compare_runs", run_name="__main__")
except SystemExit as end:
  print(end.code)
import scripts.sweep
print("matplotlib" in sys.modules)
"""
  done = subprocess.run(
      [sys.executable, "-c", program],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
  )
  assert done.stdout == "2\nFalse\n"
  assert "Unknown command line flag 'metric'" in done.stderr
  assert done.stderr.count("\n") == 1


def test_a_run_that_was_stopped_is_shown_by_its_reports(tmp_path):
  records = [{"step": i, "wall_seconds": 2.0, "loss": 1 / i} for i in (1, 4)]
  records[0]["eval_loss"] = 0.5
  write_run(tmp_path, records)
  *_, row = run_table.table([tmp_path], ["loss", "eval_loss"], []).splitlines()
  assert cells_of(row)[1:] == ["1", "", "4", "", "2", "0.25", "0.5"]
