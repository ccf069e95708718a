"""The training loop, one for every task."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import signal
import threading
import time
from typing import Any

import haiku as hk
import jax
from jax.experimental import multihost_utils
import numpy as np
import tqdm

from rmc import _checks
from rmc.training import multihost
from rmc.training.checkpoint import Checkpointer, CheckpointError
from rmc.training.metrics import MetricsLog, write_text
from rmc.training.parallel import DataParallel
from rmc.training.update import TrainState, to_numpy

# The figure that the update makes for the loop, not for a report.
_FINITE = "finite"
_OWN_NAMES = ("step", "wall_seconds", "final")  # What the loop itself records.
# Updates whose figures the device holds at most.
_MAX_PENDING = 1000


class NonFiniteError(Exception):
  """The loss or a gradient is not finite."""


class Interrupted(Exception):
  """A signal stopped the run, after its state was saved.

  Attributes:
    signum: the signal.
  """

  def __init__(self, signum: int, message: str):
    """Constructs an Interrupted.

    Args:
      signum: the signal.
      message: what was saved and how to go on.
    """
    super().__init__(message)
    self.signum = signum


@dataclasses.dataclass
class _Means:
  """Sums of figures since the last report, in the order of the steps."""

  sums: dict[str, float] = dataclasses.field(default_factory=dict)
  count: int = 0
  skipped: int = 0

  def add(self, figures: dict[str, float]):
    if not figures.pop(_FINITE):
      self.skipped += 1
      return
    self.count += 1
    for name, value in figures.items():
      self.sums[name] = self.sums.get(name, 0.0) + value

  def take(self) -> dict[str, float]:
    means = {name: value / self.count for name, value in self.sums.items()}
    if self.skipped:
      means["skipped_updates"] = self.skipped
    return means


@dataclasses.dataclass
class _Clock:
  """Seconds of this run, those before an interruption included."""

  wall_seconds: float = 0.0
  compile_seconds: float = 0.0
  update_seconds: float = 0.0
  timed_updates: int = 0


@dataclasses.dataclass(frozen=True)
class Schedule:
  """How long a run is and how often it reports.

  Attributes:
    num_steps: updates in all.
    log_every: updates between reports.
    eval_every: updates between evaluations, each of which is a report too; 0
      for one at the end alone.
    checkpoint_every: updates between checkpoints; 0 for one at the end alone.
  """

  num_steps: int
  log_every: int = 100
  eval_every: int = 0
  checkpoint_every: int = 0

  def __post_init__(self):
    """Raises a ValueError for a number out of its range."""
    _checks.at_least(1, num_steps=self.num_steps, log_every=self.log_every)
    _checks.at_least(
        0, eval_every=self.eval_every, checkpoint_every=self.checkpoint_every
    )

  def is_report(self, step: int) -> bool:
    """Returns whether a report follows this update."""
    return step % self.log_every == 0 or self.is_evaluation(step)

  def is_evaluation(self, step: int) -> bool:
    """Returns whether an evaluation follows this update."""
    return self.eval_every > 0 and step % self.eval_every == 0

  def is_checkpoint(self, step: int) -> bool:
    """Returns whether a checkpoint follows this update."""
    return self.checkpoint_every > 0 and step % self.checkpoint_every == 0


def train(
    workdir: str | pathlib.Path,
    init: Callable[[], TrainState],
    update: Callable[[TrainState, Any], tuple[TrainState, dict]],
    batches: Callable[[int], Any],
    parallel: DataParallel,
    schedule: Schedule,
    *,
    evaluate: Callable[[TrainState], dict[str, float]] | None = None,
    summarize: Callable[[int, int, dict[str, float]], dict[str, float]]
    | None = None,
    config: dict[str, Any] | None = None,
    flagfile: str = "",
    skip_nonfinite: bool = False,
) -> dict[str, Any]:
  """Trains, or goes on from the last checkpoint in the same directory.

  The directory then holds `flags.txt`, `metrics.jsonl`, `summary.json`,
  TensorBoard's event files and `checkpoints/`.

  Args:
    workdir: the run's directory.
    init: makes the state before the first update, with the carry of all
      examples; the same in every process.
    update: `(state, batch) -> (state, metrics)`, from
      `DataParallel.make_update`.
    batches: the batch of the update after so many, placed by `parallel`. It
      must be a pure function of that number, or resuming is not exact.
    parallel: where the state and the batches are.
    schedule: how long to train and how often to report.
    evaluate: further figures for the state.
    summarize: makes the figures of a report, such as quotients of sums, from
      the updates done, how many of them this report is of, and the means of
      their figures. None: the means are reported.
    config: what must be the same for a checkpoint to be gone on from.
    flagfile: flags that repeat the run, kept as `flags.txt`.
    skip_nonfinite: whether `update` drops what is not finite, so that it is
      counted rather than an error.

  Returns:
    What `summary.json` holds: the last report's figures and facts of the run.

  Raises:
    CheckpointError: if a checkpoint is of another configuration, or of more
      updates, or cannot be read, or the directory is used by another run or
      has a path in which orbax finds nothing.
    NonFiniteError: if the loss or a gradient is not finite.
    OSError: if a file or a checkpoint cannot be written.
    ValueError: if the parameters are not a nest of dicts and lists, or a figure
      is not one number or has a name that the loop records itself.
    Interrupted: if SIGINT or SIGTERM came. The state is saved.
  """
  workdir = pathlib.Path(workdir)
  config = json.loads(json.dumps(config or {}))
  leader = multihost.is_leader()
  with contextlib.ExitStack() as stack:
    checkpointer = restored = log = None

    def open_run():
      nonlocal checkpointer
      stack.enter_context(_lock(workdir))
      checkpointer = stack.enter_context(
          contextlib.closing(Checkpointer(workdir))
      )
      _check_config(checkpointer.meta(), config)

    def restore():
      nonlocal restored
      restored = checkpointer.restore(state)
      if restored is None:
        return None
      done = int(restored[0].step)
      if done > schedule.num_steps:
        raise CheckpointError(
            f"the run in {workdir} has done {done} updates, more than the "
            f"{schedule.num_steps} now asked for. Give as many, or another "
            "directory."
        )
      return restored[1]

    def open_files():
      nonlocal log
      write_text(workdir / "flags.txt", flagfile)
      if step < schedule.num_steps:  # That of a shorter run.
        (workdir / "summary.json").unlink(missing_ok=True)
      # Means that wait: the step's report came after the checkpoint, if at all.
      told = step - bool(means.count + means.skipped)
      log = stack.enter_context(contextlib.closing(MetricsLog(workdir, told)))

    multihost.on_leader(open_run)
    state = to_numpy(init())
    _check_params(state.params)
    num_parameters = hk.data_structures.tree_size(state.params)
    meta = multihost.on_leader(restore)
    means, clock = _Means(), _Clock()
    if meta is not None:
      state = multihost.from_leader(restored[0] if leader else state)
      means, clock = _Means(**meta["means"]), _Clock(**meta["clock"])
    first_step = step = int(state.step)
    multihost.on_leader(open_files)
    state = parallel.place_state(state)
    bar = stack.enter_context(
        tqdm.tqdm(
            total=schedule.num_steps,
            initial=step,
            disable=None if leader else True,
            unit="step",
        )
    )
    stopped_by = stack.enter_context(_stop_signals())
    started = time.monotonic() - clock.wall_seconds
    began = mark = time.monotonic()
    pending = []  # Figures on the device, of the updates since `absorb`.

    def absorb():
      """Waits for the device and takes over its figures."""
      nonlocal pending, mark
      for i, figures in enumerate(jax.device_get(pending)):
        figures = _numbers(figures)
        if not figures[_FINITE] and not skip_nonfinite:
          at = step - len(pending) + i + 1
          raise NonFiniteError(
              f"not finite at step {at}: {figures}; the last good checkpoint "
              "is kept. skip_nonfinite drops such updates, from there on too. "
              "A lower learning rate or gradient clipping may help, in another "
              "directory."
          )
        means.add(figures)
      clock.update_seconds += time.monotonic() - mark
      clock.timed_updates += len(pending)
      pending, mark = [], time.monotonic()

    def report(**extra):
      nonlocal means, mark
      absorb()
      figures = means.take()
      if summarize and means.count:
        figures = summarize(step, means.count, figures)
      record = {"step": step, "wall_seconds": 0.0} | figures
      if evaluate and (extra or schedule.is_evaluation(step)):
        record |= _numbers(evaluate(state))
      means, mark = _Means(), time.monotonic()
      record["wall_seconds"] = round(mark - started, 3)
      multihost.on_leader(lambda: log.write(record | extra))
      if leader:
        seconds_a_step = (mark - began) / (step - first_step or 1)
        steps_left = schedule.num_steps - step
        _show(bar, record, seconds_a_step * steps_left)

    def save():
      nonlocal mark
      absorb()
      clock.wall_seconds = time.monotonic() - started
      whole = parallel.fetch_state(state)
      meta = {
          "config": config,
          "means": dataclasses.asdict(means),
          "clock": dataclasses.asdict(clock),
      }
      multihost.on_leader(lambda: checkpointer.save(whole, meta))
      mark = time.monotonic()

    if means.count + means.skipped and schedule.is_report(step):
      report()  # A signal came first.
    while step < schedule.num_steps:
      state, figures = update(state, batches(step))
      step += 1
      pending.append(figures)
      bar.update()
      if step == first_step + 1:  # Compilation, which is not training.
        jax.block_until_ready(figures)
        clock.compile_seconds += time.monotonic() - mark
        mark = time.monotonic()
        clock.timed_updates -= 1
      if _must_stop(stopped_by, step) and step < schedule.num_steps:
        save()  # At once; an evaluation may take longer than there is time.
        raise Interrupted(
            stopped_by[0] if stopped_by else signal.SIGTERM,
            f"stopped after step {step} of {schedule.num_steps} and saved; "
            "run the same command again to go on.",
        )
      if schedule.is_report(step):
        report()
      if len(pending) == _MAX_PENDING:
        absorb()
      if schedule.is_checkpoint(step) or step == schedule.num_steps:
        save()
    if not schedule.is_report(step) or (
        evaluate and not schedule.is_evaluation(step)
    ):
      report(final=True)

    def write_summary():
      summary = {}
      for record in log.records:
        if record["step"] == step:
          summary |= record
      summary.pop("final", None)
      summary |= {
          "parameters": num_parameters,
          "device": parallel.devices[0].device_kind,
          "devices": len(parallel.devices),
          "matmul_precision": jax.config.jax_default_matmul_precision
          or "default",
          "steps_per_second": round(
              clock.timed_updates / max(clock.update_seconds, 1e-9), 3
          ),
          "compile_seconds": round(clock.compile_seconds, 3),
      }
      write_text(workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
      return summary

    return multihost.on_leader(write_summary)


def _numbers(figures: dict[str, Any]) -> dict[str, float]:
  """Returns figures as Python's numbers, or raises a ValueError."""
  for name, value in figures.items():
    if name in _OWN_NAMES or np.ndim(value):
      raise ValueError(
          "a figure must be one number, of another name than "
          f"{', '.join(_OWN_NAMES)}, got {name!r} of shape "
          f"{list(np.shape(value))}."
      )
  return {
      name: value if isinstance(value, int | float) else float(value)
      for name, value in figures.items()
  }


def _check_params(params: Any):
  """Raises a ValueError unless a checkpoint gives them back as they are."""
  if isinstance(params, (dict, list)):
    for part in params.values() if isinstance(params, dict) else params:
      _check_params(part)
    names = params if isinstance(params, dict) else ()
    if not all(isinstance(name, str) for name in names):
      raise ValueError(
          f"params must have strings for names, got {[*names]}: a checkpoint "
          "holds no others."
      )
  elif not jax.tree_util.all_leaves([params]):
    raise ValueError(
        "params must be a nest of dicts and lists, which a checkpoint can "
        f"hold, got a {type(params).__name__} in it."
    )


def _must_stop(stopped_by: list[int], step: int) -> bool:
  """Returns whether a signal came; all processes agree on the step."""
  if jax.process_count() > 1:
    return multihost_utils.reached_preemption_sync_point(step)
  return bool(stopped_by)


def _check_config(meta: dict[str, Any] | None, config: dict[str, Any]):
  """Raises a CheckpointError that lists what differs."""
  if meta is None:
    return
  saved = meta["config"]
  different = [
      f"{name} was {saved.get(name)!r} and is {config.get(name)!r}"
      for name in sorted(saved.keys() | config.keys())
      if saved.get(name) != config.get(name)
  ]
  if different:
    raise CheckpointError(
        "the checkpoint in the working directory is of a run with other "
        f"flags: {'; '.join(different)}. Give the same flags, or another "
        "directory."
    )


def _show(bar: tqdm.tqdm, record: dict[str, Any], seconds_left: float):
  """Shows a report, in the bar on a terminal and as a line elsewhere."""
  figures = {
      name: f"{value:.4g}"
      for name, value in record.items()
      if name not in ("step", "wall_seconds")
  }
  if not bar.disable:
    bar.set_postfix(figures, refresh=False)
    return
  print(
      f"step {record['step']}/{bar.total}",
      *(f"{name}={value}" for name, value in figures.items()),
      f"[{record['wall_seconds']:.0f} s, {seconds_left:.0f} s left]",
      flush=True,
  )


@contextlib.contextmanager
def _lock(workdir: pathlib.Path) -> Iterator[None]:
  """Holds the directory; the system lets go of it when the process ends."""
  workdir.mkdir(parents=True, exist_ok=True)
  with (workdir / ".lock").open("w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise CheckpointError(
          f"another run is using the working directory {workdir}."
      ) from None
    yield


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
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
