"""The Differentiable Neural Computer: a network that writes and reads a memory.

Glossary of shapes:
  - B: batch size.
  - D: size of the input, flattened.
  - L: layers of the controller.
  - H: units of a layer of the controller.
  - N: slots of the memory (`memory_size`).
  - W: size of a slot (`word_size`).
  - R: read heads.
  - K: write heads.
  - O: size of the output.
"""

import math
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from rmc import _checks

_CONTROLLERS = ("lstm", "feedforward")
_EPSILON = 1e-6


class DNCState(NamedTuple):
  """The state of a `DNC`.

  Attributes:
    controller: for each layer of an LSTM controller its `hidden` and `cell`,
      `[B, H]`; empty for a feed-forward one.
    memory: the slots, `[B, N, W]`.
    usage: how much each slot is in use, from 0 to 1, `[B, N]`.
    link: how much slot i was written right after slot j, for each write head,
      `[B, K, N, N]`.
    precedence: how much each slot was the last to be written, for each write
      head, `[B, K, N]`.
    write_weights: how much each write head wrote to each slot, `[B, K, N]`.
    read_weights: how much each read head read from each slot, `[B, R, N]`.
    read_words: what the read heads read, `[B, R, W]`.
  """

  controller: tuple[hk.LSTMState, ...]
  memory: jax.Array
  usage: jax.Array
  link: jax.Array
  precedence: jax.Array
  write_weights: jax.Array
  read_weights: jax.Array
  read_words: jax.Array


class _Heads(NamedTuple):
  """What the controller tells the heads; or the shapes of it, without B."""

  write_words: jax.Array  # [B, K, W]
  erase: jax.Array  # [B, K, W]
  write_keys: jax.Array  # [B, K, W]
  write_strengths: jax.Array  # [B, K]
  allocation_gate: jax.Array  # [B, K]
  write_gate: jax.Array  # [B, K]
  read_keys: jax.Array  # [B, R, W]
  read_strengths: jax.Array  # [B, R]
  free_gate: jax.Array  # [B, R]
  read_modes: jax.Array  # [B, R, 2K + 1]: K backward, K forward, 1 by content


class DNC(hk.RNNCore):
  r"""Differentiable Neural Computer of Graves et al. (2016).

  A controller reads the input and what the read heads read in the step before,
  and tells the heads what to do by a linear layer on its output :math:`h`.
  With memory rows :math:`M[i]`, read heads r and write heads k (whose index is
  left out where there is one at a time), a step

  - finds how much each slot is in use, from what was last written and from
    what was last read and may be freed:

    .. math::

       u = \Big(u_{t-1} + (1 - u_{t-1}) \circ
           \big(1 - \prod_k (1 - w_{t-1}^k)\big)\Big)
           \circ \prod_r (1 - f^r w_{t-1}^r)

  - writes, to the slots least in use or to those that resemble a key, where
    :math:`a` gives each slot what those less in use leave over and :math:`c`
    is the softmax of :math:`\beta \cos(k, M_{t-1}[i])`:

    .. math::

       \begin{array}{ll}
       a[i] = (1 - u[i]) \prod_{j \text{ before } i} u[j] \\
       w = g^w \big(g^a a + (1 - g^a)\, c\big) \\
       M_t = M_{t-1} \circ \prod_k (1 - w^k e^{kT}) + \sum_k w^k v^{kT}
       \end{array}

    Each further write head sees the slots as used by those before it;

  - notes in which order slots were written (the diagonal of L stays 0):

    .. math::

       \begin{array}{ll}
       L_t[i, j] = (1 - w[i] - w[j]) L_{t-1}[i, j] + w[i] p_{t-1}[j] \\
       p_t = \big(1 - \sum_i w[i]\big) p_{t-1} + w
       \end{array}

  - reads what was written before or after the slots last read, or what
    resembles a key:

    .. math::

       w_t^r = \sum_k \pi_b^{rk} L_t^{kT} w_{t-1}^r
           + \sum_k \pi_f^{rk} L_t^k w_{t-1}^r + \pi_c^r c^r,
       \quad m^r = M_t^T w_t^r

  - puts out a linear layer of :math:`h` and the words :math:`m^r`.

  Source: the Methods of Graves et al., "Hybrid computing using a neural network
  with dynamic external memory" (Nature, 2016), and DeepMind's released code,
  which decides where they differ: strengths are a plain softplus, no gradient
  passes through the last write weights into the usage, and controller and
  output may be clipped.
  """

  def __init__(
      self,
      output_size: int,
      hidden_size: int,
      memory_size: int = 16,
      word_size: int = 16,
      num_reads: int = 1,
      num_writes: int = 1,
      controller: str = "lstm",
      controller_layers: int = 1,
      clip_value: float | None = None,
      name: str = "dnc",
  ):
    """Constructs a DNC.

    Args:
      output_size: size of the output, O.
      hidden_size: units of each layer of the controller, H.
      memory_size: slots of the memory, N.
      word_size: size of a slot, W.
      num_reads: read heads, R.
      num_writes: write heads, K. More than slots write over one another.
      controller: `'lstm'`, where each layer sees the input and the layer
        below, and the outputs of all layers are put out side by side, as in
        the paper; or `'feedforward'`, an MLP with a ReLU after every layer,
        the last too.
      controller_layers: layers of the controller, L.
      clip_value: the controller's output and state and the DNC's output are
        clipped to within plus and minus this; None: not at all.
      name: name of the module.

    Raises:
      ValueError: if an argument is out of its range.
    """
    super().__init__(name=name)
    _checks.at_least(
        1,
        output_size=output_size,
        hidden_size=hidden_size,
        memory_size=memory_size,
        word_size=word_size,
        num_reads=num_reads,
        num_writes=num_writes,
        controller_layers=controller_layers,
    )
    if controller not in _CONTROLLERS:
      raise ValueError(
          f"controller must be one of {_CONTROLLERS}, got {controller!r}."
      )
    if clip_value is not None and not clip_value > 0:
      raise ValueError(
          f"clip_value must be above 0, or None not to clip, got {clip_value}."
      )
    self._memory_size = memory_size
    self._word_size = word_size
    self._num_reads = num_reads
    self._num_writes = num_writes
    self._clip_value = clip_value
    if controller == "lstm":
      self._controller = hk.deep_rnn_with_skip_connections([
          hk.LSTM(hidden_size, name=f"lstm_{i}")
          for i in range(controller_layers)
      ])
    else:
      sizes = [hidden_size] * controller_layers
      mlp = hk.nets.MLP(sizes, activate_final=True, name="mlp")
      self._controller = hk.DeepRNN([mlp])
    self._head_shapes = _Heads(
        write_words=(num_writes, word_size),
        erase=(num_writes, word_size),
        write_keys=(num_writes, word_size),
        write_strengths=(num_writes,),
        allocation_gate=(num_writes,),
        write_gate=(num_writes,),
        read_keys=(num_reads, word_size),
        read_strengths=(num_reads,),
        free_gate=(num_reads,),
        read_modes=(num_reads, 2 * num_writes + 1),
    )
    interface_size = sum(math.prod(shape) for shape in self._head_shapes)
    self._interface = hk.Linear(interface_size, name="interface")
    self._output = hk.Linear(output_size, name="output")

  def initial_state(self, batch_size: int | None) -> DNCState:
    """Returns zeros: an empty memory, and slots not in use.

    Args:
      batch_size: B, or None for a state without the batch axis.

    Returns:
      The state before the first step.
    """
    batch = () if batch_size is None else (batch_size,)
    slots, word_size = self._memory_size, self._word_size
    reads, writes = self._num_reads, self._num_writes
    return DNCState(
        controller=self._controller.initial_state(batch_size),
        memory=jnp.zeros((*batch, slots, word_size)),
        usage=jnp.zeros((*batch, slots)),
        link=jnp.zeros((*batch, writes, slots, slots)),
        precedence=jnp.zeros((*batch, writes, slots)),
        write_weights=jnp.zeros((*batch, writes, slots)),
        read_weights=jnp.zeros((*batch, reads, slots)),
        read_words=jnp.zeros((*batch, reads, word_size)),
    )

  def __call__(
      self, inputs: jax.Array, state: DNCState
  ) -> tuple[jax.Array, DNCState]:
    """Takes one step.

    Args:
      inputs: `[B, ...]`, flattened to `[B, D]`; without the batch axis if the
        state has none.
      state: the state.

    Returns:
      A pair of the output, `[B, O]`, and the next state.

    Raises:
      ValueError: if the inputs or the state have a wrong shape, or the inputs
        a wrong type.
    """
    inputs = _checks.array(inputs)
    if jnp.ndim(state.memory) == 2:
      batch_of_one = jax.tree.map(lambda x: x[None], (inputs, state))
      return jax.tree.map(lambda x: x[0], self(*batch_of_one))
    self._check(inputs, state)
    inputs = jnp.reshape(inputs, (inputs.shape[0], -1))  # [B, D]
    inputs = jnp.concatenate(
        [inputs, jax.lax.collapse(state.read_words, 1)], axis=1
    )
    hidden, controller = jax.tree.map(
        self._clip, self._controller(inputs, state.controller)
    )
    heads = self._heads(hidden)

    usage = _usage(state, heads.free_gate)
    write_weights = _write_weights(heads, state.memory, usage)
    memory = state.memory
    for k in range(self._num_writes):
      memory = _erase(memory, write_weights[:, k], heads.erase[:, k])
    memory += jnp.einsum("bkn,bkw->bnw", write_weights, heads.write_words)
    link = _link(state.link, state.precedence, write_weights)
    left = 1 - jnp.sum(write_weights, axis=-1, keepdims=True)  # [B, K, 1]
    precedence = left * state.precedence + write_weights
    read_weights = _read_weights(heads, memory, link, state.read_weights)
    read_words = read_weights @ memory  # [B, R, W]

    output = self._output(
        jnp.concatenate([hidden, jax.lax.collapse(read_words, 1)], axis=1)
    )
    return self._clip(output), DNCState(
        controller=controller,
        memory=memory,
        usage=usage,
        link=link,
        precedence=precedence,
        write_weights=write_weights,
        read_weights=read_weights,
        read_words=read_words,
    )

  # Transparent: Haiku would otherwise apply a mixed-precision policy to each of
  # these methods, and cast what one hands to the next to the output type.
  @hk.transparent
  def _heads(self, hidden: jax.Array) -> _Heads:
    """Returns what the output of the controller, `[B, L * H]`, tells."""
    sizes = [math.prod(shape) for shape in self._head_shapes]
    parts = jnp.split(self._interface(hidden), np.cumsum(sizes)[:-1], axis=1)
    heads = _Heads(*(
        jnp.reshape(part, (-1, *shape))
        for part, shape in zip(parts, self._head_shapes, strict=True)
    ))
    return heads._replace(
        erase=jax.nn.sigmoid(heads.erase),
        write_strengths=jax.nn.softplus(heads.write_strengths),
        allocation_gate=jax.nn.sigmoid(heads.allocation_gate),
        write_gate=jax.nn.sigmoid(heads.write_gate),
        read_strengths=jax.nn.softplus(heads.read_strengths),
        free_gate=jax.nn.sigmoid(heads.free_gate),
        read_modes=jax.nn.softmax(heads.read_modes),
    )

  @hk.transparent
  def _clip(self, x: jax.Array) -> jax.Array:
    if self._clip_value is None:
      return x
    return jnp.clip(x, -self._clip_value, self._clip_value)

  @hk.transparent
  def _check(self, inputs: jax.Array, state: DNCState):
    """Raises a ValueError if inputs or state, with a batch, are not fit."""
    batch_size = jnp.shape(state.memory)[0]
    _checks.batched(inputs, batch_size)
    _checks.floating(inputs)
    expected_state = self.initial_state(batch_size)
    layers = len(expected_state.controller)
    if len(state.controller) != layers:
      raise ValueError(
          f"state.controller must have {layers} layers, got "
          f"{len(state.controller)}."
      )
    for (path, expected), x in zip(
        jax.tree.leaves_with_path(expected_state),
        jax.tree.leaves(state),
        strict=True,
    ):
      if jnp.shape(x) != expected.shape:
        raise ValueError(
            f"state{jax.tree_util.keystr(path)} must have shape "
            f"{list(expected.shape)}, got {list(jnp.shape(x))}."
        )


def _usage(state: DNCState, free_gate: jax.Array) -> jax.Array:
  """Returns how much each slot is in use before this step's writes, `[B, N]`.

  Args:
    state: the state before the step.
    free_gate: whether the slots last read may be freed, `[B, R]`.
  """
  write_weights = jax.lax.stop_gradient(state.write_weights)
  written = 1 - jnp.prod(1 - write_weights, axis=1)  # [B, N]
  usage = state.usage + (1 - state.usage) * written
  freed = free_gate[..., None] * state.read_weights  # [B, R, N]
  return usage * jnp.prod(1 - freed, axis=1)


def _allocation(usage: jax.Array) -> jax.Array:
  """Returns how much of a write each slot shall get, `[B, N]`.

  The slots are gone through from the one least in use on, among equals that of
  the lower index first. Rather than to sort them, which needs a scatter on the
  way back, each pair is compared: no more work than on the links, and XLA
  fuses it into one sum. In it products are sums of logarithms.

  Args:
    usage: how much each slot is in use, `[B, N]`.
  """
  usage = _EPSILON + (1 - _EPSILON) * usage
  free = 1 - usage
  i = jnp.arange(usage.shape[1], dtype=jnp.int32)
  lower = (i[None] < i[:, None])[None]  # [1, N, N]
  of_i, of_j = free[:, :, None], free[:, None]
  before = (of_j > of_i) | ((of_j == of_i) & lower)  # [B, N, N]: j before i
  logs = jnp.where(before, jnp.log(usage)[:, None], 0)
  return free * jnp.exp(jnp.sum(logs, axis=-1))


def _content_weights(
    keys: jax.Array, strengths: jax.Array, memory: jax.Array
) -> jax.Array:
  """Returns how much each slot resembles the key of each of h heads.

  Args:
    keys: `[B, h, W]`.
    strengths: how much the best is favoured, `[B, h]`.
    memory: `[B, N, W]`.

  Returns:
    Weights that sum to 1 over the slots, `[B, h, N]`.
  """
  products = keys @ jnp.swapaxes(memory, 1, 2)  # [B, h, N]
  norms = _norm(keys)[:, :, None] * _norm(memory)[:, None]
  similarity = products / (norms + _EPSILON)
  return jax.nn.softmax(strengths[..., None] * similarity)


def _norm(x: jax.Array) -> jax.Array:
  """Returns lengths of vectors, whose gradient is finite at 0 too."""
  return jnp.sqrt(jnp.sum(jnp.square(x), axis=-1) + _EPSILON)


def _write_weights(
    heads: _Heads, memory: jax.Array, usage: jax.Array
) -> jax.Array:
  """Returns how much each head writes to each slot, `[B, K, N]`.

  Args:
    heads: what the heads are told.
    memory: the memory before the step, `[B, N, W]`.
    usage: how much each slot is in use, `[B, N]`.
  """
  allocations = []
  allocated = heads.allocation_gate * heads.write_gate  # [B, K]
  for k in range(allocated.shape[1]):
    allocations.append(_allocation(usage))
    usage += (1 - usage) * allocated[:, k, None] * allocations[-1]
  allocation = jnp.stack(allocations, axis=1)  # [B, K, N]
  content = _content_weights(heads.write_keys, heads.write_strengths, memory)
  gate = heads.allocation_gate[..., None]
  return heads.write_gate[..., None] * (
      gate * allocation + (1 - gate) * content
  )


# The two below have gradients of their own: sums over slots are dot products in
# them, where XLA on CPU would make slow reductions of what JAX derives. With
# them a core of 80 slots takes some 0.7 of the time, forward and backward
# (benchmarks/NOTES.md). In return JAX refuses forward mode of a step (jax.jvp),
# though not of its gradients.


def _erased(
    memory: jax.Array, weights: jax.Array, erase: jax.Array
) -> jax.Array:
  """Returns the memory as one head erases it.

  Args:
    memory: `[B, N, W]`.
    weights: how much of each slot is written to, `[B, N]`.
    erase: how much of each place in it is erased there, `[B, W]`.

  Returns:
    `[B, N, W]`.
  """
  return memory * (1 - weights[..., None] * erase[:, None])


def _erase_forward(memory, weights, erase):
  return _erased(memory, weights, erase), (memory, weights, erase)


def _erase_backward(residuals, grad):
  memory, weights, erase = residuals
  erased = -grad * memory
  return (
      _erased(grad, weights, erase),
      jnp.einsum("bnw,bw->bn", erased, erase),
      jnp.einsum("bnw,bn->bw", erased, weights),
  )


_erase = jax.custom_vjp(_erased)
_erase.defvjp(_erase_forward, _erase_backward)


def _linked(
    link: jax.Array, precedence: jax.Array, weights: jax.Array
) -> jax.Array:
  """Returns in which order slots were written.

  Args:
    link: the same before this step, `[B, K, N, N]`.
    precedence: which slots were the last to be written before, `[B, K, N]`.
    weights: which slots were written now, `[B, K, N]`.

  Returns:
    `[B, K, N, N]`.
  """
  new = weights[..., None] * precedence[..., None, :]
  return _without_diagonal(_kept(weights) * link + new)


def _link_forward(link, precedence, weights):
  return _linked(link, precedence, weights), (link, precedence, weights)


def _link_backward(residuals, grad):
  link, precedence, weights = residuals
  grad = _without_diagonal(grad)
  lost = -grad * link
  ones = jnp.ones_like(weights)
  grad_weights = (
      jnp.einsum("bkij,bkj->bki", grad, precedence)
      + jnp.einsum("bkij,bkj->bki", lost, ones)
      + jnp.einsum("bkij,bki->bkj", lost, ones)
  )
  grad_precedence = jnp.einsum("bkij,bki->bkj", grad, weights)
  return _kept(weights) * grad, grad_precedence, grad_weights


_link = jax.custom_vjp(_linked)
_link.defvjp(_link_forward, _link_backward)


def _kept(weights: jax.Array) -> jax.Array:
  """Returns how much is kept of the link from slot j to i, `[B, K, N, N]`."""
  return 1 - weights[..., None] - weights[..., None, :]


def _without_diagonal(link: jax.Array) -> jax.Array:
  diagonal = jnp.eye(link.shape[-1], dtype=bool)[None, None]
  return jnp.where(diagonal, 0, link)


def _read_weights(
    heads: _Heads,
    memory: jax.Array,
    link: jax.Array,
    last_read_weights: jax.Array,
) -> jax.Array:
  """Returns how much each head reads from each slot, `[B, R, N]`.

  Args:
    heads: what the heads are told.
    memory: the memory just written, `[B, N, W]`.
    link: the link matrices just made, `[B, K, N, N]`.
    last_read_weights: those of the step before, `[B, R, N]`.
  """
  content = _content_weights(heads.read_keys, heads.read_strengths, memory)
  forward = jnp.einsum("bkij,brj->brki", link, last_read_weights)
  backward = jnp.einsum("bkij,bri->brkj", link, last_read_weights)
  ways = jnp.concatenate([backward, forward, content[:, :, None]], axis=2)
  return jnp.sum(heads.read_modes[..., None] * ways, axis=2)
