"""Softmax over many classes, such as the words of a language.

Glossary of shapes:
  - T: steps.
  - B: batch size.
  - D: size of an output of the network and of an embedding.
  - V: number of classes.
"""

from collections.abc import Callable, Sequence
import functools
import itertools
import math
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from rmc import _checks

# How many logits of one pass are in memory at a time, unless one step has more.
_MAX_LOGITS = 2**26

# (parameters, outputs [T, ..., D], targets [T, ...]) -> values [T, ...].
_Function = Callable[[Any, jax.Array, jax.Array], jax.Array]
# The head's weights and bias; the weights, projection and bias of each tail.
_AdaptiveParams = tuple[
    tuple[jax.Array, jax.Array], list[tuple[jax.Array, jax.Array, jax.Array]]
]


def log_probs(
    outputs: jax.Array,
    weights: jax.Array,
    bias: jax.Array,
    targets: jax.Array,
    chunk_size: int | None = None,
) -> jax.Array:
  """Returns the log-probabilities of targets under a softmax, chunk by chunk.

  The logits of some steps are made, used and dropped, and made again for the
  backward pass. If all steps are one chunk, nothing is made again, and the
  logits `[T, B, V]` are in memory at once. The numbers are the same either way
  but for rounding.

  Args:
    outputs: `[T, ..., D]`.
    weights: `[V, D]`.
    bias: `[V]`.
    targets: classes, integers `[T, ...]`.
    chunk_size: steps whose logits are made at a time; None for as many as make
      at most 2**26 logits, but at least one.

  Returns:
    Log-probabilities, `[T, ...]`; NaN for a target that is no class.

  Raises:
    ValueError: if the shapes disagree, targets are no integers, or chunk_size
      is below 1.
  """
  params = _checked_params(outputs, weights, bias)
  sizes = (weights.shape[0], chunk_size)
  return _in_chunks(_log_probs, params, outputs, targets, *sizes)


def cross_entropy(
    outputs: jax.Array,
    weights: jax.Array,
    bias: jax.Array,
    targets: jax.Array,
    chunk_size: int | None = None,
) -> jax.Array:
  """Returns the mean of minus `log_probs`, which a network is trained on.

  A chunk's gradient is computed with its loss, while its logits are there:
  that of the mean is known but for a factor before any other chunk is seen. So
  no logits are made twice. The gradients that are kept have the size of outputs
  and parameters. Of more than one chunk JAX then refuses forward-mode
  derivatives (`jax.jvp`), though not of its gradients; in `jax.shard_map` give
  `check_vma=False`.

  Args:
    outputs: `[T, ..., D]`.
    weights: `[V, D]`.
    bias: `[V]`.
    targets: classes, integers `[T, ...]`.
    chunk_size: as in `log_probs`.

  Returns:
    A number, `[]`, NaN if a target is no class.

  Raises:
    ValueError: if the shapes disagree, targets are no integers, or chunk_size
      is below 1.
  """
  params = _checked_params(outputs, weights, bias)
  sizes = (weights.shape[0], chunk_size)
  return _mean_in_chunks(_log_probs, params, outputs, targets, *sizes)


class _Chunked(hk.Module):
  """What is the same for all softmaxes: their words are taken in chunks."""

  # JAX may call what makes a chunk after the transform of Haiku has ended, as
  # in the gradient of a `jit`; a method that Haiku wraps would look for it. So
  # those below, and what they call, are transparent. A policy of mixed
  # precision would also cast what such a method returns.

  _vocab_size: int
  _chunk_size: int | None

  def log_probs(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns log-probabilities `[T, ...]` of words `[T, ...]`.

    Args:
      outputs: of the network, `[T, ..., D]`.
      targets: words, `[T, ...]`.

    Returns:
      NaN for what is no word.

    Raises:
      ValueError: if the shapes disagree, targets are no integers, or
        chunk_size is below 1.
    """
    sizes = (self._vocab_size, self._chunk_size)
    return _in_chunks(self._values, self._params(), outputs, targets, *sizes)

  def cross_entropy(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the mean of minus `log_probs`, with a faster gradient.

    Args:
      outputs: of the network, `[T, ..., D]`.
      targets: words, `[T, ...]`.

    Returns:
      A number, `[]`; see `rmc.softmax.cross_entropy`.

    Raises:
      ValueError: if the shapes disagree, targets are no integers, or
        chunk_size is below 1.
    """
    params, sizes = self._params(), (self._vocab_size, self._chunk_size)
    return _mean_in_chunks(self._values, params, outputs, targets, *sizes)

  @hk.transparent
  def _params(self) -> Any:
    """Returns all parameters that the words' probabilities depend on."""
    raise NotImplementedError

  @hk.transparent
  def _values(
      self, params: Any, outputs: jax.Array, targets: jax.Array
  ) -> jax.Array:
    """Returns log-probabilities of a chunk, of its arguments alone."""
    raise NotImplementedError


class Softmax(_Chunked):
  r"""A softmax over words and the embedding that feeds the network.

  .. math::

    \log p(v) = e_v^T o + b_v - \log \sum_u \exp(e_u^T o + b_u)

  When tied, the rows :math:`e_v` are the words' embeddings too::

    >>> def predict(tokens):
    ...   softmax = Softmax(vocab_size=10, embedding_size=4)
    ...   return softmax.log_probs(softmax.embed(tokens[:-1]), tokens[1:])
    >>> predict = hk.without_apply_rng(hk.transform(predict))
    >>> tokens = jnp.array([3, 1, 4, 1, 5])
    >>> params = predict.init(jax.random.key(0), tokens)
    >>> predict.apply(params, tokens).shape
    (4,)

  Attributes:
    embedding_size: D.
  """

  def __init__(
      self,
      vocab_size: int,
      embedding_size: int,
      tied: bool = True,
      chunk_size: int | None = None,
      name: str = "softmax",
  ):
    """Constructs a Softmax.

    Args:
      vocab_size: V.
      embedding_size: D.
      tied: whether the softmax's weights are the embedding.
      chunk_size: steps whose logits are made at a time; None for as many as
        make at most 2**26 logits, but at least one.
      name: name of the module.

    Raises:
      ValueError: if a size is below 1.
    """
    super().__init__(name=name)
    _checks.at_least(1, vocab_size=vocab_size, embedding_size=embedding_size)
    _check_chunk_size(chunk_size)
    self._vocab_size = vocab_size
    self.embedding_size = embedding_size
    self._tied = tied
    self._chunk_size = chunk_size

  def embed(self, tokens: jax.Array) -> jax.Array:
    """Returns embeddings `[..., D]` of words `[...]`, from 0 to below V."""
    (tokens,) = _checks.integers(tokens=tokens)
    name = "weights" if self._tied else "embedding"
    return _matrix(name, self._vocab_size, self.embedding_size)[tokens]

  def all_log_probs(self, outputs: jax.Array) -> jax.Array:
    """Returns log-probabilities `[..., V]` for outputs `[..., D]`."""
    return jax.nn.log_softmax(_logits(outputs, *self._params()))

  @hk.transparent
  def _values(self, params, outputs, targets):
    return _log_probs(params, outputs, targets)

  @hk.transparent
  def _params(self) -> tuple[jax.Array, jax.Array]:
    """Returns weights `[V, D]` and bias `[V]`."""
    weights = _matrix("weights", self._vocab_size, self.embedding_size)
    return weights, _bias("bias", self._vocab_size)


class AdaptiveSoftmax(_Chunked):
  r"""The adaptive softmax of Grave et al. (2017), words in order of frequency.

  The cutoffs :math:`c_0 < c_1 < \ldots` cut the words into a head and tails.
  The head is a softmax over its own words and one class for each tail; a word
  of tail i costs another softmax, over the tail's words, whose embeddings are
  :math:`k^i` times smaller:

  .. math::

    p(v) = p_{head}(v) \quad (v < c_0) \qquad
    p(v) = p_{head}(i) \, softmax_i(E_i P_i o)_v \quad (c_{i-1} \le v < c_i)

  When tied, the input is the adaptive one of Baevski and Auli (2019): the
  embedding of a word of tail i is its row of :math:`E_i` times :math:`P_i`.

  Parameters and products shrink. Since shapes are static, every tail is
  computed for every output, whether or not it is asked for.

  Attributes:
    embedding_size: D.
  """

  def __init__(
      self,
      vocab_size: int,
      embedding_size: int,
      cutoffs: Sequence[int],
      factor: int = 4,
      tied: bool = True,
      chunk_size: int | None = None,
      name: str = "adaptive_softmax",
  ):
    """Constructs an AdaptiveSoftmax.

    Args:
      vocab_size: V.
      embedding_size: D.
      cutoffs: the first words of the tails, ascending.
      factor: how many times smaller the embeddings of each tail are.
      tied: whether the softmax's weights are the embedding.
      chunk_size: steps whose logits are made at a time; None for as many as
        make at most 2**26 logits, but at least one.
      name: name of the module.

    Raises:
      ValueError: if the cutoffs do not ascend from 1 to below V, or leave a
        tail without features, or a size is below 1.
    """
    super().__init__(name=name)
    _checks.at_least(
        1, vocab_size=vocab_size, embedding_size=embedding_size, factor=factor
    )
    _check_chunk_size(chunk_size)
    bounds = [0, *cutoffs, vocab_size]
    if not cutoffs or any(a >= b for a, b in itertools.pairwise(bounds)):
      raise ValueError(
          f"cutoffs must ascend from 1 to below the {vocab_size} words, got "
          f"{list(cutoffs)}."
      )
    if embedding_size < factor ** len(cutoffs):
      raise ValueError(
          f"cutoffs must be few enough for embedding_size {embedding_size} to "
          f"shrink {factor} times at each, got {list(cutoffs)}."
      )
    self._vocab_size = vocab_size
    self.embedding_size = embedding_size
    self._head_size = cutoffs[0]
    self._tails = list(itertools.pairwise(bounds[1:]))
    self._factor = factor
    self._tied = tied
    self._chunk_size = chunk_size

  def embed(self, tokens: jax.Array) -> jax.Array:
    """Returns embeddings `[..., D]` of words `[...]`, from 0 to below V."""
    (tokens,) = _checks.integers(tokens=tokens)
    if not self._tied:
      size = self.embedding_size
      return _matrix("embedding", self._vocab_size, size)[tokens]
    weights, _ = self._head()
    embeddings = weights[jnp.minimum(tokens, self._head_size - 1)]
    for i in range(len(self._tails)):
      weights, projection, _ = self._tail(i)
      in_tail, places = self._places(tokens, i)
      embeddings = jnp.where(
          in_tail[..., None], weights[places] @ projection, embeddings
      )
    return embeddings

  def all_log_probs(self, outputs: jax.Array) -> jax.Array:
    """Returns log-probabilities `[..., V]` for outputs `[..., D]`."""
    logits = self._logits(self._params(), outputs)
    head, *tails = map(jax.nn.log_softmax, logits)
    words, classes = jnp.split(head, [self._head_size], axis=-1)
    tails = [classes[..., i, None] + tail for i, tail in enumerate(tails)]
    return jnp.concatenate([words, *tails], axis=-1)

  @hk.transparent
  def _values(
      self, params: _AdaptiveParams, outputs: jax.Array, targets: jax.Array
  ) -> jax.Array:
    """Returns log-probabilities `[T, ...]` of words `[T, ...]`."""
    head, *tails = self._logits(params, outputs)
    classes = targets
    for i, (first, _) in enumerate(self._tails):
      classes = jnp.where(targets >= first, self._head_size + i, classes)
    result = _log_prob(head, classes)
    for i, tail in enumerate(tails):
      in_tail, places = self._places(targets, i)
      result += jnp.where(in_tail, _log_prob(tail, places), 0)
    return _where_class(targets, self._vocab_size, result)

  @hk.transparent
  def _logits(
      self, params: _AdaptiveParams, outputs: jax.Array
  ) -> list[jax.Array]:
    """Returns the logits of the head and those of each tail."""
    head, tails = params
    return [
        _logits(outputs, *head),
        *(
            _logits(outputs @ projection.T, weights, bias)
            for weights, projection, bias in tails
        ),
    ]

  @hk.transparent
  def _params(self) -> _AdaptiveParams:
    return self._head(), [self._tail(i) for i in range(len(self._tails))]

  @hk.transparent
  def _head(self) -> tuple[jax.Array, jax.Array]:
    """Returns weights `[n, D]` and bias `[n]`, of words, then of tails."""
    size = self._head_size + len(self._tails)
    # Without features all words are as likely, in the tails too.
    words = [1] * self._head_size + [end - first for first, end in self._tails]
    bias = hk.get_parameter(
        "head_bias",
        [size],
        _dtype(),
        lambda shape, dtype: jnp.log(jnp.array(words, dtype)),
    )
    return _matrix("head_weights", size, self.embedding_size), bias

  @hk.transparent
  def _tail(self, i: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns weights `[words, d]`, projection `[d, D]` and bias `[words]`."""
    first, end = self._tails[i]
    features = self.embedding_size // self._factor ** (i + 1)
    return (
        _matrix(f"tail_{i}_weights", end - first, features),
        _matrix(f"tail_{i}_projection", features, self.embedding_size),
        _bias(f"tail_{i}_bias", end - first),
    )

  @hk.transparent
  def _places(self, tokens: jax.Array, i: int) -> tuple[jax.Array, jax.Array]:
    """Returns whether words are in a tail, and where there, or else 0."""
    first, end = self._tails[i]
    in_tail = (tokens >= first) & (tokens < end)
    return in_tail, jnp.where(in_tail, tokens - first, 0)


def _matrix(name: str, rows: int, columns: int) -> jax.Array:
  """Returns the module's parameter of this name, rows about 1 long."""
  init = hk.initializers.RandomNormal(columns**-0.5)
  return hk.get_parameter(name, [rows, columns], _dtype(), init)


def _bias(name: str, size: int) -> jax.Array:
  return hk.get_parameter(name, [size], _dtype(), jnp.zeros)


def _dtype() -> jnp.dtype:
  """Returns JAX's floating type; words, unlike other inputs, have none."""
  return jnp.result_type(float)


def _logits(
    outputs: jax.Array, weights: jax.Array, bias: jax.Array
) -> jax.Array:
  logits = outputs @ weights.T
  return logits + jnp.broadcast_to(bias, logits.shape)


def _log_probs(
    params: tuple[jax.Array, jax.Array], outputs: jax.Array, targets: jax.Array
) -> jax.Array:
  weights, bias = params
  values = _log_prob(_logits(outputs, weights, bias), targets)
  return _where_class(targets, weights.shape[0], values)


def _log_prob(logits: jax.Array, places: jax.Array) -> jax.Array:
  """Returns `jax.nn.log_softmax(logits)[..., places]`, a place for each row.

  Picking from that table would write it, and zeros of its size backwards; sums
  need only read the logits.
  """
  top = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
  total = jnp.sum(jnp.exp(logits - top[..., None]), axis=-1)
  there = jax.nn.one_hot(places, logits.shape[-1], dtype=bool)
  picked = jnp.sum(jnp.where(there, logits, 0), axis=-1)
  return picked - top - jnp.log(total)


def _where_class(
    targets: jax.Array, num_classes: int, values: jax.Array
) -> jax.Array:
  """Returns values, NaN for targets that are none."""
  return jnp.where((targets >= 0) & (targets < num_classes), values, jnp.nan)


def _checked_params(
    outputs: jax.Array, weights: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns weights and bias, which must not be broadcast."""
  if weights.shape != (*bias.shape, outputs.shape[-1]):
    raise ValueError(
        "outputs must be [T, ..., D], weights [V, D] and bias [V], got "
        f"{list(outputs.shape)}, {list(weights.shape)} and {list(bias.shape)}."
    )
  return weights, bias


def _plan(
    outputs: jax.Array,
    targets: jax.Array,
    vocab_size: int,
    chunk_size: int | None,
) -> tuple[jax.Array, int]:
  """Returns checked targets, and how many steps make a chunk, all about even.

  Raises:
    ValueError: if the shapes disagree, targets are no integers, or chunk_size
      is below 1.
  """
  (targets,) = _checks.integers(targets=targets)
  if not targets.ndim or outputs.shape[:-1] != targets.shape:
    raise ValueError(
        "targets must be [T, ...] and outputs [T, ..., D], got "
        f"{list(targets.shape)} and {list(outputs.shape)}."
    )
  steps = targets.shape[0]
  _check_chunk_size(chunk_size)
  if chunk_size is None:
    logits_a_step = vocab_size * math.prod(targets.shape[1:])
    chunk_size = max(1, _MAX_LOGITS // max(1, logits_a_step))
  num_chunks = max(1, -(-steps // chunk_size))
  return targets, -(-steps // num_chunks)  # Of even size: the least to pad.


def _check_chunk_size(chunk_size: int | None):
  """Raises ValueError if a size is given that is below 1."""
  if chunk_size is not None:
    _checks.at_least(1, chunk_size=chunk_size)


def _cut(x: jax.Array, chunk_size: int) -> jax.Array:
  """Returns steps in chunks, `[chunks, chunk_size, ...]`, with zeros after.

  The other axes stay whole, so that they can be split over devices.
  """
  num_chunks = -(-x.shape[0] // chunk_size)
  padding = [(0, num_chunks * chunk_size - x.shape[0])]
  padding += [(0, 0)] * (x.ndim - 1)
  return jnp.pad(x, padding).reshape(num_chunks, chunk_size, *x.shape[1:])


def _in_chunks(
    function: _Function,
    params: Any,
    outputs: jax.Array,
    targets: jax.Array,
    vocab_size: int,
    chunk_size: int | None,
) -> jax.Array:
  """Maps a function over the first axis, some of it at a time.

  Nothing of a chunk is kept for the backward pass.
  """
  targets, chunk_size = _plan(outputs, targets, vocab_size, chunk_size)
  steps = targets.shape[0]
  if steps <= chunk_size:
    return function(params, outputs, targets)
  function = jax.checkpoint(function, prevent_cse=False)
  results = jax.lax.map(
      lambda chunk: function(params, *chunk),
      (_cut(outputs, chunk_size), _cut(targets, chunk_size)),
  )
  return results.reshape(-1, *targets.shape[1:])[:steps]


def _mean_in_chunks(
    function: _Function,
    params: Any,
    outputs: jax.Array,
    targets: jax.Array,
    vocab_size: int,
    chunk_size: int | None,
) -> jax.Array:
  """Returns minus the mean of a function, and its gradient as it goes."""
  targets, chunk_size = _plan(outputs, targets, vocab_size, chunk_size)
  if targets.shape[0] <= chunk_size:
    return -jnp.mean(function(params, outputs, targets))
  is_step = jnp.ones(targets.shape, bool)  # Padding is none.
  chunks = [_cut(x, chunk_size) for x in (outputs, targets, is_step)]
  mean = -_sum(function, params, *chunks) / targets.size
  return mean.astype(jax.eval_shape(function, params, outputs, targets).dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum(
    function: _Function,
    params: Any,
    outputs: jax.Array,
    targets: jax.Array,
    is_step: jax.Array,
) -> jax.Array:
  """Sums a function's values at steps, all in chunks `[chunks, ...]`."""
  sums = jax.lax.map(
      lambda chunk: _chunk_sum(function, params, *chunk),
      (outputs, targets, is_step),
  )
  return jnp.sum(sums)


def _sum_forward(function, params, outputs, targets, is_step):
  gradient = jax.value_and_grad(
      functools.partial(_chunk_sum, function), argnums=(0, 1)
  )

  def add(param_grads, chunk):
    value, (grads, output_grads) = gradient(params, *chunk)
    param_grads = jax.tree.map(
        lambda x, y: x + y.astype(x.dtype), param_grads, grads
    )
    return param_grads, (value, output_grads)

  # Sums of 16 bits would stop growing.
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, _wide(x)), params)
  param_grads, (sums, output_grads) = jax.lax.scan(
      add, zeros, (outputs, targets, is_step)
  )
  param_grads = jax.tree.map(
      lambda x, y: x.astype(y.dtype), param_grads, params
  )
  return jnp.sum(sums), (param_grads, output_grads)


def _sum_backward(function, grads, factor):
  del function
  grads = jax.tree.map(
      lambda x: (factor * x.astype(factor.dtype)).astype(x.dtype), grads
  )
  return *grads, None, None


_sum.defvjp(_sum_forward, _sum_backward)


def _chunk_sum(function, params, outputs, targets, is_step):
  values = jnp.where(is_step, function(params, outputs, targets), 0)
  return jnp.sum(values, dtype=_wide(values))


def _wide(x: jax.Array) -> jnp.dtype:
  """Returns the array's type, or float32 if that is narrower."""
  return jnp.float32 if x.dtype.itemsize < 4 else x.dtype
