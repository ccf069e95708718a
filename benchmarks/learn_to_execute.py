"""How many programs of Learning to Execute are made in a second.

    python -m benchmarks.learn_to_execute

Full programs of length 5 and nesting 2, or of all up to there (Mix), drawn,
computed, tokenised and padded, in batches of 128, by one process:

  - alone: samples/s in the thread that asks for them, after the clock on the
    wall and, for a machine with other work, per second of CPU time;
  - fed: samples/s that the background thread hands over.
"""

import time

import numpy as np
import tabulate

from scripts.lib import program
from tasks.learn_to_execute import LearnToExecute, Level
from tasks.prefetch import Prefetcher

_BATCH_SIZE = 128
_SECONDS = 3.0


def main():
  """Prints a table."""
  rows = []
  for by_token in (False, True):
    task = LearnToExecute("program", length=5, nesting=2, by_token=by_token)
    for mixed in (False, True):
      rows.append(_row(task, Level(5, 2, mixed)))
  print(tabulate.tabulate(rows, headers="keys", intfmt=","))


def _row(task: LearnToExecute, level: Level) -> dict[str, object]:
  """Measures one setting."""

  def batches_from(step, level):
    indices = np.arange(_BATCH_SIZE)
    return task.batches(0, step, indices, _BATCH_SIZE, level)

  batches = batches_from(0, level)
  alone, cpu = _samples_per_second(lambda step: next(batches))
  prefetcher = Prefetcher(batches_from)
  fed, _ = _samples_per_second(lambda step: prefetcher(step, level))
  prefetcher.close()
  return {
      "tokens": "words" if task.by_token else "characters",
      "programs": "Mix" if level.mixed else "5 / 2",
      "alone": alone,
      "alone, CPU": cpu,
      "fed": fed,
  }


def _samples_per_second(get) -> tuple[int, int]:
  """Returns how many samples a second come, by the wall and by the CPU."""
  get(0)  # Makes what is made once, such as the vocabulary.
  wall, cpu = time.perf_counter(), time.process_time()
  step = 0
  while time.perf_counter() - wall < _SECONDS:
    step += 1
    get(step)
  wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
  return round(_BATCH_SIZE * step / wall), round(_BATCH_SIZE * step / cpu)


if __name__ == "__main__":
  program.run(main)
