"""Several processes as one run: start-up, agreement, one that writes."""

from collections.abc import Callable, Mapping
import json
import os
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

_TIMEOUT_SECONDS = 300
_GRACE_SECONDS = 3600


class MultihostError(Exception):
  """The processes of a run do not come together."""


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout_seconds: int = _TIMEOUT_SECONDS,
):
  """Joins the other processes of the run, if there are any.

  Without arguments it does so in a SLURM step or an Open MPI job of several
  tasks, on a Cloud TPU, and in an indexed Kubernetes job; the last two even if
  there are no others. JAX then finds them by itself. Elsewhere it does nothing.

  Args:
    coordinator_address: `host:port` of process 0.
    num_processes: how many processes there are.
    process_id: which of them this is, from 0.
    timeout_seconds: how long to wait for the others.

  Raises:
    MultihostError: if the others did not come in time, or JAX fails to start.
    ValueError: if the arguments do not go together.
  """
  given = (coordinator_address, num_processes, process_id)
  if given == (None, None, None):
    if not is_multihost(os.environ):
      return
  elif None in given:
    raise ValueError(
        "coordinator_address, num_processes and process_id must be given "
        f"together, got {given}."
    )
  elif not coordinator_address.rpartition(":")[2].isdecimal():
    raise ValueError(
        f"coordinator_address must be host:port, got {coordinator_address!r}."
    )
  elif not 0 <= process_id < num_processes:
    raise ValueError(
        f"process_id must be from 0 to {num_processes - 1} (num_processes - "
        f"1), got {process_id}."
    )
  # JAX aborts the process when its own time is up, so it is given longer and
  # the waiting is done here.
  errors = []

  def join():
    try:
      jax.distributed.initialize(
          *given, initialization_timeout=timeout_seconds + _GRACE_SECONDS
      )
    except Exception as error:  # Whatever it is, it must not be lost.
      errors.append(error)

  joining = threading.Thread(target=join, daemon=True)
  joining.start()
  joining.join(timeout_seconds)
  if joining.is_alive() or errors:
    where = ""
    if coordinator_address is not None:
      where = (
          f" (process {process_id} of {num_processes}, coordinator "
          f"{coordinator_address})"
      )
    raise MultihostError(
        "the processes of this run did not come together within "
        f"{timeout_seconds} seconds{where}"
        + "".join(f": {error}" for error in errors)
    ) from (errors[0] if errors else None)


def is_multihost(environment: Mapping[str, str]) -> bool:
  """Returns whether the environment is of a task that may be one of several."""

  def number(name):
    value = environment.get(name, "")
    return int(value) if value.isdecimal() else 0

  return (
      "," in environment.get("TPU_WORKER_HOSTNAMES", "")
      or "," in environment.get("TPU_PROCESS_ADDRESSES", "")
      or _on_cloud_tpu(environment)
      # Of a step of srun; a bare allocation has SLURM_NTASKS alone.
      or number("SLURM_STEP_NUM_TASKS") > 1
      or number("OMPI_COMM_WORLD_SIZE") > 1
      or (
          "KUBERNETES_SERVICE_HOST" in environment
          and "JOB_COMPLETION_INDEX" in environment
      )
  )


def _on_cloud_tpu(environment: Mapping[str, str]) -> bool:
  """Returns whether this is a TPU VM whose metadata names its pod, if any.

  JAX, when imported, notes in the environment that it runs on such a machine.
  Alone in its pod a process is the first of one.
  """
  return (
      environment.get("TPU_ML_PLATFORM") == "JAX"
      and "TPU_SKIP_MDS_QUERY" not in environment
      and "TPU_WORKER_HOSTNAMES" not in environment
      and "TPU_PROCESS_ADDRESSES" not in environment
  )


def is_leader() -> bool:
  """Returns whether this is the process that writes and prints."""
  return jax.process_index() == 0


def on_leader(function: Callable[[], Any]) -> Any:
  """Calls a function in process 0 alone.

  Args:
    function: returns something that JSON can hold.

  Returns:
    What it returned, in every process.

  Raises:
    Exception: the function's error in process 0, and in the others one of the
      same message, so that none waits for another that has failed.
  """
  if jax.process_count() == 1:
    return function()
  error, message = None, b""
  if is_leader():
    try:
      message = json.dumps({"result": function()}).encode()
    except Exception as caught:  # Passed on to all, then raised again.
      error = caught
      message = json.dumps({"error": str(caught)}).encode()
  size = multihost_utils.broadcast_one_to_all(np.int32(len(message)))
  buffer = np.zeros(int(size), np.uint8)
  if is_leader():
    buffer[:] = np.frombuffer(message, np.uint8)
  buffer = np.asarray(multihost_utils.broadcast_one_to_all(buffer))
  answer = json.loads(buffer.astype(np.uint8).tobytes())
  if error is not None:
    raise error
  if "error" in answer:
    raise MultihostError(f"process 0 failed: {answer['error']}")
  return answer["result"]


def from_leader(tree: Any) -> Any:
  """Returns process 0's nest of NumPy arrays in every process."""
  if jax.process_count() == 1:
    return tree
  tree = multihost_utils.broadcast_one_to_all(tree)
  return jax.tree.map(np.asarray, tree)


def gather(tree: Any) -> Any:
  """Joins every process's share of the examples, `[B / processes, ...]`."""
  if jax.process_count() == 1:
    return tree
  return multihost_utils.process_allgather(tree, tiled=True)
