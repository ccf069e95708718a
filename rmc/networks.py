"""A core between an encoder and a head.

Glossary of shapes:
  - T: steps.
  - T': steps of a decoder.
  - B: batch size.
  - V: size of a vocabulary.
  - D: size of a word's embedding.
  - A: actions.
  - C: channels of an image of h x w places.
"""

from collections.abc import Callable, Sequence
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from rmc import _checks
from rmc.relational_memory import StepInfo
from rmc.softmax import AdaptiveSoftmax, Softmax
from rmc.unroll import over_steps, unroll


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
