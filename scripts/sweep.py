"""Runs a training program with several values of its flags.

  python -m scripts.sweep --sweep_dir=runs/heads --jobs=2 \
      --vary='num_heads=1|4' --vary='seed=0|1|2' \
      -- scripts.train_nth_farthest \
      --flagfile=scripts/presets/nth_farthest/demo.flags

It runs each combination in a directory of its own under --sweep_dir, goes on
where it stopped if it is started again, and prints a table of all runs at the
end. What comes after `--` is the program and the flags that all runs share. If
a finished run had others, the program is started again: it goes on with the run
or, if its updates were other ones, refuses.
"""

from collections.abc import Iterator
from concurrent import futures
import contextlib
import itertools
import os
import pathlib
import shlex
import signal
import subprocess
import sys

from absl import flags

from scripts.lib import cores, program, run_table

FLAGS = flags.FLAGS

flags.adopt_module_key_flags(run_table)
flags.DEFINE_string("sweep_dir", None, "Directory of all runs.")
flags.DEFINE_multi_string(
    "vary", [], "FLAG=VALUE|VALUE|...; give it once for each flag to vary."
)
flags.DEFINE_integer(
    "jobs",
    1,
    "Runs side by side. On a CPU each has its share of the cores, which "
    "finishes more of them in the same time.",
    lower_bound=1,
)


def main(arguments: list[str]):
  """Runs what has not been run yet, then compares."""
  if not arguments:
    raise program.UsageError(
        "name a training program after --, as in -- scripts.train_nth_farthest"
    )
  if FLAGS.sweep_dir is None:
    raise program.UsageError("--sweep_dir must name a directory")
  reach = run_table.parse_reach(FLAGS.reach)
  runs = {}
  for settings in itertools.product(*map(_settings, FLAGS.vary)):
    name = ",".join(settings).replace("/", "_") or "run"
    own = [f"--{setting}" for setting in settings]
    # What flag files say today, since they can be edited.
    command = program.expand_flagfiles([*arguments, *own])
    workdir = pathlib.Path(FLAGS.sweep_dir, name)
    if workdir in runs:
      raise program.UsageError(
          f"--vary: {own} would be a second run in {workdir}; settings must "
          "differ in more than / and _"
      )
    runs[workdir] = command

  job = itertools.count()
  with (
      futures.ThreadPoolExecutor(
          FLAGS.jobs, initializer=lambda: _take_cores(next(job))
      ) as pool,
      _signals_stop_runs(),
  ):
    failed = [
        workdir
        for workdir, status in zip(
            runs, pool.map(_train, runs, runs.values()), strict=True
        )
        if status
    ]
  finished = [workdir for workdir in runs if workdir not in failed]
  if finished:
    print(run_table.table(finished, FLAGS.metrics, reach))
  if failed:
    logs = ", ".join(str(workdir / "log.txt") for workdir in failed)
    raise program.Failure(f"{len(failed)} of {len(runs)} runs failed: {logs}")


def _settings(vary: str) -> list[str]:
  """Returns `FLAG=VALUE` for each value."""
  name, equals, values = vary.partition("=")
  if not name or not equals or not all(values.split("|")):
    raise program.UsageError(
        f"--vary={vary} must be FLAG=VALUE|VALUE|..., as in seed=0|1|2"
    )
  for value in values.split("|"):
    if name == "core" and value not in cores.CORES:
      raise program.UsageError(
          f"--vary={vary} must name cores of {', '.join(cores.CORES)}"
      )
  return [f"{name}={value}" for value in values.split("|")]


def _take_cores(job: int):
  """Leaves this thread, and what it starts, its share of the cores."""
  if hasattr(os, "sched_setaffinity"):  # On Linux.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[job :: FLAGS.jobs] or cores)


_running: set[subprocess.Popen] = set()


@contextlib.contextmanager
def _signals_stop_runs() -> Iterator[None]:
  """A signal ends the runs, which save their state, then the sweep."""

  def stop(signum, frame):
    del frame
    for process in list(_running):
      process.terminate()
    raise program.Failure(  # In `pool.map`, which then starts no other run.
        "stopped; run the same command again to go on", 128 + signum
    )

  signals = (signal.SIGINT, signal.SIGTERM)
  old = {signum: signal.signal(signum, stop) for signum in signals}
  try:
    yield
  finally:
    for signum, handler in old.items():
      signal.signal(signum, handler)


def _train(workdir: pathlib.Path, command: list[str]) -> int:
  """Runs the command unless it has finished; returns its exit status."""
  summary, finished = workdir / "summary.json", workdir / "finished.txt"
  line = shlex.join(command) + "\n"
  if summary.exists() and finished.exists() and finished.read_text() == line:
    return 0
  finished.unlink(missing_ok=True)
  workdir.mkdir(parents=True, exist_ok=True)
  print(workdir, flush=True)
  with (workdir / "log.txt").open("a") as log:
    process = subprocess.Popen(
        [sys.executable, "-m", *command, f"--workdir={workdir}"],
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    _running.add(process)
    status = process.wait()
    _running.remove(process)
  if status == 0:
    finished.write_text(line)
  return status


if __name__ == "__main__":
  program.run(main, takes_arguments=True)
