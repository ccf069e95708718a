"""The interface that all environments here share, and its batched sampling.

An environment is a description (its rules and its view) with pure functions:

    state, timestep = environment.reset(key)
    state, timestep = environment.step(state, action)

Both may be passed to `jax.jit` and `jax.vmap`; `jax.vmap(environment.step)` is
the vectorised environment. A state carries its own random key, so what an
episode holds depends on the key that it was reset with and on its actions, and
not on how many environments run beside it.

After a step of type `LAST` the next call of `step` ignores the action and
returns the `FIRST` step of a new episode, as `dm_env` has it: no observation
is dropped, and a loss masks the transition from `LAST` to `FIRST`.

Glossary of shapes:
  - B: environments in a batch.
  - C: candidates that one round of `sample_where` draws.
"""

import abc
from collections.abc import Callable
import enum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class StepType(enum.IntEnum):
  """Where in its episode a step stands; the numbers are those of `dm_env`."""

  FIRST = 0
  MID = 1
  LAST = 2


class TimeStep(NamedTuple):
  """What an environment returns, with the meaning of `dm_env.TimeStep`.

  Arrays only, so the first step of an episode has reward 0 and discount 1
  where `dm_env` has `None`.

  Attributes:
    step_type: int32 [], one of `StepType`.
    reward: float32 [], for the action that led here.
    discount: float32 [], 0 where the episode ended here, else 1.
    observation: float32, of the environment's `observation_shape`.
  """

  step_type: jax.Array
  reward: jax.Array
  discount: jax.Array
  observation: jax.Array


class Environment(abc.ABC):
  """A pure environment: the object holds rules, all that changes is in states.

  Attributes:
    num_actions: actions are the integers from 0 up to this. `step` cannot
      check a traced action; the adapters do.
    observation_shape: shape of an observation, values in [0, 1].
  """

  num_actions: int
  observation_shape: tuple[int, ...]

  @abc.abstractmethod
  def reset(self, key: jax.Array) -> tuple[Any, TimeStep]:
    """Begins an episode.

    Args:
      key: what the episode is drawn with, and all that happens in it.

    Returns:
      The state and a step of type `FIRST`.
    """

  @abc.abstractmethod
  def step(self, state: Any, action: jax.Array) -> tuple[Any, TimeStep]:
    """Takes one step; begins a new episode if `state` is the end of one.

    Args:
      state: what `reset` or `step` returned.
      action: an integer [], from 0 to below `num_actions`.

    Returns:
      The next state and its step.
    """

  @abc.abstractmethod
  def observe(self, state: Any) -> jax.Array:
    """Returns the observation of a state: float32 `observation_shape`."""

  def outcome(
      self, state: Any, timestep: TimeStep
  ) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Tells what came of an episode, beyond its return.

    Args:
      state: the state at the episode's end.
      timestep: the step of type `LAST` that led there.

    Returns:
      Metrics by name: the value, float32 [], and whether this episode counts
      towards the mean of the metric over episodes, bool [].
    """
    del state, timestep
    return {}

  @abc.abstractmethod
  def pixels(self, state: Any) -> jax.Array:
    """Returns the whole board, a pixel a cell: float32 [rows, cols, 3]."""

  @abc.abstractmethod
  def window(self, state: Any) -> tuple[int, int, int, int] | None:
    """Returns the cells that the agent sees, where that is not all.

    Args:
      state: a state, not traced.

    Returns:
      (top, left, bottom, right), the last two exclusive, possibly beyond the
      board; or None for an agent that sees the whole board.
    """

  @abc.abstractmethod
  def to_text(self, state: Any) -> str:
    """Returns the board as lines of text, one character a cell."""

  def render(self, state: Any, scale: int = 16) -> np.ndarray:
    """Draws a state for people, with a frame round what the agent sees.

    Args:
      state: a state, not traced.
      scale: pixels along the side of a cell, at least 1.

    Returns:
      uint8 [rows * scale, cols * scale, 3].

    Raises:
      ValueError: if scale is below 1.
    """
    if scale < 1:
      raise ValueError(f"scale must be at least 1, got {scale}")
    image = np.asarray(self.pixels(state))
    image = np.rint(image * 255).astype(np.uint8)
    image = image.repeat(scale, axis=0).repeat(scale, axis=1)
    window = self.window(state)
    if window is not None:
      # The window may reach beyond the board: the frame stops at its edge.
      top, left, bottom, right = (max(0, edge * scale) for edge in window)
      seen = image[top:bottom, left:right]
      line = max(1, scale // 8)
      for side in (seen[:line], seen[-line:], seen[:, :line], seen[:, -line:]):
        side[:] = (255, 128, 0)
    return image


def windows(rows: int, cols: int) -> np.ndarray:
  """Returns the cells in the window of 5 x 5 round each cell of a board.

  Args:
    rows: rows of the board.
    cols: columns of the board. Cells are counted row by row.

  Returns:
    int32 [rows * cols, 25], row by row; 0 for what is outside the board, so
    that it looks like the cell in the top left corner, a wall.
  """
  cells = np.pad(np.arange(rows * cols).reshape(rows, cols), 2)
  cells = np.lib.stride_tricks.sliding_window_view(cells, (5, 5))
  return cells.reshape(rows * cols, 25).astype(np.int32)


def sample_where(
    needed: jax.Array,
    sample: Callable[..., tuple[jax.Array, Any]],
    key: jax.Array,
    arguments: Any,
    otherwise: Any,
) -> Any:
  """Draws a sample where one is needed, by rejection, and only there.

  On one example this is a loop that calls `sample` until it accepts, zero
  times where nothing is needed. `jax.vmap` of such a loop would draw for the
  whole batch as often as any example needs it. So under `jax.vmap` each round
  gathers the first C examples that still wait, draws for those alone, and
  scatters what was accepted, until no example waits; C is 1/128 of the batch,
  at least 32. Every example gets what it would get alone: its samples depend on
  its own key and attempt number.

  This was chosen by measurement, with `python -m benchmarks.environments
  --resets`. On two CPU cores, 1,024 BoxWorld environments under uniform actions
  took at least four times as many steps a second as when the whole batch, or a
  fixed chunk of 32, draws once anything in it needs to (with episodes of 120
  steps something in a batch ends at nearly every step), and over ten times as
  many as when all draw at every step. Of the values of C tried, 16 to 128 for
  1,024 and 32 to 1,024 for 8,192, 32 was the fastest; a larger C for a much
  larger batch keeps the rounds few, which follow one another. A pool of ready
  levels was not built: it would save the few draws that are left, for memory
  and a choice of how much to draw ahead.

  With a batch that `jax.jit` shards over devices, rows would be gathered across
  them; under `jax.pmap` each device draws for its own.

  Args:
    needed: bool [], whether a sample is needed.
    sample: maps (key, attempt, arguments) to (accepted, value): `attempt` is
      int32 [] and counts from 0, `accepted` is bool []. It closes over no
      traced array, and accepts sooner or later.
    key: the key that every attempt is given.
    arguments: further arguments of `sample`, a tree of arrays.
    otherwise: the value where no sample is needed; a tree like the value's.

  Returns:
    A sample that was accepted, or `otherwise`.
  """

  @jax.custom_batching.custom_vmap
  def draw(needed, key, arguments, otherwise):
    def waiting(carry):
      return carry[1]

    def attempt(carry):
      number, _, _ = carry
      accepted, value = sample(key, number, arguments)
      return number + 1, ~accepted, value

    return jax.lax.while_loop(
        waiting, attempt, (jnp.int32(0), needed, otherwise)
    )[2]

  @draw.def_vmap
  def draw_batch(axis_size, in_batched, *operands):
    needed, key, arguments, otherwise = jax.tree.map(
        lambda x, batched: (
            x if batched else jnp.broadcast_to(x, (axis_size, *x.shape))
        ),
        operands,
        tuple(in_batched),
    )
    chunk = min(axis_size, max(32, axis_size // 128))

    def attempt(carry):
      number, waiting, values = carry
      rows = jnp.nonzero(waiting, size=chunk, fill_value=axis_size)[0]  # [C]
      accepted, value = jax.vmap(sample)(
          *jax.tree.map(
              lambda x: x.at[rows].get(mode="clip"), (key, number, arguments)
          )
      )
      # Rows beyond the batch, the filling and the rejected, are dropped.
      kept = jnp.where(accepted, rows, axis_size)
      return (
          number.at[rows].add(1, mode="drop"),
          waiting.at[kept].set(False, mode="drop"),
          jax.tree.map(
              lambda x, v: x.at[kept].set(v, mode="drop"), values, value
          ),
      )

    number = jnp.zeros([axis_size], jnp.int32)
    values = jax.lax.while_loop(
        lambda carry: jnp.any(carry[1]), attempt, (number, needed, otherwise)
    )[2]
    return values, jax.tree.map(lambda _: True, values)

  return draw(needed, key, arguments, otherwise)
