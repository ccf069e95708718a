"""One update on one device or on many, in one process or in several.

Glossary of shapes:
  - B: examples of an update, over all devices.
  - D: devices of this process.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import optax

from rmc.training import multihost
from rmc.training.update import LossFn, TrainState, make_update, to_numpy

MODES = ("auto", "jit", "pmap")
_AXIS = "devices"


class DataParallel:
  """Splits the examples of an update over devices.

  The state has no device axis, so that a checkpoint is the same whatever the
  number of devices. Only `carry`, which belongs to examples, is split as they
  are.

  `'jit'` lets the compiler split one program that is written for the whole
  batch. `'pmap'` runs the program of a part of the batch on each device and
  averages the gradients. The results are the same but for rounding.
  """

  def __init__(
      self, mode: str = "auto", devices: Sequence[jax.Device] | None = None
  ):
    """Constructs a DataParallel.

    Args:
      mode: `'jit'`, `'pmap'`, or `'auto'`, which is jit on one device and pmap
        on several.
      devices: the devices of all processes; None for all that there are.

    Raises:
      ValueError: if the mode is none of these.
    """
    if mode not in MODES:
      raise ValueError(f"mode must be one of {MODES}, got {mode!r}.")
    self.devices = list(jax.devices() if devices is None else devices)
    if mode == "auto":
      mode = "jit" if len(self.devices) == 1 else "pmap"
    self.mode = mode
    mesh = Mesh(np.array(self.devices), (_AXIS,))
    self._split = NamedSharding(mesh, PartitionSpec(_AXIS))
    self._replicated = NamedSharding(mesh, PartitionSpec())

  def local_indices(self, batch_size: int) -> np.ndarray:
    """Returns which of an update's B examples this process computes.

    Args:
      batch_size: B.

    Returns:
      Indices, int32, `[B / processes]`.

    Raises:
      ValueError: if the devices do not divide B.
    """
    if batch_size < 1 or batch_size % len(self.devices):
      raise ValueError(
          f"batch_size must be a multiple of the {len(self.devices)} devices, "
          f"got {batch_size}."
      )
    size = batch_size // jax.process_count()
    first = size * jax.process_index()
    return np.arange(first, first + size, dtype=np.int32)

  def place_batch(self, batch: Any) -> Any:
    """Puts this process's share of a batch, `[B / processes, ...]`, in place.

    Args:
      batch: a nest of arrays in the order of `local_indices`.

    Returns:
      What the compiled update takes.
    """
    by_device = self._by_device if self.mode == "pmap" else np.asarray
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(
            self._split, by_device(x)
        ),
        batch,
    )

  def place_state(self, state: TrainState) -> TrainState:
    """Puts a state in place.

    Args:
      state: a state of NumPy arrays, with the carry of all examples, as
        `fetch_state` returns it.

    Returns:
      What the compiled update takes.
    """
    share = jax.tree.map(
        lambda x: x[self.local_indices(x.shape[0])], state.carry
    )
    rest = jax.device_put(state._replace(carry=None), self._replicated)
    return rest._replace(
        carry=self.place_batch(share), key=jax.random.wrap_key_data(rest.key)
    )

  def fetch_state(self, state: TrainState) -> TrainState:
    """Returns a state as NumPy arrays, with the carry of all examples."""
    carry = jax.tree.map(self._fetch_share, state.carry)
    rest = to_numpy(state._replace(carry=None))
    return rest._replace(carry=multihost.gather(carry))

  def make_update(
      self,
      loss_fn: LossFn,
      optimizer: optax.GradientTransformation,
      *,
      skip_nonfinite: bool = False,
  ) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """Makes the compiled update; see `rmc.training.make_update`.

    Args:
      loss_fn: the loss and metrics of a batch.
      optimizer: turns gradients into updates.
      skip_nonfinite: whether to leave the parameters as they were if the loss
        or a gradient is not finite.

    Returns:
      A function `(state, batch) -> (state, metrics)`, which reuses the memory
      of the state that it is given.
    """
    if self.mode == "pmap":
      update = make_update(
          loss_fn,
          optimizer,
          axis_name=_AXIS,
          skip_nonfinite=skip_nonfinite,
      )
      # No leading device axis: None stands for "the same on each device".
      state_axes = TrainState(None, None, None, 0, None)
      return jax.pmap(
          update,
          axis_name=_AXIS,
          in_axes=(state_axes, 0),
          out_axes=(state_axes, None),
          devices=self.devices,
          donate_argnums=0,
      )
    update = make_update(loss_fn, optimizer, skip_nonfinite=skip_nonfinite)
    whole = self._replicated
    state_sharding = TrainState(whole, whole, whole, self._split, whole)
    return jax.jit(
        update,
        in_shardings=(state_sharding, self._split),
        out_shardings=(state_sharding, whole),
        donate_argnums=0,
    )

  def mean(self, x: Any) -> Any:
    """Averages over devices what a loss function found on its examples.

    Args:
      x: a nest of arrays, each a mean over the examples at hand.

    Returns:
      The means over all examples of the update.
    """
    return jax.lax.pmean(x, _AXIS) if self.mode == "pmap" else x

  def _by_device(self, x: Any) -> np.ndarray:
    num_devices = len(self._split.addressable_devices)
    return np.reshape(x, (num_devices, -1, *np.shape(x)[1:]))  # [D, B / D, ...]

  def _fetch_share(self, x: jax.Array) -> np.ndarray:
    """Returns this process's share of an array that is split over devices."""
    shards = sorted(
        x.addressable_shards, key=lambda shard: shard.index[0].start or 0
    )
    share = np.concatenate([np.asarray(shard.data) for shard in shards])
    if self.mode == "pmap":
      share = np.reshape(share, (-1, *share.shape[2:]))
    return share
