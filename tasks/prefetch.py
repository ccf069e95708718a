"""Batches made in a background thread while the device computes."""

from collections.abc import Callable, Hashable, Iterator
import queue
import threading
from typing import Any


class Prefetcher:
  """Runs ahead of a training loop that asks for one batch after another.

  What comes next is guessed: the next step, with the same setting. A caller
  that asks for another one gets it all the same, since the thread begins anew
  there; so batches that are pure functions of step and setting stay so.
  """

  def __init__(
      self,
      batches_from: Callable[[int, Any], Iterator[Any]],
      size: int = 64,
  ):
    """Constructs a Prefetcher.

    Args:
      batches_from: `(step, setting)` to an iterator over the batches of that
        step and the ones after it. It runs in the thread.
      size: how many batches to keep ready.
    """
    self._batches_from = batches_from
    self._size = size
    self._next = None
    self._queue = queue.Queue()
    self._stopped = threading.Event()
    self._thread = None

  def __call__(self, step: int, setting: Hashable = None) -> Any:
    """Returns the batch of a step.

    Args:
      step: of the training.
      setting: whatever else the batch depends on.

    Returns:
      The batch.

    Raises:
      Exception: what `batches_from` raised.
    """
    if self._next != (step, setting):
      self.close()
      self._queue = queue.Queue(self._size)
      self._stopped = threading.Event()
      self._thread = threading.Thread(
          target=_fill,
          args=(
              self._queue,
              self._stopped,
              lambda: self._batches_from(step, setting),
          ),
          daemon=True,
      )
      self._thread.start()
    batch, error = self._queue.get()
    if error is not None:
      self.close()
      raise error
    self._next = (step + 1, setting)
    return batch

  def close(self):
    """Ends the thread."""
    self._next = None
    if self._thread is not None:
      self._stopped.set()
      self._thread.join()
      self._thread = None


def _fill(
    ready: queue.Queue,
    stopped: threading.Event,
    start: Callable[[], Iterator[Any]],
):
  """Keeps a queue of `(batch, error)` filled until told to stop."""

  def put(item):
    while not stopped.is_set():
      try:
        return ready.put(item, timeout=0.1)
      except queue.Full:
        pass

  try:
    for batch in start():
      put((batch, None))
      if stopped.is_set():
        return
    put((None, ValueError("batches_from must not end.")))
  except Exception as error:  # Passed on to the caller.
    put((None, error))
