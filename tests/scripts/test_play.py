"""The game in the terminal, run as its users run it."""

import subprocess
import sys

from PIL import Image
import pytest

from tests.helpers.programs import ROOT, run


def play(*arguments, keys=""):
  """Runs the program with keys typed ahead."""
  return run("scripts.play", *arguments, input=keys, timeout=120)


def boards_of(done):
  """Returns the boards that were shown, and checks that they are counted."""
  assert done.returncode == 0, done.stderr
  *boards, ending = done.stdout.split("\n\n")
  for i, board in enumerate(boards):
    assert board.splitlines()[-1].startswith(f"step {i}  reward ")
  assert ending.startswith(f"Given up after {len(boards) - 1} steps with")
  return boards


def test_keys_move_the_agent():
  # Every way, twice; neither x nor the space bar is a key of BoxWorld.
  boards = boards_of(
      play("--env=box_world", keys="wasdx \x1b[A\x1b[D\x1b[B\x1b[Cq")
  )
  assert len(boards) == 9
  places = [board.index("@") for board in boards]
  assert len(set(places)) > 1
  # The arrows do as the letters do, but where a key was taken or a lock opened
  # the agent may get on that could not before.
  ways = [b - a for a, b in zip(places, places[1:], strict=False)]
  for way, step in zip(ways, [-15, -1, 15, 1] * 2, strict=True):
    assert way in (0, step)


def test_pacman_can_stay():
  boards = boards_of(play("--env=mini_pacman", "--rules=hunt", keys=" ."))
  assert len(boards) == 3
  # No ghost begins so near that it could be here by now.
  assert len({board.index("@") for board in boards}) == 1


def test_box_world_ends_at_its_cap():
  done = play("--env=box_world", "--view=viewport", keys="w" * 130)
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[-1] == (
      "The episode ended after 121 steps with return 0."
  )
  board = done.stdout.split("\n\n")[0].splitlines()
  assert len(board) <= 6 and max(map(len, board[:-1])) <= 5
  assert "key none" in board[-1]


@pytest.mark.parametrize(
    "env, size", [("mini_pacman", (304, 240)), ("box_world", (224, 224))]
)
def test_film_of_a_random_episode(tmp_path, env, size):
  path = tmp_path / "episode.gif"
  done = play(
      f"--env={env}", "--policy=random", "--seed=1", f"--gif={path}",
      "--view=viewport",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  ending, saved = done.stdout.splitlines()
  steps = int(ending.split()[4])
  assert saved == f"Saved {steps + 1} frames to {path}"
  with Image.open(path) as film:
    assert film.size == size
    # Frames that show the same are stored as one that lasts longer.
    assert 1 < film.n_frames <= steps + 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--env"),
        (["--env=pong"], "--env=pong"),
        (["--env=box_world", "--rules=hunt"], "--rules is of --env=mini"),
        (["--env=box_world", "--speed=3"], "'speed'"),
        (["--env=box_world", "now"], "'now' is not a flag"),
        (["--env=box_world", "--gif=/no/such/a.gif"], "folder that exists"),
        (["--env=box_world", "--gif=/tmp"], "must name a file in a folder"),
        (["--env=box_world", "--seed=4294967296"], "--seed=4294967296"),
    ],
)
def test_wrong_flag_is_one_line(arguments, message):
  done = play(*arguments)
  assert done.returncode == 2
  assert len(done.stderr.splitlines()) == 1 and message in done.stderr
  assert done.stdout == ""


def test_ctrl_c_is_one_line():
  done = subprocess.run(
      [
          *(sys.executable, "-c"),
          "from scripts.lib import program\n"
          "def main(): raise KeyboardInterrupt\n"
          "program.run(main)",
      ],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
  )
  assert (done.returncode, done.stderr) == (130, "-c: stopped\n")
