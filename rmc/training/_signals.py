"""Signals that ask a run to stop."""

from collections.abc import Iterator
import contextlib
import os
import signal
import threading

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
  """Yields a list that SIGINT or SIGTERM adds itself to.

  The second SIGINT is Python's own again and stops at once. With several
  processes, JAX listens for SIGTERM and tells the others.
  """
  received = []
  old = {}

  def handle(signum, frame):
    del frame
    received.append(signum)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Not print, which fails if the signal came in the middle of another.
    with contextlib.suppress(OSError):  # As of a pipe to what has ended too.
      os.write(2, b"stopping after this step; once more to stop now\n")
    if jax.process_count() > 1:
      os.kill(os.getpid(), signal.SIGTERM)

  signals = [signal.SIGINT]
  if jax.process_count() == 1:
    signals.append(signal.SIGTERM)
  if threading.current_thread() is threading.main_thread():
    old = {signum: signal.signal(signum, handle) for signum in signals}
  try:
    yield received
  finally:
    for signum, handler in old.items():
      signal.signal(signum, handler)


def must_stop(received: list[int], step: int) -> bool:
  """Returns whether a signal came; all processes agree on the step.

  Args:
    received: what `stop_signals` yielded.
    step: updates done. With several processes, each must ask at every step.
  """
  if jax.process_count() > 1:
    return multihost_utils.reached_preemption_sync_point(step)
  return bool(received)
