"""A core between word embeddings and a softmax.

Glossary of shapes:
  - T: steps.
  - B: batch size.
  - V: size of the vocabulary.
  - D: size of a word's embedding.
"""

from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from rmc.softmax import AdaptiveSoftmax, Softmax
from rmc.unroll import unroll


class LanguageModel(hk.Module):
  """Predicts each word of a text from those before it.

  A word's embedding is the core's input, and the core's output is projected to
  the size of an embedding, for the softmax, which may share the embeddings
  (appendix A.4 of the paper, second version).

  The projection starts out small, so that all words are about as likely.
  """

  def __init__(
      self,
      core: Callable[[], hk.RNNCore],
      softmax: Callable[[], Softmax | AdaptiveSoftmax],
      embedding_dropout: float = 0.5,
      output_dropout: float = 0.0,
      output_projection: bool = True,
      remat: bool = False,
      unroll: int = 1,
      name: str = "language_model",
  ):
    """Constructs a LanguageModel.

    Args:
      core: makes the core, so that its parameters are this module's.
      softmax: makes the embeddings and the softmax.
      embedding_dropout: the share of an embedding's entries that training
        leaves out.
      output_dropout: the same of the core's output.
      output_projection: whether there is a projection; without it the core's
        output must have the size of an embedding.
      remat: as in `rmc.unroll`.
      unroll: as in `rmc.unroll`.
      name: name of the module.

    Raises:
      ValueError: if a share is not from 0 to below 1.
    """
    super().__init__(name=name)
    for argument, rate in (
        ("embedding_dropout", embedding_dropout),
        ("output_dropout", output_dropout),
    ):
      if not 0 <= rate < 1:
        raise ValueError(f"{argument} must be from 0 to below 1, got {rate}.")
    self._core = core()
    self._softmax = softmax()
    self._projection = None
    if output_projection:
      self._projection = hk.Linear(
          self._softmax.embedding_size,
          w_init=hk.initializers.VarianceScaling(0.01),
          name="projection",
      )
    self._embedding_dropout = embedding_dropout
    self._output_dropout = output_dropout
    self._unroll_options = {"remat": remat, "unroll": unroll}

  def initial_state(self, batch_size: int) -> Any:
    """Returns the core's state before a text, for B of them."""
    return self._core.initial_state(batch_size)

  def __call__(
      self,
      tokens: jax.Array,
      targets: jax.Array,
      state: Any,
      keys: jax.Array | None = None,
  ) -> tuple[jax.Array, Any]:
    """Returns how likely the next words are, and the state after the text.

    Args:
      tokens: words, `[T, B]`.
      targets: the words to predict, `[T, B]`.
      state: the core's state before the first word.
      keys: of the dropout, one for each text, `[B]`; None for no dropout.

    Returns:
      Log-probabilities of the targets, `[T, B]`, and the core's next state.

    Raises:
      ValueError: if there is no projection and the core's output has not the
        size of an embedding, or targets have not the shape of tokens.
    """
    outputs, state = self._read(tokens, state, keys)
    return self._softmax.log_probs(outputs, targets), state

  def loss(
      self,
      tokens: jax.Array,
      targets: jax.Array,
      state: Any,
      keys: jax.Array | None = None,
  ) -> tuple[jax.Array, Any]:
    """Returns the mean of minus a call's log-probabilities, to train on.

    Its gradient takes less time than that of a call; JAX refuses forward mode,
    as of `rmc.unroll`.

    Args:
      tokens: words, `[T, B]`.
      targets: the words to predict, `[T, B]`.
      state: the core's state before the first word.
      keys: of the dropout, one for each text, `[B]`; None for no dropout.

    Returns:
      The mean, `[]`, and the core's next state.

    Raises:
      ValueError: as a call.
    """
    outputs, state = self._read(tokens, state, keys)
    return self._softmax.cross_entropy(outputs, targets), state

  def step(self, tokens: jax.Array, state: Any) -> tuple[jax.Array, Any]:
    """Reads one word and tells how likely every word is to be the next.

    Args:
      tokens: words, `[B]`.
      state: the core's state before them.

    Returns:
      Log-probabilities `[B, V]` and the core's next state.

    Raises:
      ValueError: as a call.
    """
    output, state = self._core(self._softmax.embed(tokens), state)
    return self._softmax.all_log_probs(self._project(output)), state

  def _read(
      self, tokens: jax.Array, state: Any, keys: jax.Array | None
  ) -> tuple[jax.Array, Any]:
    """Returns the softmax's input, `[T, B, D]`, and the core's next state."""
    inputs = self._softmax.embed(tokens)  # [T, B, D]
    inputs = _dropout(inputs, self._embedding_dropout, keys, 0)
    outputs, state = unroll(
        self._core, inputs, state, **self._unroll_options
    )
    outputs = _dropout(outputs, self._output_dropout, keys, 1)
    return self._project(outputs), state

  def _project(self, outputs: jax.Array) -> jax.Array:
    """Returns outputs of the size of an embedding, `[..., D]`."""
    if self._projection is not None:
      return self._projection(outputs)
    if outputs.shape[-1] != self._softmax.embedding_size:
      raise ValueError(
          f"output_projection is needed: the core's output has "
          f"{outputs.shape[-1]} features and an embedding "
          f"{self._softmax.embedding_size}."
      )
    return outputs


def _dropout(
    x: jax.Array, rate: float, keys: jax.Array | None, number: int
) -> jax.Array:
  """Drops entries of `[T, B, ...]`, each example by its own key alone."""
  if keys is None or not rate:
    return x

  def kept(key):
    key = jax.random.fold_in(key, number)
    return jax.random.bernoulli(key, 1 - rate, (len(x), *x.shape[2:]))

  mask = jax.vmap(kept, out_axes=1)(keys)
  return jnp.where(mask, x / (1 - rate), jnp.zeros_like(x))
