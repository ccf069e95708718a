"""Play an environment in the terminal, or film an episode.

    python -m scripts.play --env=mini_pacman --rules=hunt
    python -m scripts.play --env=box_world --view=viewport
    python -m scripts.play --env=box_world --policy=random --gif=episode.gif

The arrow keys or w, a, s and d move, the space bar or a full stop stays (Mini
Pacman), q gives up. Where the input is no terminal its characters are keys.
"""

from collections.abc import Callable, Iterator
import pathlib
import sys
import termios
import tty

from absl import flags
import jax
import numpy as np

from scripts.lib import film, program
from tasks.environments import box_world, interface, mini_pacman

_ENV = flags.DEFINE_enum(
    "env", None, ["mini_pacman", "box_world"], "What to play.", required=True
)
_RULES = flags.DEFINE_enum(
    "rules", None, list(mini_pacman.RULES), "Mode of mini_pacman [regular]."
)
_VIEW = flags.DEFINE_enum(
    "view",
    "full",
    ["full", "viewport"],
    "What is seen: the whole board, or the window of the agent. A GIF shows "
    "the whole board, with a frame round that window.",
)
_POLICY = flags.DEFINE_enum(
    "policy", "keyboard", ["keyboard", "random"], "Who plays."
)
_SEED = flags.DEFINE_integer(
    "seed",
    0,
    "Seed of the level, and of the random player.",
    lower_bound=0,
    upper_bound=2**32 - 1,  # JAX keeps no more of it.
)
_GIF = flags.DEFINE_string("gif", None, "Where to save the episode as a GIF.")

_WAYS = {
    "w": "north", "s": "south", "a": "west", "d": "east",
    "\x1b[A": "north", "\x1b[B": "south", "\x1b[D": "west", "\x1b[C": "east",
    " ": "stay", ".": "stay",
}  # fmt: skip
_COMPASS = {"up": "north", "down": "south", "left": "west", "right": "east"}


@flags.validator("gif", message="must name a file in a folder that exists")
def _check_gif(path: str | None) -> bool:
  if path is None:
    return True
  path = pathlib.Path(path).absolute()
  return path.parent.is_dir() and not path.is_dir()


@flags.multi_flags_validator(
    ["env", "rules"], message="--rules is of --env=mini_pacman only"
)
def _check_rules(values: dict[str, str]) -> bool:
  return values["rules"] is None or values["env"] == "mini_pacman"


def _make() -> tuple[interface.Environment, dict[str, int]]:
  """Returns the environment, and the action of each way to go."""
  if _ENV.value == "box_world":
    env, actions = box_world.BoxWorld(view=_VIEW.value), box_world.ACTIONS
  else:
    env = mini_pacman.MiniPacman(_RULES.value or "regular", view=_VIEW.value)
    actions = mini_pacman.ACTIONS
  return env, {_COMPASS.get(name, name): i for i, name in enumerate(actions)}


def _draw(env: interface.Environment, state, colour: bool) -> str:
  """Returns what is seen of the board as text, in its colours if wanted."""
  rows = env.to_text(state).split()
  pixels = np.rint(np.asarray(env.pixels(state)) * 255).astype(int)
  height, width = len(rows), len(rows[0])
  top, left, bottom, right = env.window(state) or (0, 0, height, width)
  lines = []
  for r in range(max(top, 0), min(bottom, height)):
    line = ""
    for c in range(max(left, 0), min(right, width)):
      letter = rows[r][c]
      if colour:
        red, green, blue = pixels[r, c]
        dark = 2 * red + 5 * green + blue < 1000
        letter = (
            f"\x1b[48;2;{red};{green};{blue}m"
            f"\x1b[{97 if dark else 30}m {letter}\x1b[0m"
        )
      line += letter
    lines.append(line)
  return "\n".join(lines)


def _read_key() -> str:
  """Waits for a key; the empty string at the end of the input."""
  terminal = sys.stdin.isatty()
  if terminal:
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
  try:
    key = sys.stdin.read(1)
    # An arrow key is an escape sequence of three characters.
    return key + sys.stdin.read(2) if key == "\x1b" else key
  except KeyboardInterrupt:
    return ""
  finally:
    if terminal:
      termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _ask(actions: dict[str, int]) -> Callable[[], int | None]:
  """Returns a policy that asks at the keyboard; None is to give up."""

  def policy():
    while (key := _read_key()) not in ("", "q"):
      if _WAYS.get(key) in actions:
        return actions[_WAYS[key]]
    return None

  return policy


def _episode(
    env: interface.Environment, policy: Callable[[], int | None]
) -> Iterator[tuple]:
  """Yields the states and time steps of an episode."""
  step = jax.jit(env.step)
  state, timestep = jax.jit(env.reset)(jax.random.PRNGKey(_SEED.value))
  yield state, timestep
  while timestep.step_type != interface.StepType.LAST:
    action = policy()
    if action is None:
      return
    state, timestep = step(state, np.int32(action))
    yield state, timestep


def main():
  """Plays one episode."""
  env, actions = _make()
  if _POLICY.value == "random":
    random = np.random.default_rng(_SEED.value)
    policy = lambda: random.integers(env.num_actions)  # noqa: E731
  else:
    policy = _ask(actions)
  shows = _POLICY.value == "keyboard" or not _GIF.value
  colour = sys.stdout.isatty()

  total, steps, frames, ended = 0.0, -1, [], False
  for state, timestep in _episode(env, policy):
    total += float(timestep.reward)
    steps += 1
    ended = timestep.step_type == interface.StepType.LAST
    if shows:
      print(_draw(env, state, colour))
      # The corner of BoxWorld shows the key in the hand.
      held = env.to_text(state)[0].replace("#", "none")
      key = f"  key {held}" if _ENV.value == "box_world" else ""
      print(
          f"step {steps}  reward {float(timestep.reward):g}  "
          f"return {total:g}{key}\n",
          flush=True,
      )
    if _GIF.value:
      frames.append(env.render(state))
  print(
      f"{'The episode ended' if ended else 'Given up'} after {steps} steps "
      f"with return {total:g}."
  )
  if _GIF.value:
    film.save_gif(_GIF.value, frames)
    print(f"Saved {len(frames)} frames to {_GIF.value}")


if __name__ == "__main__":
  program.run(main)
