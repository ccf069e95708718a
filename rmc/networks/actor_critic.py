"""A core between a convolutional torso and the heads of an agent.

Glossary of shapes:
  - T: steps.
  - B: batch size.
  - A: actions.
  - h, w: height and width of the maps that the torso returns.
  - C: channels of these maps.
"""

from collections.abc import Callable, Sequence
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from rmc import _checks
from rmc.relational_memory import StepInfo
from rmc.unroll import over_steps, unroll


class ActorCritic(hk.Module):
  """A policy and a value from images, through a core that remembers.

  The torso is convolutions with a ReLU after each, and two further maps that
  say where a cell is: its x and y, evenly spaced from -1 to 1. The cells of
  what comes out, h x w of C channels, enter the core as rows that a memory can
  attend to, or as one long vector, or as an image. Two linear heads read the
  core's output (appendix A.3 of the paper, which does not say how the cells
  enter the core; that they tell their place makes sense of rows).

  The torso's defaults are the paper's, for a window of 5 x 5 cells. A larger
  image needs strides, so that the rows stay few.
  """

  def __init__(
      self,
      core: Callable[[], hk.RNNCore],
      num_actions: int,
      core_input: str = "rows",
      channels: Sequence[int] = (12, 24),
      strides: Sequence[int] = (1, 1),
      kernel_shape: int = 2,
      remat: bool = False,
      unroll: int = 1,
      name: str = "actor_critic",
  ):
    """Constructs an ActorCritic.

    Args:
      core: makes the core, so that its parameters are this module's.
      num_actions: A.
      core_input: what the core is given: `'rows'`, `[h * w, C]`, for a
        `RelationalMemory` with `treat_input_as_matrix=True`, which is not its
        default: without it, it takes the rows for one long vector; `'flat'`,
        `[h * w * C]`; or `'image'`, `[h, w, C]`, for a convolutional core.
      channels: of each convolution.
      strides: of each convolution.
      kernel_shape: side of the convolutions' kernels; they are padded (SAME).
      remat: as in `rmc.unroll`.
      unroll: as in `rmc.unroll`.
      name: name of the module.

    Raises:
      ValueError: if an argument is out of its range.
    """
    super().__init__(name=name)
    if core_input not in ("rows", "flat", "image"):
      raise ValueError(
          f"core_input must be 'rows', 'flat' or 'image', got {core_input!r}."
      )
    if not channels or len(channels) != len(strides):
      raise ValueError(
          "channels and strides must be equally many, at least one, got "
          f"{channels} and {strides}."
      )
    _checks.at_least(
        1,
        num_actions=num_actions,
        channels=min(channels),
        strides=min(strides),
        kernel_shape=kernel_shape,
    )
    self._core = core()
    self._core_input = core_input
    self._convolutions = [
        hk.Conv2D(size, kernel_shape, stride, name=f"convolution_{i}")
        for i, (size, stride) in enumerate(zip(channels, strides, strict=True))
    ]
    self._policy = hk.Linear(num_actions, name="policy")
    self._value = hk.Linear(1, name="value")
    self._unroll_options = {"remat": remat, "unroll": unroll}

  def initial_state(self, batch_size: int) -> Any:
    """Returns the core's state before an episode, for B of them."""
    return self._core.initial_state(batch_size)

  def __call__(
      self, observations: jax.Array, state: Any, should_reset: jax.Array
  ) -> tuple[tuple[jax.Array, jax.Array], Any]:
    """Reads a sequence of observations.

    Args:
      observations: `[T, B, height, width, channels]`.
      state: the core's state before the first step.
      should_reset: whether a step begins an episode, booleans `[T, B]`.

    Returns:
      Logits of the policy, `[T, B, A]`, and values, `[T, B]`; and the core's
      state after the last step.

    Raises:
      ValueError: if the observations are not of a floating type, or have other
        axes.
    """
    inputs = over_steps(self._torso, observations)  # [T, B, ...]
    outputs, state = unroll(
        self._core,
        inputs,
        state,
        should_reset=should_reset,
        **self._unroll_options,
    )
    return over_steps(self._heads, outputs), state

  def step(
      self, observation: jax.Array, state: Any, should_reset: jax.Array
  ) -> tuple[tuple[jax.Array, jax.Array], Any]:
    """Takes one step, as a call with T = 1 does.

    Args:
      observation: `[B, height, width, channels]`.
      state: the core's state before it.
      should_reset: whether it begins an episode, booleans `[B]`.

    Returns:
      Logits `[B, A]` and values `[B]`; and the core's next state.
    """
    heads, state = self(observation[None], state, should_reset[None])
    return jax.tree.map(lambda x: x[0], heads), state

  def inspect(
      self, observation: jax.Array, state: Any
  ) -> tuple[tuple[jax.Array, jax.Array], Any, StepInfo]:
    """Takes one step and also tells what happened in a `RelationalMemory`.

    Args:
      observation: `[B, height, width, channels]`.
      state: the core's state; `initial_state` where an episode begins.

    Returns:
      Logits `[B, A]` and values `[B]`; the next state; and the `StepInfo`.
    """
    output, state, info = self._core.step(self._torso(observation), state)
    return self._heads(output), state, info

  def _torso(self, images: jax.Array) -> jax.Array:
    """Returns the core's input for images `[B, height, width, channels]`."""
    if not jnp.issubdtype(images.dtype, jnp.floating):
      raise ValueError(
          f"observations must be of a floating type, got {images.dtype}; scale "
          "pixels first, to be from 0 to 1, say."
      )
    if images.ndim != 4:
      raise ValueError(
          "observations must have shape [T, B, height, width, channels], or "
          "[B, height, width, channels] in a step; with steps and batch as one "
          f"axis they are {list(images.shape)}."
      )
    x = images
    for convolution in self._convolutions:
      x = jax.nn.relu(convolution(x))
    size, height, width, _ = x.shape
    places = jnp.meshgrid(
        jnp.linspace(-1, 1, width, dtype=x.dtype),
        jnp.linspace(-1, 1, height, dtype=x.dtype),
    )
    places = jnp.stack(places, axis=-1)  # [h, w, 2]
    places = jnp.broadcast_to(places, (size, height, width, 2))
    x = jnp.concatenate([x, places], axis=-1)  # [B, h, w, C]
    if self._core_input == "rows":
      return jnp.reshape(x, (size, height * width, -1))
    if self._core_input == "flat":
      return jnp.reshape(x, (size, -1))
    return x

  def _heads(self, outputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns logits `[B, A]` and values `[B]` for the core's outputs."""
    outputs = jnp.reshape(outputs, (len(outputs), -1))
    return self._policy(outputs), self._value(outputs)[:, 0]
