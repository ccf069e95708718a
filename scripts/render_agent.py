"""Films an episode of what `train_mini_pacman` or `train_box_world` trained.

  python -m scripts.render_agent --workdir=runs/box_world --gif=episode.gif

To the left is the board, with a frame round what the agent sees; the top left
corner of BoxWorld's is the key in the hand. Below it are the step, the return
so far, the value that the agent expects from here, and its action. To the
right is, for an RMC, a line for each slot: how much it attends to the cells of
the view and, beside them, to each slot, averaged over heads; the most is white.
--eval_seed chooses a level, which is none of training.
"""

from collections.abc import Iterator
from typing import NamedTuple

from absl import flags
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from scripts.lib import agent_flags, experiment, film, program, trained_agent
from scripts.lib.agent import Agent
from tasks.environments import StepType, box_world, mini_pacman

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(trained_agent)
flags.adopt_module_key_flags(film)

flags.DEFINE_boolean(
    "greedy", False, "Take the likeliest action, rather than draw one."
)

_TEXT_HEIGHT = 30


class Frame(NamedTuple):
  """A step of the agent.

  Attributes:
    state: of the environment.
    reward: that led here.
    value: what the agent expects.
    action: what it does then.
    attention: of each slot, averaged over heads, to each slot and then to each
      row of the input, `[N, N + n]`; None if the core is no RMC.
  """

  state: object
  reward: float
  value: float
  action: int
  attention: np.ndarray | None


def episode(
    agent: Agent, params: hk.Params, key: jax.Array, greedy: bool
) -> Iterator[Frame]:
  """Yields the steps of an episode, its last observation too.

  Args:
    agent: who plays.
    params: its parameters.
    key: of the level and the actions.
    greedy: whether to take the likeliest action, rather than draw one.

  Yields:
    The steps.
  """
  inspects = FLAGS.core == "rmc"

  @jax.jit
  def look(timestep, core_state):
    observation = timestep.observation[None]
    if inspects:
      heads, core_state, info = agent.network.apply.inspect(
          params, observation, core_state
      )
      attention = jnp.mean(info.attention_weights[0][0], axis=0)
    else:
      heads, core_state = agent.network.apply.step(
          params, observation, core_state, jnp.zeros([1], bool)
      )
      attention = None
    logits, value = (x[0] for x in heads)
    return logits, value, core_state, attention

  step = jax.jit(agent.env.step)
  level_key, key = jax.random.split(key)
  state, timestep = jax.jit(agent.env.reset)(jax.random.key_data(level_key))
  core_state = agent.network.apply.initial_state(params, 1)
  number = 0
  while True:
    logits, value, core_state, attention = look(timestep, core_state)
    action = jnp.argmax(logits)
    if not greedy:
      action = jax.random.categorical(jax.random.fold_in(key, number), logits)
    reward = float(timestep.reward)
    yield Frame(state, reward, float(value), int(action), attention)
    if timestep.step_type == StepType.LAST:
      return
    state, timestep = step(state, action)
    number += 1


def draw(
    agent: Agent, frame: Frame, text: str, input_shape: tuple[int, int]
) -> np.ndarray:
  """Draws a step.

  Args:
    agent: whose it is.
    frame: the step.
    text: what to write below the board.
    input_shape: how the input's rows are laid out, `(h, w)`.

  Returns:
    uint8 `[height, width, 3]`.
  """
  board = agent.env.render(frame.state)
  panels = [np.pad(board, ((0, _TEXT_HEIGHT), (0, 8), (0, 0)))]
  if frame.attention is not None:
    panels.append(_attention(frame.attention, input_shape, len(panels[0])))
  height = max(map(len, panels))
  panels = [np.pad(x, ((0, height - len(x)), (0, 0), (0, 0))) for x in panels]
  image = Image.fromarray(np.concatenate(panels, axis=1))
  ImageDraw.Draw(image).text(
      (4, board.shape[0] + 2), text, fill=(255, 255, 255)
  )
  return np.asarray(image)


def _attention(
    weights: np.ndarray, input_shape: tuple[int, int], height: int
) -> np.ndarray:
  """Draws a line for each slot: the cells, then the slots.

  All lines are as high as asked for, or higher if there are many slots.
  """
  num_slots = len(weights)
  rows, cols = input_shape
  cell = max(1, (height // num_slots - 4) // max(rows, num_slots))
  size = max(height // num_slots, cell * max(rows, num_slots) + 4)
  lines = []
  for weight in np.asarray(weights / np.max(weights)):
    to_cells = np.kron(
        weight[num_slots:].reshape(rows, cols), np.ones([cell, cell])
    )
    to_slots = np.kron(weight[:num_slots, None], np.ones([cell, cell]))
    line = np.full([size, (cols + 1) * cell + 12], 0.25)
    line[2 : 2 + rows * cell, 4 : 4 + cols * cell] = to_cells
    line[2 : 2 + num_slots * cell, -4 - cell : -4] = to_slots
    lines.append(line)
  image = np.concatenate(lines)
  return np.rint(image * 255).astype(np.uint8)[..., None].repeat(3, axis=2)


def main():
  """Films an episode."""
  if not FLAGS.gif:
    raise program.UsageError("--gif must name a file in a folder that exists")
  agent, params, _ = trained_agent.load_agent()
  box = isinstance(agent.env, box_world.BoxWorld)
  names = box_world.ACTIONS if box else mini_pacman.ACTIONS
  key = agent_flags.held_out_key(FLAGS.eval_seed)
  shape = agent_flags.torso_shape(agent.env)
  if FLAGS.flatten:
    shape = (1, 1)
  total, images = 0.0, []
  for step, frame in enumerate(episode(agent, params, key, FLAGS.greedy)):
    total += frame.reward
    text = f"step {step}  return {total:g}\nvalue {frame.value:.2f}  "
    images.append(draw(agent, frame, text + names[frame.action], shape))
  film.save_gif(FLAGS.gif, images)
  print(f"Saved {len(images)} frames, of return {total:g}, to {FLAGS.gif}")


if __name__ == "__main__":
  FLAGS.set_default("mode", "eval")  # Begins with the flags of the run.
  experiment.run_program(main)
