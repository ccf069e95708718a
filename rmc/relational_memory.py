"""The Relational Memory Core: memory slots that attend to one another.

Glossary of shapes:
  - B: batch size.
  - N: number of memory slots.
  - n: rows of input in a step; 1, or more when the input is a matrix.
  - H: attention heads.
  - K: size of a query and of a key, per head.
  - V: size of a value, per head (`head_size`).
  - F: width of a slot, F = H * V.
  - G: width of a gate; F for unit gates, 1 for memory gates.
"""

from collections.abc import Callable, Sequence
import math
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from rmc import _checks

_GATE_STYLES = ("unit", "memory", None)


class PrecomputedInputs(NamedTuple):
  """What a step takes from its input alone, whatever the memory holds.

  Attributes:
    rows: the input projected to the width of a slot, `[B, n, F]`.
    heads: queries, keys and values of these rows in the first block,
      `[B, H, n, K]`, `[B, H, n, K]` and `[B, H, n, V]`.
    gates: the input's share of the input and of the forget gate before the
      sigmoid, `[B, G]` each; None without gates. They are apart because XLA
      does not vectorise a split of what a loop slices out of its inputs.
  """

  rows: jax.Array
  heads: Sequence[jax.Array]
  gates: Sequence[jax.Array] | None


class StepInfo(NamedTuple):
  """What happened inside one step.

  Attributes:
    input_gate: how much each slot takes in, `[B, N, G]`; None without gates.
    forget_gate: how much each slot keeps, `[B, N, G]`; None without gates.
    attention_weights: for each block, how much each memory slot attended to
      each slot and, after them, to each row of the input, `[B, H, N, N + n]`.
  """

  input_gate: jax.Array | None
  forget_gate: jax.Array | None
  attention_weights: tuple[jax.Array, ...]


class RelationalMemory(hk.RNNCore):
  r"""Relational Memory Core of Santoro et al. (2018), as Sonnet v1 has it.

  The state is a matrix :math:`M` of N slots. In each step the input is
  projected to a row :math:`x`, the slots attend to one another and to that
  row, and each slot decides by gates what it takes from the result. With
  :math:`[M; x]` for the rows of both, a block computes

  .. math::

     \begin{array}{ll}
     Q = W^q M,\quad K = W^k [M; x],\quad V = W^v [M; x]
       & \text{each row through a LayerNorm} \\
     A = \mathrm{softmax}(Q K^T / \sqrt{d_k})\, V
       & \text{for each head; then side by side} \\
     M' = \mathrm{LN}(M + A) \\
     \tilde{M} = \mathrm{LN}(M' + \mathrm{MLP}(M'))
     \end{array}

  and the slots are updated as the cell of an LSTM is

  .. math::

     \begin{array}{ll}
     i_t = \sigma(W_i x_t + U_i \tanh(M_{t-1}) + b_i) \\
     f_t = \sigma(W_f x_t + U_f \tanh(M_{t-1}) + b_f) \\
     M_t = i_t \circ \tanh(\tilde{M}) + f_t \circ M_{t-1}
     \end{array}

  The output is :math:`M_t`, flattened slot by slot. `forget_bias` (1 by
  default, so that slots are kept at the start of training) and `input_bias`
  are constants inside :math:`b_f` and :math:`b_i`.

  With several blocks the input row is a row like the others: between blocks it
  attends and is updated as they are. The blocks share one MLP and have
  projections and LayerNorms of their own.

  Two slots, a batch of three::

    >>> def step(inputs):
    ...   core = RelationalMemory(mem_slots=2, head_size=4, num_heads=2)
    ...   return core(inputs, core.initial_state(3))
    >>> step = hk.without_apply_rng(hk.transform(step))
    >>> inputs = jnp.ones([3, 5])
    >>> params = step.init(jax.random.key(0), inputs)
    >>> output, memory = step.apply(params, inputs)
    >>> output.shape, memory.shape
    ((3, 16), (3, 2, 8))

  Sources: section 3 of the paper (arXiv 1806.01822) and
  `sonnet/python/modules/relational_memory.py` of Sonnet v1, which decides
  where they differ.
  """

  def __init__(
      self,
      mem_slots: int,
      head_size: int,
      num_heads: int = 1,
      num_blocks: int = 1,
      forget_bias: float = 1.0,
      input_bias: float = 0.0,
      gate_style: str | None = "unit",
      attention_mlp_layers: int = 2,
      key_size: int | None = None,
      treat_input_as_matrix: bool = False,
      name: str = "relational_memory",
  ):
    """Constructs a Relational Memory Core.

    Args:
      mem_slots: number of memory slots, N.
      head_size: size of a value per head, V. A slot is
        `head_size * num_heads` wide.
      num_heads: number of attention heads, H.
      num_blocks: how many times the rows attend to one another in a step.
      forget_bias: added to the forget gate before its sigmoid.
      input_bias: added to the input gate before its sigmoid.
      gate_style: `'unit'` for a gate per unit, `'memory'` for a gate per slot,
        None for no gates: the attended memory is then the next memory.
      attention_mlp_layers: layers of the MLP that follows the attention.
      key_size: size of a query and of a key per head, K; None or 0 for
        `head_size`.
      treat_input_as_matrix: whether an input `[B, n, ...]` is n rows, each of
        which the slots can attend to, rather than one row.
      name: name of the module.

    Raises:
      ValueError: if an argument is out of its range.
    """
    super().__init__(name=name)
    _checks.at_least(
        1,
        mem_slots=mem_slots,
        head_size=head_size,
        num_heads=num_heads,
        num_blocks=num_blocks,
        attention_mlp_layers=attention_mlp_layers,
    )
    _checks.at_least(0, key_size=key_size or 0)
    if gate_style not in _GATE_STYLES:
      raise ValueError(
          f"gate_style must be one of {_GATE_STYLES}, got {gate_style!r}."
      )
    self._mem_slots = mem_slots
    self._num_heads = num_heads
    self._key_size = key_size or head_size
    self._forget_bias = forget_bias
    self._input_bias = input_bias
    self._treat_input_as_matrix = treat_input_as_matrix
    self._mem_size = width = head_size * num_heads

    self._input_projection = hk.Linear(width, name="input_projection")
    qkv_size = num_heads * (2 * self._key_size + head_size)
    blocks = range(num_blocks)
    self._qkv = [hk.Linear(qkv_size, name=f"qkv_{i}") for i in blocks]
    self._qkv_norm = [_layer_norm(f"qkv_norm_{i}") for i in blocks]
    self._attention_norm = [_layer_norm(f"attention_norm_{i}") for i in blocks]
    self._mlp = hk.nets.MLP([width] * attention_mlp_layers, name="mlp")
    self._mlp_norm = [_layer_norm(f"mlp_norm_{i}") for i in blocks]
    self._has_gates = gate_style is not None
    if self._has_gates:
      gates_size = 2 * (width if gate_style == "unit" else 1)
      self._input_gates = hk.Linear(gates_size, name="input_gates")
      self._memory_gates = hk.Linear(gates_size, name="memory_gates")

  def initial_state(self, batch_size: int | None) -> jax.Array:
    """Returns slots that differ: the identity, zero-padded or truncated.

    Args:
      batch_size: B, or None for a state without the batch axis.

    Returns:
      The memory before the first step, `[B, N, F]`, or `[N, F]`.
    """
    memory = jnp.eye(self._mem_slots, self._mem_size)  # [N, F]
    if batch_size is None:
      return memory
    return jnp.broadcast_to(memory, (batch_size, *memory.shape))

  def __call__(
      self,
      inputs: jax.Array,
      memory: jax.Array,
      treat_input_as_matrix: bool | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """Takes one step.

    Args:
      inputs: `[B, ...]`, flattened to one row for each example; or
        `[B, n, ...]`, flattened to n rows, if the input is a matrix.
      memory: the state, `[B, N, F]`. Without the batch axis, `[N, F]`, the
        inputs have none either.
      treat_input_as_matrix: overrules the constructor's; None does not.

    Returns:
      A pair of the output, `[B, N * F]`, and the next memory, `[B, N, F]`.

    Raises:
      ValueError: if the inputs or the memory have a wrong shape or type.
    """
    output, next_memory, _ = self.step(inputs, memory, treat_input_as_matrix)
    return output, next_memory

  def step(
      self,
      inputs: jax.Array,
      memory: jax.Array,
      treat_input_as_matrix: bool | None = None,
  ) -> tuple[jax.Array, jax.Array, StepInfo]:
    """Takes one step and also tells what happened inside it.

    Args:
      inputs: as for a call.
      memory: as for a call.
      treat_input_as_matrix: as for a call.

    Returns:
      A triple of the output, `[B, N * F]`, the next memory, `[B, N, F]`, and a
      `StepInfo`. Under `jax.jit`, what is not used of it costs nothing.

    Raises:
      ValueError: if the inputs or the memory have a wrong shape or type.
    """
    inputs, memory = _checks.array(inputs), jnp.asarray(memory)
    self._check_memory(memory)
    if memory.ndim == 2:
      return _without_batch(
          self.step(inputs[None], memory[None], treat_input_as_matrix)
      )
    precomputed = self.precompute(inputs, treat_input_as_matrix)
    return self._step(precomputed, memory)

  def precompute(
      self, inputs: jax.Array, treat_input_as_matrix: bool | None = None
  ) -> PrecomputedInputs:
    """Does what a step does with its inputs alone.

    `rmc.unroll` calls it once on all steps of a sequence, as one large batch,
    and then takes the steps with `advance`.

    Args:
      inputs: as for a call, always with a batch axis.
      treat_input_as_matrix: as for a call.

    Returns:
      `PrecomputedInputs`, each with the batch axis of the inputs.

    Raises:
      ValueError: if the inputs have a wrong shape or type.
    """
    if treat_input_as_matrix is None:
      treat_input_as_matrix = self._treat_input_as_matrix
    inputs = _checks.array(inputs)
    _check_inputs(inputs, treat_input_as_matrix)
    shape = inputs.shape
    if not treat_input_as_matrix:
      shape = (shape[0], 1, *shape[1:])
    shape = (*shape[:2], math.prod(shape[2:]))
    inputs = jnp.reshape(inputs, shape)  # [B, n, D]
    rows = _by_row(self._input_projection, inputs)  # [B, n, F]
    gates = None
    if self._has_gates:
      gates = self._input_gates(jax.lax.collapse(rows, 1))  # [B, 2G]
      gates = jnp.split(gates, 2, axis=-1)  # [B, G] each
    return PrecomputedInputs(rows, self._project(0, rows), gates)

  def advance(
      self, precomputed: PrecomputedInputs, memory: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Takes one step on what `precompute` made of its inputs.

    Args:
      precomputed: what `precompute` returned; without the batch axis if the
        memory has none.
      memory: the state, `[B, N, F]` or `[N, F]`.

    Returns:
      A pair of the output, `[B, N * F]`, and the next memory, `[B, N, F]`.

    Raises:
      ValueError: if the memory has a wrong shape or type, or another batch size
        than the inputs.
    """
    memory = jnp.asarray(memory)
    self._check_memory(memory)
    if memory.ndim == 2:
      precomputed = jax.tree.map(lambda x: x[None], precomputed)
      return _without_batch(self.advance(precomputed, memory[None]))
    output, next_memory, _ = self._step(precomputed, memory)
    return output, next_memory

  def _step(
      self, inputs: PrecomputedInputs, memory: jax.Array
  ) -> tuple[jax.Array, jax.Array, StepInfo]:
    if inputs.rows.shape[0] != memory.shape[0]:
      raise ValueError(
          "inputs and memory must have the same batch size, got "
          f"{inputs.rows.shape[0]} and {memory.shape[0]}."
      )
    attended, weights = self._attend(inputs, memory)  # [B, N, F]
    if not self._has_gates:
      info = StepInfo(None, None, weights)
      return jax.lax.collapse(attended, 1), attended, info
    gates = _by_row(self._memory_gates, jnp.tanh(memory))  # [B, N, 2G]
    input_gate, forget_gate = jnp.split(gates, 2, axis=-1)  # [B, N, G]
    input_share, forget_share = inputs.gates
    input_gate += input_share[:, None]
    forget_gate += forget_share[:, None]
    input_gate = jax.nn.sigmoid(input_gate + self._input_bias)
    forget_gate = jax.nn.sigmoid(forget_gate + self._forget_bias)
    memory = input_gate * jnp.tanh(attended) + forget_gate * memory
    info = StepInfo(input_gate, forget_gate, weights)
    return jax.lax.collapse(memory, 1), memory, info

  # Transparent: Haiku would otherwise apply a mixed-precision policy to each of
  # these methods, and cast what one hands to the next to the output type.
  @hk.transparent
  def _attend(
      self, inputs: PrecomputedInputs, memory: jax.Array
  ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Lets the rows attend to one another, block by block.

    The input's rows are dropped at the end, so that in the last block nothing
    asks for their queries and they pass through no MLP.

    Args:
      inputs: the precomputed inputs.
      memory: the memory before the step, `[B, N, F]`.

    Returns:
      The attended memory, `[B, N, F]`, and each block's attention weights.
    """
    rows, heads, weights = inputs.rows, inputs.heads, []
    for i in range(len(self._qkv)):
      query, key, value = heads if i == 0 else self._project(i, rows)
      memory_query, memory_key, memory_value = self._project(i, memory)
      keys = jnp.concatenate([memory_key, key], axis=2)  # [B, H, N + n, K]
      values = jnp.concatenate([memory_value, value], axis=2)
      if i + 1 < len(self._qkv):
        rows, _ = self._block(i, rows, query, keys, values)
      memory, weight = self._block(i, memory, memory_query, keys, values)
      weights.append(weight)
    return memory, tuple(weights)

  @hk.transparent
  def _project(self, i: int, rows: jax.Array) -> Sequence[jax.Array]:
    """Returns queries, keys and values of R rows, `[B, H, R, K or V]`."""

    def project(rows):
      return self._qkv_norm[i](self._qkv[i](rows))

    qkv = _by_row(project, rows)  # [B, R, H * (2K + V)]
    head_shape = (self._num_heads, qkv.shape[-1] // self._num_heads)
    qkv = jnp.reshape(qkv, (*rows.shape[:2], *head_shape))
    qkv = jnp.swapaxes(qkv, 1, 2)  # [B, H, R, 2K + V]
    return jnp.split(qkv, [self._key_size, 2 * self._key_size], axis=-1)

  @hk.transparent
  def _block(
      self,
      i: int,
      rows: jax.Array,
      query: jax.Array,
      keys: jax.Array,
      values: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    """Updates R rows by attention over all rows and the row-wise MLP."""
    query *= self._key_size**-0.5
    weights = jax.nn.softmax(query @ jnp.swapaxes(keys, 2, 3))
    attention = jnp.swapaxes(weights @ values, 1, 2)  # [B, R, H, V]
    attention = jnp.reshape(attention, rows.shape)  # [B, R, F]

    def update(rows, attention):
      rows = self._attention_norm[i](rows + attention)
      return self._mlp_norm[i](self._mlp(rows) + rows)

    return _by_row(update, rows, attention), weights

  def _check_memory(self, memory: jax.Array):
    slots = (self._mem_slots, self._mem_size)
    if memory.ndim not in (2, 3) or memory.shape[-2:] != slots:
      raise ValueError(
          f"memory must have shape [B, {slots[0]}, {slots[1]}], or "
          f"[{slots[0]}, {slots[1]}] without a batch (mem_slots, num_heads * "
          f"head_size), got {list(memory.shape)}."
      )
    if not jnp.issubdtype(memory.dtype, jnp.floating):
      raise ValueError(
          f"memory must be of a floating type, got {memory.dtype}."
      )


def _check_inputs(inputs: jax.Array, as_matrix: bool):
  """Raises a ValueError if the inputs, with a batch axis, are not fit."""
  least, axes = (3, "[B, n, ...]") if as_matrix else (2, "[B, ...]")
  if inputs.ndim < least:
    raise ValueError(
        f"inputs must have shape {axes}, that is at least {least} axes with "
        f"the batch and treat_input_as_matrix={as_matrix}, got "
        f"{inputs.ndim}: {list(inputs.shape)} (rmc.unroll makes one axis of "
        "steps and batch)."
    )
  if 0 in inputs.shape[1:]:
    raise ValueError(
        "inputs must have at least 1 row and 1 feature, got shape "
        f"{list(inputs.shape)}."
    )
  _checks.floating(inputs)


def _layer_norm(name: str) -> hk.LayerNorm:
  return hk.LayerNorm(
      axis=-1, create_scale=True, create_offset=True, eps=1e-5, name=name
  )


def _by_row(function: Callable[..., jax.Array], *rows: jax.Array) -> jax.Array:
  """Applies a row-wise function to `[B, R, ...]` as to `[B * R, ...]`.

  The result is the same either way, but XLA on CPU wants matrices: behind
  three axes it copies a transpose for the gradient of each weight, and with an
  axis of size 1 it sums the rows of a LayerNorm up to 30 times slower.
  """
  return hk.BatchApply(function)(*rows)


def _without_batch(nest):
  return jax.tree.map(lambda x: x[0], nest)
