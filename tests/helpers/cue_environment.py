"""A game of memory: recall at the end what was shown at the start."""

from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from tasks.environments import interface


class State(NamedTuple):
  """State of one episode.

  Attributes:
    key: random key of the episodes to come.
    cue: int32 [], what was shown.
    frame: int32 [], steps of this episode.
    step_type: int32 [], of the step that led here.
  """

  key: jax.Array
  cue: jax.Array
  frame: jax.Array
  step_type: jax.Array


class Recall(interface.Environment):
  """Shows one of two cues, then nothing, then asks which it was.

  The observation is a single pixel of three channels: a cue each, and the
  question, which comes `delay` steps after the cue. The answer earns 1 or -1,
  and ends the episode with a discount of 0, or of 1 if it is `truncated`.
  """

  num_actions = 2
  observation_shape = (1, 1, 3)

  def __init__(self, delay: int, truncated: bool = False):
    self._delay = delay
    self._truncated = truncated

  def reset(self, key):
    key, cue_key = jax.random.split(key)
    state = State(
        key=key,
        cue=jax.random.randint(cue_key, [], 0, 2, jnp.int32),
        frame=jnp.int32(0),
        step_type=jnp.int32(interface.StepType.FIRST),
    )
    return state, self._timestep(state, jnp.float32(0))

  def step(self, state, action):
    last = state.frame == self._delay
    following = state._replace(
        frame=state.frame + 1,
        step_type=jnp.where(
            last,
            jnp.int32(interface.StepType.LAST),
            jnp.int32(interface.StepType.MID),
        ),
    )
    right = jnp.where(action == state.cue, jnp.float32(1), jnp.float32(-1))
    played = (following, self._timestep(following, jnp.where(last, right, 0)))
    restart = state.step_type == interface.StepType.LAST
    return jax.tree.map(
        lambda x, y: jnp.where(restart, x, y), self.reset(state.key), played
    )

  def _timestep(self, state, reward):
    ended = state.step_type == interface.StepType.LAST
    if self._truncated:
      ended = jnp.zeros_like(ended)
    return interface.TimeStep(
        step_type=state.step_type,
        reward=reward,
        discount=jnp.where(ended, jnp.float32(0), jnp.float32(1)),
        observation=self.observe(state),
    )

  def observe(self, state):
    index = jnp.where(state.frame == 0, state.cue, 2)
    shown = (state.frame == 0) | (state.frame == self._delay)
    image = jnp.where(shown, jax.nn.one_hot(index, 3), jnp.zeros([3]))
    return jnp.reshape(image, (1, 1, 3))

  def pixels(self, state):
    return self.observe(state)

  def window(self, state):
    return None

  def to_text(self, state):
    return f"{int(state.cue)}{int(state.frame)}"


class FeedForward(hk.RNNCore):
  """A core that remembers nothing."""

  def __init__(self, size: int, name: str = "feed_forward"):
    super().__init__(name=name)
    self._linear = hk.Linear(size)

  def initial_state(self, batch_size):
    return jnp.zeros([] if batch_size is None else [batch_size])

  def __call__(self, inputs, state):
    return jax.nn.relu(self._linear(inputs)), state


class Counter(hk.RNNCore):
  """Puts out how many steps it has taken since its initial state."""

  def initial_state(self, batch_size):
    return jnp.zeros([1] if batch_size is None else [batch_size, 1])

  def __call__(self, inputs, state):
    return state, state + 1
