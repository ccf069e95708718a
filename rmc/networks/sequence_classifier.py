"""A core and an MLP that classify a sequence.

Glossary of shapes:
  - T: steps.
  - B: batch size.
  - F: features of the core's output.
"""

from collections.abc import Callable, Sequence

import haiku as hk
import jax
import jax.numpy as jnp

from rmc import _checks
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
      remat: bool = False,
      unroll: int = 1,
      name: str = "sequence_classifier",
  ):
    """Constructs a SequenceClassifier.

    Args:
      core: makes the core, so that its parameters are this module's.
      num_classes: number of logits.
      mlp_sizes: sizes of the read-out's layers.
      remat: as in `rmc.unroll`.
      unroll: as in `rmc.unroll`.
      name: name of the module.

    Raises:
      ValueError: if there is no class.
    """
    super().__init__(name=name)
    _checks.at_least(1, num_classes=num_classes)
    self._core = core()
    self._mlp = hk.nets.MLP(mlp_sizes, activate_final=True, name="mlp")
    self._logits = hk.Linear(num_classes, name="logits")
    self._unroll_options = {"remat": remat, "unroll": unroll}

  def __call__(
      self, inputs: jax.Array, lengths: jax.Array | None = None
  ) -> jax.Array:
    """Classifies sequences.

    Args:
      inputs: `[T, B, ...]`.
      lengths: how many steps each sequence has, 1 or more, `[B]`; None, or
        more than there are, for T.

    Returns:
      Logits, `[B, num_classes]`.
    """
    outputs, _ = unroll(
        self._core,
        inputs,
        self._core.initial_state(inputs.shape[1]),
        lengths=lengths,
        **self._unroll_options,
    )  # [T, B, F]
    last = outputs[-1]
    if lengths is not None:
      # Past the length an output is zero.
      place = jnp.minimum(jnp.asarray(lengths, jnp.int32), len(outputs)) - 1
      last = jnp.take_along_axis(outputs, place[None, :, None], axis=0)[0]
    return self._logits(self._mlp(last))

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
