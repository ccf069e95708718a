"""Runs that an earlier version left are resumed as it would have resumed them.

`tests/golden/old_runs` has a run of each program, stopped at a checkpoint, and
the records of the same run when that version resumed it.
"""

import json
import pathlib
import zipfile

from absl import flags
import jax
import pytest

from rmc import training
from scripts import (
  train_box_world,
  train_language_model,
  train_learn_to_execute,
  train_mini_pacman,
  train_nth_farthest,
)
from tests.helpers.programs import ROOT
from tests.helpers.tiny_training import records_of

FLAGS = flags.FLAGS
PROGRAMS = {
    "box_world": train_box_world,
    "language_model": train_language_model,
    "learn_to_execute": train_learn_to_execute,
    "mini_pacman": train_mini_pacman,
    "nth_farthest": train_nth_farthest,
}
# Computed on another processor, perhaps.
TOLERANCE = 1e-3


def unpack(name: str, folder: pathlib.Path) -> list[str]:
  """Unpacks an old run; returns the flags with which it is resumed."""
  with zipfile.ZipFile(ROOT / f"tests/golden/old_runs/{name}.zip") as archive:
    archive.extractall(folder)
  arguments = [f"--flagfile={folder / 'flags.txt'}"]
  if name == "language_model":
    arguments += [f"--manual_dir={folder / 'text'}"]
    arguments += [f"--data_dir={folder / 'data'}"]
  return arguments


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_old_run_is_resumed(train_here, tmp_path, name):
  arguments = unpack(name, tmp_path)
  old = (tmp_path / "flags.txt").read_text().splitlines()
  assert "--unroll=1" in old or "--unroll=2" in old
  done = training.latest_step(tmp_path)
  lines = (tmp_path / "expected.jsonl").read_text().splitlines()
  expected = [json.loads(line) for line in lines]
  steps = expected[-1]["step"]
  assert steps > done
  # The bare records of the old run are those that it had until then.
  records = train_here(
      PROGRAMS[name], tmp_path, *arguments, f"--steps={steps}"
  )
  assert [list(record) for record in records] == [
      list(record) for record in expected
  ]
  for record, other in zip(records, expected, strict=True):
    assert record == pytest.approx(other, rel=TOLERANCE, abs=TOLERANCE)

  new = (tmp_path / "flags.txt").read_text()
  recorded = training.recorded_config(tmp_path)
  assert "--scan_unroll=" in new and "--unroll=" not in new
  assert "--eval_unroll" not in new
  assert not recorded.keys() & {"unroll", "eval_unroll", "scan_unroll"}
  assert jax.tree.leaves(training.load_params(tmp_path, steps))


def test_a_flag_that_is_not_recorded_counts_as_its_default(
    train_here, tmp_path
):
  arguments = unpack("nth_farthest", tmp_path)
  assert "optimizer" not in training.recorded_config(tmp_path)
  message = "optimizer was not recorded and is 'rmsprop'"
  with pytest.raises(training.CheckpointError, match=message):
    train_here(
        train_nth_farthest,
        tmp_path,
        *arguments,
        "--steps=25",
        "--optimizer=rmsprop",
    )
  records = train_here(
      train_nth_farthest,
      tmp_path,
      *arguments,
      "--steps=25",
      "--optimizer=adam",
  )
  assert records == records_of(tmp_path)
  assert records[-1]["step"] == 25
