"""The Relational Memory Core step by step, as a direct port has it."""

import haiku as hk
import jax
import jax.numpy as jnp


class ReferenceCore(hk.RNNCore):
  """The yardstick: `rmc.RelationalMemory` with nothing saved.

  In every step the memory and the input are joined to one matrix, each of its
  rows asks, is updated and passes through the MLP, and the input's rows are
  dropped at the end, as in `sonnet/python/modules/relational_memory.py` of
  Sonnet v1. Parameters, inputs, state and result are those of
  `rmc.RelationalMemory`; gates are per unit and an input is one row.
  """

  def __init__(
      self,
      mem_slots: int,
      head_size: int,
      num_heads: int = 1,
      num_blocks: int = 1,
      attention_mlp_layers: int = 2,
      key_size: int | None = None,
      name: str = "relational_memory",
  ):
    """Constructs a core; the arguments are those of the class it mirrors."""
    super().__init__(name=name)
    self._mem_slots = mem_slots
    self._head_size = head_size
    self._num_heads = num_heads
    self._key_size = key_size or head_size
    width = head_size * num_heads
    qkv_size = num_heads * (2 * self._key_size + head_size)
    blocks = range(num_blocks)
    self._input_projection = hk.Linear(width, name="input_projection")
    self._qkv = [hk.Linear(qkv_size, name=f"qkv_{i}") for i in blocks]
    self._qkv_norm = [_layer_norm(f"qkv_norm_{i}") for i in blocks]
    self._attention_norm = [_layer_norm(f"attention_norm_{i}") for i in blocks]
    self._mlp = hk.nets.MLP([width] * attention_mlp_layers, name="mlp")
    self._mlp_norm = [_layer_norm(f"mlp_norm_{i}") for i in blocks]
    self._input_gates = hk.Linear(2 * width, name="input_gates")
    self._memory_gates = hk.Linear(2 * width, name="memory_gates")

  def initial_state(self, batch_size: int | None) -> jax.Array:
    """Returns the zero-padded or truncated identity, `[B, N, F]`."""
    width = self._head_size * self._num_heads
    memory = jnp.eye(self._mem_slots, width)  # [N, F]
    if batch_size is None:
      return memory
    return jnp.broadcast_to(memory, (batch_size, *memory.shape))

  def __call__(
      self, inputs: jax.Array, memory: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Takes one step from `[B, D]` and `[B, N, F]` to `[B, N * F]` and that."""
    row = self._input_projection(inputs)[:, None]  # [B, 1, F]
    rows = jnp.concatenate([memory, row], axis=1)  # [B, N + 1, F]
    for i in range(len(self._qkv)):
      attention = self._attention(i, rows)
      rows = self._attention_norm[i](rows + attention)
      rows = self._mlp_norm[i](self._mlp(rows) + rows)
    attended = rows[:, : self._mem_slots]  # [B, N, F]

    gates = self._memory_gates(jnp.tanh(memory)) + self._input_gates(row)
    input_gate, forget_gate = jnp.split(gates, 2, axis=-1)  # [B, N, F]
    memory = (
        jax.nn.sigmoid(input_gate) * jnp.tanh(attended)
        + jax.nn.sigmoid(forget_gate + 1.0) * memory
    )
    return jax.lax.collapse(memory, 1), memory

  def _attention(self, i: int, rows: jax.Array) -> jax.Array:
    """Returns what each row gathers from all rows, `[B, R, F]`."""
    qkv = self._qkv_norm[i](self._qkv[i](rows))  # [B, R, H * (2K + V)]
    qkv = jnp.reshape(qkv, (*rows.shape[:2], self._num_heads, -1))
    qkv = jnp.swapaxes(qkv, 1, 2)  # [B, H, R, 2K + V]
    query, key, value = jnp.split(
        qkv, [self._key_size, 2 * self._key_size], axis=-1
    )
    query *= self._key_size**-0.5
    weights = jax.nn.softmax(query @ jnp.swapaxes(key, 2, 3))  # [B, H, R, R]
    attention = jnp.swapaxes(weights @ value, 1, 2)  # [B, R, H, V]
    return jnp.reshape(attention, rows.shape)


def _layer_norm(name: str) -> hk.LayerNorm:
  return hk.LayerNorm(
      axis=-1, create_scale=True, create_offset=True, eps=1e-5, name=name
  )
