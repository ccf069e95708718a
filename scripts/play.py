"""Play an environment in the terminal, or film an episode.

    python -m scripts.play --env=mini_pacman --rules=hunt
    python -m scripts.play --env=box_world --view=viewport
    python -m scripts.play --env=box_world --policy=random --gif=episode.gif
    python -m scripts.play --weights=FILE

The last one watches a trained agent, in the environment that it was trained in;
--workdir names its run instead. The arrow keys or w, a, s and d move, the space
bar or a full stop stays (Mini Pacman), q gives up. Where the input is no
terminal its characters are keys.
"""

from collections.abc import Callable, Iterator
import sys

from absl import flags
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from scripts.lib import film, program, run_flags, terminal, trained_agent
from scripts.lib.agent import Agent
from tasks.environments import box_world, interface, mini_pacman

FLAGS = flags.FLAGS
for _name in ("workdir", "weights", "rules", "view", "seed", "gif"):
  flags.declare_key_flag(_name)

_ENV = flags.DEFINE_enum(
    "env",
    None,
    ["mini_pacman", "box_world"],
    "What to play, unless an agent is watched. --view says what is seen of it; "
    "a GIF shows the whole board, with a frame round the agent's window.",
)
_POLICY = flags.DEFINE_enum(
    "policy", "keyboard", ["keyboard", "random"], "Who plays, if no agent does."
)

_WAYS = {
    "w": "north", "s": "south", "a": "west", "d": "east",
    "\x1b[A": "north", "\x1b[B": "south", "\x1b[D": "west", "\x1b[C": "east",
    " ": "stay", ".": "stay",
}  # fmt: skip
_COMPASS = {"up": "north", "down": "south", "left": "west", "right": "east"}


def _make() -> interface.Environment:
  """Returns the environment that the flags ask for."""
  if _ENV.value is None:
    raise program.UsageError(
        "--env=None must be mini_pacman or box_world, or --weights or "
        "--workdir name a trained agent"
    )
  if _ENV.value == "mini_pacman":
    return mini_pacman.MiniPacman(FLAGS.rules, view=FLAGS.view)
  if FLAGS["rules"].present:
    raise program.UsageError("--rules is of --env=mini_pacman only")
  return box_world.BoxWorld(view=FLAGS.view)


def _ways(env: interface.Environment) -> dict[str, int]:
  """Returns the action of each way to go."""
  is_box = isinstance(env, box_world.BoxWorld)
  names = box_world.ACTIONS if is_box else mini_pacman.ACTIONS
  return {_COMPASS.get(name, name): i for i, name in enumerate(names)}


Policy = Callable[[interface.TimeStep], int | None]


def _ask(actions: dict[str, int]) -> Policy:
  """Returns a policy that asks at the keyboard; None is to give up."""

  def policy(timestep):
    del timestep
    while (key := terminal.read_key()) not in ("", "q"):
      if _WAYS.get(key) in actions:
        return actions[_WAYS[key]]
    return None

  return policy


def _watch(agent: Agent, params: hk.Params) -> Policy:
  """Returns the policy of an agent that begins an episode."""

  @jax.jit
  def step(timestep, core_state, key):
    (logits, _), core_state = agent.network.apply.step(
        params, timestep.observation[None], core_state, jnp.zeros([1], bool)
    )
    return jax.random.categorical(key, logits[0]), core_state

  core_state = agent.network.apply.initial_state(params, 1)
  key = jax.random.key(FLAGS.seed)

  def policy(timestep):
    nonlocal core_state, key
    key, now = jax.random.split(key)
    action, core_state = step(timestep, core_state, now)
    return int(action)

  return policy


def _episode(env: interface.Environment, policy: Policy) -> Iterator[tuple]:
  """Yields the states and time steps of an episode."""
  step = jax.jit(env.step)
  state, timestep = jax.jit(env.reset)(jax.random.PRNGKey(FLAGS.seed))
  yield state, timestep
  while timestep.step_type != interface.StepType.LAST:
    action = policy(timestep)
    if action is None:
      return
    state, timestep = step(state, np.int32(action))
    yield state, timestep


def main():
  """Plays one episode."""
  watches = FLAGS.weights or FLAGS.workdir
  if watches:
    agent, params, _ = trained_agent.load_agent()
    env, policy = agent.env, _watch(agent, params)
  else:
    env = _make()
    policy = _ask(_ways(env))
    if _POLICY.value == "random":
      random = np.random.default_rng(FLAGS.seed)
      policy = lambda _: random.integers(env.num_actions)  # noqa: E731
  by_hand = not watches and _POLICY.value == "keyboard"
  shows = by_hand or not FLAGS.gif
  colour = sys.stdout.isatty()

  total, steps, frames, ended = 0.0, -1, [], False
  for state, timestep in _episode(env, policy):
    total += float(timestep.reward)
    steps += 1
    ended = timestep.step_type == interface.StepType.LAST
    if shows:
      print(terminal.draw(env, state, colour))
      # The corner of BoxWorld shows the key in the hand.
      held = env.to_text(state)[0].replace("#", "none")
      is_box = isinstance(env, box_world.BoxWorld)
      key = f"  key {held}" if is_box else ""
      print(
          f"step {steps}  reward {float(timestep.reward):g}  "
          f"return {total:g}{key}\n",
          flush=True,
      )
    if FLAGS.gif:
      frames.append(env.render(state))
  print(
      f"{'The episode ended' if ended else 'Given up'} after {steps} steps "
      f"with return {total:g}."
  )
  if FLAGS.gif:
    film.save_gif(FLAGS.gif, frames)
    print(f"Saved {len(frames)} frames to {FLAGS.gif}")


if __name__ == "__main__":
  FLAGS.set_default("mode", "eval")  # Begins with the flags of the run.
  FLAGS.set_default("view", "full")
  program.run(main, parse=run_flags.parse)
