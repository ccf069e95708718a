"""Kills a training run at random moments and compares the end.

  python -m tests.helpers.stress [--kills=50] [--seed=N]

The moments are uniform over the whole life of the process: its start, the
steps, the writing of checkpoints, which takes most of the time between the
steps here, and the figures at the end. A run that was killed is started
again with the same command. When one reaches its end, it is compared with a
run that nothing disturbed, and the next begins in a new directory.
"""

import argparse
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time

import tqdm

from rmc import training
from tests.helpers.tiny_training import (
    assert_same_bits,
    events_of,
    records_of,
    steps_of,
    summary_of,
)

ROOT = pathlib.Path(__file__).parents[2]
FLAGS = (
    "--num_objects=3",
    "--num_features=2",
    "--mem_slots=2",
    "--num_heads=2",
    "--head_size=4",
    "--mlp_sizes=8",
    "--batch_size=16",
    "--learning_rate=1e-2",
    "--log_every=7",
    "--eval_every=50",
    "--checkpoint_every=5",
    "--eval_examples=100",
    "--steps=1000",
)


def start(workdir):
  """Starts the run, or goes on with it."""
  return subprocess.Popen(
      [
          sys.executable,
          "-m",
          "scripts.train_nth_farthest",
          *FLAGS,
          f"--workdir={workdir}",
      ],
      cwd=ROOT,
      env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
  )


def compare(actual, expected):
  """Raises an AssertionError unless two runs left the same, but for times."""
  steps = [record["step"] for record in records_of(actual)]
  assert steps == sorted(set(steps)), f"reports at {steps}"
  assert records_of(actual) == records_of(expected), "metrics.jsonl differs"
  assert events_of(actual) == events_of(expected), "events differ"
  assert summary_of(actual) == summary_of(expected), "summary.json differs"
  assert steps_of(actual) == steps_of(expected), "checkpoints differ"
  for step in steps_of(expected):
    assert_same_bits(
        training.load_params(actual, step), training.load_params(expected, step)
    )
  names = [
      {re.sub(r"^events\..*", "events", p.name) for p in workdir.iterdir()}
      for workdir in (actual, expected)
  ]
  assert names[0] == names[1], f"files {names[0]} instead of {names[1]}"


def stress(directory, kills, rng):
  """Kills so many times; returns in which state each kill found the run."""
  whole = directory / "unbroken"
  began = time.monotonic()
  process = start(whole)
  _, err = process.communicate()
  assert process.returncode == 0, err
  life = time.monotonic() - began
  print(f"an unbroken run takes {life:.1f} s", flush=True)

  found = {"starting": 0, "training": 0, "writing a checkpoint": 0, "ending": 0}
  finished = 0
  bar = tqdm.tqdm(total=kills, unit="kill")
  while bar.n < kills or (directory / f"run_{finished}").exists():
    workdir = directory / f"run_{finished}"
    before = _traces(workdir)
    process = start(workdir)
    try:
      # The last run is let through to its end.
      timeout = rng.uniform(0, life) if bar.n < kills else 600
      _, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
      process.kill()
      process.communicate()
      assert bar.n < kills, "the run hangs"
      bar.update()
      found[_moment(before, _traces(workdir))] += 1
      continue
    assert process.returncode == 0, err
    compare(workdir, whole)
    finished += 1
    bar.set_postfix(ends=finished)
  bar.close()
  return finished, found


def _traces(workdir):
  """Returns the names of all checkpoints, whole or not, and of the summary."""
  names = {path.name for path in workdir.glob("checkpoints/*")}
  return names | {path.name for path in workdir.glob("summary.json")}


def _moment(before, after):
  """Says what a run was at when it was killed, from what it left."""
  new = after - before
  if "summary.json" in new:
    return "ending"
  if any(not name.isdigit() for name in new):
    return "writing a checkpoint"
  return "training" if new else "starting"


def main():
  """Runs and says how it ended."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--kills", type=int, default=50)
  parser.add_argument("--seed", type=int, default=random.randrange(2**32))
  arguments = parser.parse_args()
  print(f"--kills={arguments.kills} --seed={arguments.seed}", flush=True)
  began = time.monotonic()
  with tempfile.TemporaryDirectory() as directory:
    try:
      finished, found = stress(
          pathlib.Path(directory),
          arguments.kills,
          random.Random(arguments.seed),
      )
    except AssertionError as error:
      print(f"FAILED: {error} (--seed={arguments.seed})")
      sys.exit(1)
  seconds = time.monotonic() - began
  print(
      f"passed: {arguments.kills} kills ({json.dumps(found)}), {finished} runs "
      f"to their end, all equal to the unbroken one but for times; "
      f"{seconds:.0f} s"
  )


if __name__ == "__main__":
  main()
