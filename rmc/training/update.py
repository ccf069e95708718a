"""The update step, written once for every task.

Glossary of shapes:
  - B: examples of an update, over all devices.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

Metrics = dict[str, jax.Array]
# (params, batch, carry, key) -> (loss, (metrics, next carry)): means over the
# examples of the batch. The key is the update's; what it draws for an example
# must depend on the example's index among all B alone (`example_keys`).
LossFn = Callable[
    [Any, Any, Any, jax.Array], tuple[jax.Array, tuple[Metrics, Any]]
]


class TrainState(NamedTuple):
  """Everything that an update changes, and the key that it draws from.

  Attributes:
    step: number of updates done, int32.
    params: the network's parameters.
    opt_state: the optimiser's state.
    carry: what the task takes from update to update, such as the state of a
      core or of environments; a nest of `[B, ...]`, or None.
    key: the PRNG key of the training data. It never changes: update t draws
      from `jax.random.fold_in(key, t)`.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  carry: Any
  key: jax.Array


def init_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    carry: Any = None,
) -> TrainState:
  """Returns the state before the first update.

  Args:
    params: the network's parameters.
    optimizer: what their updates come from.
    key: the PRNG key of the training data.
    carry: what the task takes from update to update, a nest of `[B, ...]`; None
      for nothing. Keys in it are of `jax.random.PRNGKey`.
  """
  return TrainState(
      step=jnp.zeros([], jnp.int32),
      params=params,
      opt_state=optimizer.init(params),
      carry=carry,
      key=key,
  )


def to_numpy(state: TrainState) -> TrainState:
  """Returns a state as NumPy arrays, its key as `jax.random.key_data`.

  Args:
    state: a state; keys as of `jax.random.key` may be in `key` alone.

  Raises:
    ValueError: if there is such a key elsewhere.
  """
  if _is_key(state.key):
    state = state._replace(key=jax.random.key_data(state.key))
  for path, x in jax.tree.leaves_with_path(state):
    if _is_key(x):
      raise ValueError(
          f"state{jax.tree_util.keystr(path)} must be numbers, got {x.dtype}; "
          "jax.random.PRNGKey makes a key of numbers."
      )
  return jax.tree.map(np.asarray, state)


def _is_key(x: Any) -> bool:
  return jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)


def example_keys(key: jax.Array, indices: jax.Array) -> jax.Array:
  """Returns a key for each example.

  Example i of update t is a function of the seed, t and i alone, so that it is
  the same example on any number of devices and after any interruption.

  Args:
    key: the update's key.
    indices: the examples' indices among all B, `[b]`.

  Returns:
    Keys, `[b]`.
  """
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)


def make_update(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    axis_name: str | None = None,
    skip_nonfinite: bool = False,
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
  """Makes the function that takes one step of gradient descent.

  Args:
    loss_fn: the loss and metrics of a batch.
    optimizer: turns gradients into updates.
    axis_name: the mapped axis over which gradients and metrics are averaged;
      None if the function sees the whole batch.
    skip_nonfinite: whether an update whose loss or gradient is not finite
      leaves the parameters and the optimiser's state as they were. The carry
      goes on, so that the next update sees something else, but for the examples
      whose own is not finite.

  Returns:
    A pure function `(state, batch) -> (state, metrics)`. To the metrics of
    `loss_fn` it adds `loss`, `grad_norm`, and `finite`, 1.0 or 0.0.
  """

  def update(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
    key = jax.random.fold_in(state.key, state.step)
    (loss, (metrics, carry)), grads = jax.value_and_grad(
        loss_fn, has_aux=True
    )(state.params, batch, state.carry, key)
    metrics = metrics | {"loss": loss}
    if axis_name is not None:
      grads, metrics = jax.lax.pmean((grads, metrics), axis_name)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)
    if skip_nonfinite:
      params, opt_state = jax.tree.map(
          lambda new, old: jnp.where(finite, new, old),
          (params, opt_state),
          (state.params, state.opt_state),
      )
      carry = _carry_on(finite, carry, state.carry)
    metrics |= {"grad_norm": grad_norm, "finite": finite.astype(jnp.float32)}
    step = state.step + 1
    return TrainState(step, params, opt_state, carry, state.key), metrics

  return update


def _carry_on(finite: jax.Array, new: Any, old: Any) -> Any:
  """Returns the new carry, or the old where an example's new is not finite.

  Args:
    finite: whether the loss and the gradient were; then all is new.
    new: a nest of `[B, ...]`.
    old: a nest of `[B, ...]`.
  """
  sound = True
  for x in jax.tree.leaves(new):
    if jnp.issubdtype(x.dtype, jnp.floating):
      sound &= jnp.all(jnp.isfinite(x), axis=range(1, x.ndim))  # [B]
  sound |= finite

  def choose(new, old):
    axes = range(sound.ndim, new.ndim)
    return jnp.where(jnp.expand_dims(sound, axes), new, old)

  return jax.tree.map(choose, new, old)
