"""The training loop, one for every task."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import fcntl
import json
import pathlib
import signal
import time
from typing import Any

import haiku as hk
import jax
import numpy as np
import tqdm

from rmc import _checks
from rmc.training import _signals, multihost
from rmc.training.checkpoint import Checkpointer, CheckpointError
from rmc.training.metrics import MetricsLog, write_text
from rmc.training.parallel import DataParallel
from rmc.training.update import TrainState, to_numpy

# The metric that the update makes for the loop, not for a report.
_FINITE = "finite"
_OWN_NAMES = ("step", "wall_seconds", "final")  # What the loop itself records.
# Updates whose metrics the device holds at most.
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
  """Sums of metrics since the last report, in the order of the steps."""

  sums: dict[str, float] = dataclasses.field(default_factory=dict)
  count: int = 0
  skipped: int = 0

  @property
  def num_updates(self) -> int:
    return self.count + self.skipped

  def add(self, metrics: dict[str, float]):
    if not metrics.pop(_FINITE):
      self.skipped += 1
      return
    self.count += 1
    for name, value in metrics.items():
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
    checkpoint_minutes: a report is followed by a checkpoint if the last one is
      so long ago; 0 for none of these.
  """

  num_steps: int
  log_every: int = 100
  eval_every: int = 0
  checkpoint_every: int = 0
  checkpoint_minutes: float = 0.0

  def __post_init__(self):
    """Raises a ValueError for a number out of its range."""
    _checks.at_least(1, num_steps=self.num_steps, log_every=self.log_every)
    _checks.at_least(
        0,
        eval_every=self.eval_every,
        checkpoint_every=self.checkpoint_every,
        checkpoint_minutes=self.checkpoint_minutes,
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
    evaluate: further metrics for the state.
    summarize: makes the metrics of a report, such as quotients of sums, from
      the updates done, how many of them this report is of, and the means of
      their metrics. None: the means are reported.
    config: what must be the same for a checkpoint to be gone on from.
    flagfile: flags that repeat the run, kept as `flags.txt`.
    skip_nonfinite: whether `update` drops what is not finite, so that it is
      counted rather than an error.

  Returns:
    What `summary.json` holds: the last report's metrics and facts of the run.

  Raises:
    CheckpointError: if a checkpoint is of another configuration, or of more
      updates, or cannot be read, or the directory is used by another run or
      has a path in which orbax finds nothing.
    NonFiniteError: if the loss or a gradient is not finite.
    OSError: if a file or a checkpoint cannot be written.
    ValueError: if the parameters are not a nest of dicts and lists, or a metric
      is not one number or has a name that the loop records itself.
    Interrupted: if SIGINT or SIGTERM came. The state is saved.
  """
  workdir = pathlib.Path(workdir)
  config = json.loads(json.dumps(config or {}))
  with contextlib.ExitStack() as stack:
    run = _Run(
        stack,
        workdir,
        update,
        batches,
        parallel,
        schedule,
        evaluate=evaluate,
        summarize=summarize,
        config=config,
        skip_nonfinite=skip_nonfinite,
    )
    run.start(init, flagfile)
    run.go_on()
    return run.finish()


class _Run:
  """A run of `train`, whose arguments the methods share.

  `start` opens the directory and takes up the last checkpoint, `go_on` takes
  the updates that are left, and `finish` writes the summary. Whatever touches
  the directory happens in process 0 alone, by `multihost.on_leader`.
  """

  def __init__(
      self,
      stack: contextlib.ExitStack,
      workdir: pathlib.Path,
      update: Callable[[TrainState, Any], tuple[TrainState, dict]],
      batches: Callable[[int], Any],
      parallel: DataParallel,
      schedule: Schedule,
      *,
      evaluate: Callable[[TrainState], dict[str, float]] | None,
      summarize: Callable[[int, int, dict[str, float]], dict[str, float]]
      | None,
      config: dict[str, Any],
      skip_nonfinite: bool,
  ):
    """Constructs a _Run.

    `stack` closes what the run opens. All other arguments are as in `train`,
    and `config` is as JSON gives it back.
    """
    self._stack = stack
    self._workdir = workdir
    self._update = update
    self._batches = batches
    self._parallel = parallel
    self._schedule = schedule
    self._evaluate = evaluate
    self._summarize = summarize
    self._config = config
    self._skip_nonfinite = skip_nonfinite

    self._means, self._clock = _Means(), _Clock()
    # Metrics on the device, of the updates since `_absorb`.
    self._pending = []
    self._checkpointer = self._log = None  # Process 0 has them.

  def start(self, init: Callable[[], TrainState], flagfile: str):
    """Opens the directory, takes up its last checkpoint and starts the clocks.

    Args:
      init: as in `train`.
      flagfile: as in `train`.
    """
    multihost.on_leader(self._open)
    self._state = to_numpy(init())
    _check_params(self._state.params)
    self._num_parameters = hk.data_structures.tree_size(self._state.params)
    notes = multihost.on_leader(self._restore)
    if notes is not None:
      self._state = multihost.from_leader(self._state)
      self._means = _Means(**notes["means"])
      self._clock = _Clock(**notes["clock"])
    self._first_step = self._step = int(self._state.step)
    multihost.on_leader(lambda: self._open_files(flagfile))
    self._state = self._parallel.place_state(self._state)
    self._bar = self._stack.enter_context(
        tqdm.tqdm(
            total=self._schedule.num_steps,
            initial=self._step,
            disable=None if multihost.is_leader() else True,
            unit="step",
        )
    )
    self._stopped_by = self._stack.enter_context(_signals.stop_signals())
    self._started = time.monotonic() - self._clock.wall_seconds
    self._began = self._mark = self._saved = time.monotonic()

  def go_on(self):
    """Takes the updates that are left, with their reports and checkpoints."""
    schedule = self._schedule
    if self._means.num_updates and schedule.is_report(self._step):
      self._report()  # A signal came first.
    while self._step < schedule.num_steps:
      self._take_update()
      self._stop_if_asked()
      if schedule.is_report(self._step):
        self._report()
      if len(self._pending) == _MAX_PENDING:
        self._absorb()
      if (
          schedule.is_checkpoint(self._step)
          or self._step == schedule.num_steps
          or (schedule.is_report(self._step) and self._is_long_unsaved())
      ):
        self._save()
    if not schedule.is_report(self._step) or (
        self._evaluate and not schedule.is_evaluation(self._step)
    ):
      self._report(final=True)

  def finish(self) -> dict[str, Any]:
    """Writes and returns the summary."""
    return multihost.on_leader(self._write_summary)

  def _open(self):
    """Locks the directory and checks that its checkpoints are this run's."""
    self._stack.enter_context(_lock(self._workdir))
    self._checkpointer = self._stack.enter_context(
        contextlib.closing(Checkpointer(self._workdir))
    )
    _check_config(self._checkpointer.meta(), self._config)

  def _restore(self) -> dict[str, Any] | None:
    """Takes the state of the last checkpoint; returns its notes, if any."""
    restored = self._checkpointer.restore(self._state)
    if restored is None:
      return None
    state, notes = restored
    done = int(state.step)
    if done > self._schedule.num_steps:
      raise CheckpointError(
          f"the run in {self._workdir} has done {done} updates, more than the "
          f"{self._schedule.num_steps} now asked for. Give as many, or another "
          "directory."
      )
    self._state = state
    return notes

  def _open_files(self, flagfile: str):
    write_text(self._workdir / "flags.txt", flagfile)
    if self._step < self._schedule.num_steps:  # That of a shorter run.
      (self._workdir / "summary.json").unlink(missing_ok=True)
    # Means that wait: the step's report came after the checkpoint, if at all.
    told = self._step - bool(self._means.num_updates)
    self._log = self._stack.enter_context(
        contextlib.closing(MetricsLog(self._workdir, told))
    )

  def _take_update(self):
    """Starts an update; the device may still be at work on earlier ones."""
    self._state, metrics = self._update(self._state, self._batches(self._step))
    self._step += 1
    self._pending.append(metrics)
    self._bar.update()
    if self._step == self._first_step + 1:  # Compilation, which is no training.
      jax.block_until_ready(metrics)
      self._clock.compile_seconds += time.monotonic() - self._mark
      self._mark = time.monotonic()
      self._clock.timed_updates -= 1

  def _stop_if_asked(self):
    """Saves and raises an Interrupted if a signal came, but not at the end."""
    num_steps = self._schedule.num_steps
    stop = _signals.must_stop(self._stopped_by, self._step)
    if stop and self._step < num_steps:
      self._save()  # At once; an evaluation may take longer than there is time.
      raise Interrupted(
          self._stopped_by[0] if self._stopped_by else signal.SIGTERM,
          f"stopped after step {self._step} of {num_steps} and saved; "
          "run the same command again to go on.",
      )

  def _absorb(self):
    """Waits for the device and takes over its metrics."""
    for i, metrics in enumerate(jax.device_get(self._pending)):
      metrics = _numbers(metrics)
      if not metrics[_FINITE] and not self._skip_nonfinite:
        at = self._step - len(self._pending) + i + 1
        raise NonFiniteError(
            f"not finite at step {at}: {metrics}; the last good checkpoint "
            "is kept. skip_nonfinite drops such updates, from there on too. "
            "A lower learning rate or gradient clipping may help, in another "
            "directory."
        )
      self._means.add(metrics)
    self._clock.update_seconds += time.monotonic() - self._mark
    self._clock.timed_updates += len(self._pending)
    self._pending, self._mark = [], time.monotonic()

  def _report(self, final: bool = False):
    """Writes and shows the metrics since the last report.

    Args:
      final: whether the report stands outside the regular ones, at the end. It
        has an evaluation.
    """
    self._absorb()
    metrics = self._means.take()
    if self._summarize and self._means.count:
      metrics = self._summarize(self._step, self._means.count, metrics)
    record = {"step": self._step, "wall_seconds": 0.0} | metrics
    if self._evaluate and (final or self._schedule.is_evaluation(self._step)):
      record |= _numbers(self._evaluate(self._state))
    self._means, self._mark = _Means(), time.monotonic()
    record["wall_seconds"] = round(self._mark - self._started, 3)
    extra = {"final": True} if final else {}
    multihost.on_leader(lambda: self._log.write(record | extra))
    if multihost.is_leader():
      steps_done = self._step - self._first_step or 1
      seconds_a_step = (self._mark - self._began) / steps_done
      steps_left = self._schedule.num_steps - self._step
      _show(self._bar, record, seconds_a_step * steps_left)

  def _is_long_unsaved(self) -> bool:
    """Returns whether a checkpoint is due by the clock, that of process 0."""
    minutes = self._schedule.checkpoint_minutes
    if not minutes:
      return False
    seconds = time.monotonic() - self._saved
    return multihost.on_leader(lambda: seconds >= 60 * minutes)

  def _save(self):
    """Writes a checkpoint."""
    self._absorb()
    self._clock.wall_seconds = time.monotonic() - self._started
    whole = self._parallel.fetch_state(self._state)
    notes = {
        "config": self._config,
        "means": dataclasses.asdict(self._means),
        "clock": dataclasses.asdict(self._clock),
    }
    multihost.on_leader(lambda: self._checkpointer.save(whole, notes))
    self._mark = self._saved = time.monotonic()

  def _write_summary(self) -> dict[str, Any]:
    summary = {}
    for record in self._log.records:
      if record["step"] == self._step:
        summary |= record
    summary.pop("final", None)
    clock, devices = self._clock, self._parallel.devices
    summary |= {
        "parameters": self._num_parameters,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "matmul_precision": jax.config.jax_default_matmul_precision
        or "default",
        "steps_per_second": round(
            clock.timed_updates / max(clock.update_seconds, 1e-9), 3
        ),
        "compile_seconds": round(clock.compile_seconds, 3),
    }
    path = self._workdir / "summary.json"
    write_text(path, json.dumps(summary, indent=2) + "\n")
    return summary


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
  """Returns metrics as Python's numbers, or raises a ValueError."""
  for name, value in metrics.items():
    if name in _OWN_NAMES or np.ndim(value):
      raise ValueError(
          "a metric must be one number, of another name than "
          f"{', '.join(_OWN_NAMES)}, got {name!r} of shape "
          f"{list(np.shape(value))}."
      )
  return {
      name: value if isinstance(value, int | float) else float(value)
      for name, value in metrics.items()
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


def _check_config(meta: dict[str, Any] | None, config: dict[str, Any]):
  """Raises a CheckpointError that lists what differs."""
  if meta is None:
    return
  saved = meta["config"]

  def told(values, name):
    return repr(values[name]) if name in values else "not recorded"

  different = [
      f"{name} was {told(saved, name)} and is {told(config, name)}"
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
  metrics = {
      name: f"{value:.4g}"
      for name, value in record.items()
      if name not in ("step", "wall_seconds")
  }
  if not bar.disable:
    bar.set_postfix(metrics, refresh=False)
    return
  print(
      f"step {record['step']}/{bar.total}",
      *(f"{name}={value}" for name, value in metrics.items()),
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
