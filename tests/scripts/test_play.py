"""The game in the terminal."""

import subprocess
import sys

from PIL import Image
import pytest

from tests.helpers.in_process import own_process
from tests.helpers.programs import ROOT, run


@pytest.fixture(scope="module")
def play():
  """Returns a function that runs the program with keys typed ahead.

  It returns the exit status, and what was printed on stdout and stderr.
  """
  with own_process("scripts.play") as exit_there:
    yield lambda *arguments, keys="": exit_there(*arguments, stdin=keys)


def boards_of(status, out, err):
  """Returns the boards that were shown, and checks that they are counted."""
  assert (status, err) == (0, "")
  *boards, ending = out.split("\n\n")
  for i, board in enumerate(boards):
    assert board.splitlines()[-1].startswith(f"step {i}  reward ")
  assert ending.startswith(f"Given up after {len(boards) - 1} steps with")
  return boards


def test_keys_move_the_agent(play):
  # Every way, twice; neither x nor the space bar is a key of BoxWorld.
  boards = boards_of(
      *play("--env=box_world", keys="wasdx \x1b[A\x1b[D\x1b[B\x1b[Cq")
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
  """As its users run it."""
  done = run("scripts.play", "--env=mini_pacman", "--rules=hunt", input=" .")
  boards = boards_of(done.returncode, done.stdout, done.stderr)
  assert len(boards) == 3
  # No ghost begins so near that it could be here by now.
  assert len({board.index("@") for board in boards}) == 1


def test_box_world_ends_at_its_cap(play):
  status, out, err = play(
      "--env=box_world", "--view=viewport", keys="w" * 130
  )
  assert (status, err) == (0, "")
  assert out.splitlines()[-1] == (
      "The episode ended after 121 steps with return 0."
  )
  board = out.split("\n\n")[0].splitlines()
  assert len(board) <= 6 and max(map(len, board[:-1])) <= 5
  assert "key none" in board[-1]


@pytest.mark.parametrize(
    "env, size", [("mini_pacman", (304, 240)), ("box_world", (224, 224))]
)
def test_film_of_a_random_episode(play, tmp_path, env, size):
  path = tmp_path / "episode.gif"
  status, out, err = play(
      f"--env={env}", "--policy=random", "--seed=1", f"--gif={path}",
      "--view=viewport",
  )  # fmt: skip
  assert (status, err) == (0, "")
  ending, saved = out.splitlines()
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
def test_wrong_flag_is_one_line(play, arguments, message):
  status, out, err = play(*arguments)
  assert (status, out, err.count("\n")) == (2, "", 1)
  assert message in err


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
