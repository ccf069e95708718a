"""Presets: a folder for each benchmark, and what each says at its head."""

import pathlib
import re

from absl import flags
import pytest

from tests.helpers.programs import parsed
from tests.repository.test_layout import ROOT

FLAGS = flags.FLAGS
FOLDER = ROOT / "scripts" / "presets"
PRESETS = [path.relative_to(FOLDER) for path in sorted(FOLDER.rglob("*.flags"))]
PROGRAMS = {
    "box_world": "train_box_world",
    "language_modeling": "train_language_model",
    "learn_to_execute": "train_learn_to_execute",
    "mini_pacman": "train_mini_pacman",
    "nth_farthest": "train_nth_farthest",
}


def test_folders():
  assert {path.name for path in FOLDER.iterdir()} == {*PROGRAMS}
  assert {path.parent.name for path in PRESETS if path.stem == "base"} == {
      *PROGRAMS
  }


@pytest.mark.parametrize("preset", PRESETS, ids=str)
def test_head(preset):
  """What it is, its command, how long it takes and the score to expect."""
  lines = (FOLDER / preset).read_text("utf-8").splitlines()
  head = [line for line in lines if line.startswith("#")]
  assert head == lines[: len(head)] and len(head) > 1
  if preset.stem == "base":
    assert not any(line.startswith("--flagfile") for line in lines)
    return
  text = " ".join(line.removeprefix("#").strip() for line in head)
  program = PROGRAMS[preset.parent.name]
  command = rf"python -m scripts\.{program} .*--flagfile=scripts/presets/"
  assert re.search(command + re.escape(str(preset)), text.replace("\\ ", ""))
  assert re.search(r"# Time: .*\w", "\n".join(head))
  assert re.search(r"# Score: .*\w", "\n".join(head))
  (nested,) = (line for line in lines if line.startswith("--flagfile"))
  assert nested == "--flagfile=base.flags"


@pytest.mark.parametrize("preset", PRESETS, ids=str)
def test_parses_from_any_directory(preset, tmp_path, monkeypatch):
  """Later lines count more than the base file's."""
  monkeypatch.chdir(tmp_path)
  lines = (FOLDER / preset).read_text("utf-8").splitlines()
  last = dict(
      line.removeprefix("--").split("=", 1)
      for line in lines
      if "=" in line and not line.startswith(("#", "--flagfile"))
  )
  # Programs that define these flags have been imported by now.
  __import__(f"scripts.{PROGRAMS[preset.parent.name]}")
  with parsed(f"--flagfile={FOLDER / preset}"):
    for name, value in last.items():
      expected = FLAGS[name].parser.parse(value)
      assert FLAGS[name].value == expected, name
  assert pathlib.Path.cwd() == tmp_path
