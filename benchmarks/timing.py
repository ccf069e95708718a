"""Times of compiled functions that share a machine with other work."""

from collections.abc import Callable, Sequence
import time

import jax
import numpy as np


def interleaved_medians(
    functions: Sequence[Callable[[], object]], repetitions: int
) -> list[float]:
  """Times functions in turn, so that a busy moment strikes all alike.

  Each is called once beforehand, which compiles it if nothing else did.

  Args:
    functions: functions without arguments that return JAX arrays.
    repetitions: how many rounds are timed.

  Returns:
    The median time of each function in milliseconds.
  """
  for function in functions:
    jax.block_until_ready(function())
  times = np.empty((repetitions, len(functions)))
  for repetition in range(repetitions):
    for i, function in enumerate(functions):
      start = time.perf_counter()
      jax.block_until_ready(function())
      times[repetition, i] = time.perf_counter() - start
  return list(1e3 * np.median(times, axis=0))
