"""A core between an encoder and a head.

Glossary of shapes:
  - T: steps.
  - B: batch size.
"""

from collections.abc import Callable, Sequence
from typing import Any

import haiku as hk
import jax

from rmc.relational_memory import StepInfo
from rmc.unroll import unroll


class SequenceClassifier(hk.Module):
  """Classifies a sequence by the core's output at its last step.

  The read-out is an MLP with a ReLU after every layer, the last too, and a
  linear layer (`sonnet/examples/rmc_nth_farthest.py` of Sonnet v1; appendix
  A.1 of the paper).
  """

  def __init__(
      self,
      core: Callable[[], hk.RNNCore],
      num_classes: int,
      mlp_sizes: Sequence[int] = (256, 256, 256, 256),
      unroll_options: dict[str, Any] | None = None,
      name: str = "sequence_classifier",
  ):
    """Constructs a SequenceClassifier.

    Args:
      core: makes the core, so that its parameters are this module's.
      num_classes: number of logits.
      mlp_sizes: sizes of the read-out's layers.
      unroll_options: further arguments of `rmc.unroll`, such as `remat`.
      name: name of the module.
    """
    super().__init__(name=name)
    self._core = core()
    self._mlp = hk.nets.MLP(mlp_sizes, activate_final=True, name="mlp")
    self._logits = hk.Linear(num_classes, name="logits")
    self._unroll_options = unroll_options or {}

  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Returns logits `[B, num_classes]` for inputs `[T, B, ...]`."""
    outputs, _ = unroll(
        self._core,
        inputs,
        self._core.initial_state(inputs.shape[1]),
        **self._unroll_options,
    )
    return self._logits(self._mlp(outputs[-1]))

  def inspect(self, inputs: jax.Array) -> tuple[jax.Array, StepInfo]:
    """Also tells what happened inside each step of a `RelationalMemory`.

    Args:
      inputs: `[T, B, ...]`.

    Returns:
      Logits `[B, num_classes]`, and the `StepInfo` of all steps, `[T, B, ...]`.
    """

    def step(inputs, memory):
      output, memory, info = self._core.step(inputs, memory)
      return (output, info), memory

    initial_state = self._core.initial_state(inputs.shape[1])
    (outputs, info), _ = hk.dynamic_unroll(step, inputs, initial_state)
    return self._logits(self._mlp(outputs[-1])), info
