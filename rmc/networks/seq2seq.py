"""A core that reads a sequence and a core that writes another.

Glossary of shapes:
  - T: steps of the encoder.
  - T': steps of the decoder.
  - B: batch size.
  - V: size of the vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from rmc import _checks
from rmc.unroll import unroll


class Seq2Seq(hk.Module):
  """Reads a sequence of tokens, then writes another.

  The encoder reads the input up to its length. The decoder starts from the
  state that this leaves, and its output at each step goes through an MLP with
  a ReLU after every layer, the last too, and a linear layer. Encoder and
  decoder are one and the same core in `sonnet/examples/rmc_learn_to_execute.py`
  of Sonnet v1; the paper (section 4.1 and appendix A.2) does not say.

  The decoder gets nothing to read, zeros at every step, when the model is not
  auto-regressive, which served the paper best. Otherwise it is told the token
  before: in training the right one (teacher forcing), in use its own.
  """

  def __init__(
      self,
      core: Callable[[], hk.RNNCore],
      vocab_size: int,
      mlp_sizes: Sequence[int] = (256, 256, 256, 256),
      share_core: bool = True,
      remat: bool = False,
      unroll: int = 1,
      name: str = "seq2seq",
  ):
    """Constructs a Seq2Seq.

    Args:
      core: makes a core, so that its parameters are this module's.
      vocab_size: V, of both sequences.
      mlp_sizes: sizes of the MLP's layers.
      share_core: whether the encoder is the decoder too.
      remat: as in `rmc.unroll`.
      unroll: as in `rmc.unroll`.
      name: name of the module.
    """
    super().__init__(name=name)
    self._encoder = core()
    self._decoder = self._encoder if share_core else core()
    self._mlp = hk.nets.MLP(mlp_sizes, activate_final=True, name="mlp")
    self._logits = hk.Linear(vocab_size, name="logits")
    self._vocab_size = vocab_size
    self._unroll_options = {"remat": remat, "unroll": unroll}

  def __call__(
      self,
      inputs: jax.Array,
      input_lengths: jax.Array,
      decoder_inputs: jax.Array,
      output_lengths: jax.Array,
  ) -> jax.Array:
    """Returns the logits of all places of the output.

    Args:
      inputs: tokens, `[T, B]`.
      input_lengths: how many of them there are, `[B]`.
      decoder_inputs: the token that each step of the decoder is told,
        `[T', B]`; -1 for none, which is a vector of zeros.
      output_lengths: steps that the decoder takes, `[B]`.

    Returns:
      Logits `[T', B, V]`, those past the length of no meaning.
    """
    (decoder_inputs,) = _checks.integers(decoder_inputs=decoder_inputs)
    outputs, _ = unroll(
        self._decoder,
        jax.nn.one_hot(decoder_inputs, self._vocab_size),
        self._encode(inputs, input_lengths),
        lengths=output_lengths,
        **self._unroll_options,
    )
    return self._logits(self._mlp(outputs))

  def generate(
      self,
      inputs: jax.Array,
      input_lengths: jax.Array,
      start_token: int,
      num_steps: int,
  ) -> jax.Array:
    """Tells each step of the decoder the likeliest token of the step before.

    Args:
      inputs: tokens, `[T, B]`.
      input_lengths: how many of them there are, `[B]`.
      start_token: what the first step is told.
      num_steps: T'.

    Returns:
      Logits `[T', B, V]`.
    """

    def step(_, token_and_state):
      token, state = token_and_state
      x = jax.nn.one_hot(token, self._vocab_size)  # [B, V]
      output, state = self._decoder(x, state)
      logits = self._logits(self._mlp(output))  # [B, V]
      return logits, (jnp.argmax(logits, axis=1).astype(token.dtype), state)

    start = jnp.full(input_lengths.shape, start_token, jnp.int32)
    state = self._encode(inputs, input_lengths)
    logits, _ = hk.dynamic_unroll(
        step, jnp.zeros([num_steps]), (start, state)
    )
    return logits

  def _encode(self, inputs: jax.Array, lengths: jax.Array) -> Any:
    """Returns the state after an input."""
    (inputs,) = _checks.integers(inputs=inputs)
    _, state = unroll(
        self._encoder,
        jax.nn.one_hot(inputs, self._vocab_size),
        self._encoder.initial_state(inputs.shape[1]),
        lengths=lengths,
        **self._unroll_options,
    )
    return state
