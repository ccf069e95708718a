"""Flags that the training programs share, and what is made from them."""

from collections.abc import Callable, Iterator
import contextlib
import json
import math
import os
import pathlib
import signal
import sys
from typing import Any

from absl import flags
import haiku as hk
import jax
import jmp
import numpy as np
import optax
import tabulate

from rmc import training
from rmc.training import multihost
from scripts.lib import program
from scripts.lib.program import Failure, UsageError, usage_errors

FLAGS = flags.FLAGS

# The run.
flags.DEFINE_string(
    "workdir", None, "Directory of the run; made if it is not there."
)
flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "eval"],
    "train: train, or go on with the run in --workdir. eval: evaluate the "
    "newest checkpoint in --workdir, with its own flags unless overruled.",
)
flags.DEFINE_integer(
    "seed",
    0,
    "Seed of parameters and data.",
    lower_bound=0,
    upper_bound=2**32 - 1,  # JAX keeps no more of it.
)
flags.DEFINE_integer("steps", 10_000, "Updates in all.", lower_bound=1)
flags.DEFINE_integer(
    "batch_size", 128, "Examples of an update, on all devices.", lower_bound=1
)
flags.DEFINE_integer(
    "log_every", 100, "Updates between reports.", lower_bound=1
)
flags.DEFINE_integer(
    "eval_every",
    0,
    "Updates between evaluations; 0: one at the end.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "checkpoint_every",
    1000,
    "Updates between checkpoints; 0: one at the end.",
    lower_bound=0,
)
flags.DEFINE_enum(
    "parallel",
    "auto",
    ["auto", "jit", "pmap"],
    "How an update is split over devices; auto: jit on one, pmap on several.",
)
flags.DEFINE_enum(
    "matmul_precision",
    "default",
    ["default", "high", "highest"],
    "Precision of float32 matrix products. JAX's default is TF32 on recent "
    "GPUs and bfloat16 on TPUs; highest is float32 everywhere.",
)
flags.DEFINE_enum(
    "precision",
    "float32",
    ["float32", "bfloat16"],
    "What linear layers compute in. Parameters, the state of the core and all "
    "else, attention too, are float32 either way.",
)

flags.DEFINE_boolean(
    "skip_nonfinite",
    False,
    "Drop and count updates whose loss or gradient is not finite, rather than "
    "stop at the first.",
)
flags.DEFINE_boolean(
    "deterministic",
    False,
    "On a GPU, use only kernels that give the same bits each time; on a CPU "
    "they do anyway.",
)

# Several processes; on a TPU pod, under srun or mpirun, none is needed.
flags.DEFINE_string(
    "coordinator_address", None, "host:port of process 0 of several."
)
flags.DEFINE_integer(
    "num_processes", None, "How many processes there are.", lower_bound=1
)
flags.DEFINE_integer(
    "process_id", None, "Which of them this is, from 0.", lower_bound=0
)
flags.DEFINE_integer(
    "coordinator_timeout",
    300,
    "Seconds to wait for the other processes.",
    lower_bound=1,
)

# The optimiser.
flags.DEFINE_float("learning_rate", 1e-3, "The optimiser's learning rate.")
flags.DEFINE_integer(
    "warmup_steps",
    0,
    "Updates in which the learning rate rises from 0, linearly.",
    lower_bound=0,
    upper_bound=2**31 - 1,  # optax counts no further.
)
flags.DEFINE_float(
    "lr_decay_rate",
    1.0,
    "Factor of the learning rate over --lr_decay_steps updates, exponential.",
)
flags.DEFINE_integer(
    "lr_decay_steps",
    10_000,
    "See above.",
    lower_bound=1,
    upper_bound=2**31 - 1,
)
flags.DEFINE_float(
    "min_learning_rate", 0.0, "The decay stops here.", lower_bound=0.0
)
flags.DEFINE_float(
    "max_grad_norm",
    0.0,
    "Gradients are scaled down to this global norm; 0: never.",
    lower_bound=0.0,
)

for _name in (
    "learning_rate",
    "lr_decay_rate",
    "min_learning_rate",
    "max_grad_norm",
):
  flags.register_validator(_name, math.isfinite, "must be a finite number")
flags.register_validator(
    "learning_rate", lambda value: value > 0, "must be above 0"
)
flags.register_multi_flags_validator(
    ["min_learning_rate", "learning_rate"],
    lambda value: value["min_learning_rate"] <= value["learning_rate"],
    "--min_learning_rate must be at most --learning_rate",
)
flags.register_validator(
    "lr_decay_rate", lambda value: 0 < value <= 1, "must be above 0, up to 1"
)

_PROCESS_FLAGS = (
    "coordinator_address",
    "num_processes",
    "process_id",
    "coordinator_timeout",
)
# Flags that may differ when a run goes on: none changes what an update does,
# but for --skip_nonfinite one that would have ended the run.
FREE = {
    "workdir",
    "mode",
    "steps",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "parallel",
    "remat",
    "unroll",
    "skip_nonfinite",
    "deterministic",
    *_PROCESS_FLAGS,
}


def run(main: Callable[[], None]):
  """Runs a program that trains.

  Its exit status is 2 for wrong flags, 1 for a run that failed, and 128 plus
  the signal for one that a signal stopped.

  Args:
    main: the program.
  """

  def start():
    try:
      with usage_errors():
        training.initialize(
            FLAGS.coordinator_address,
            FLAGS.num_processes,
            FLAGS.process_id,
            FLAGS.coordinator_timeout,
        )
      if FLAGS.workdir is None:
        raise UsageError("--workdir must name the directory of the run")
      multihost.on_leader(_check_workdir)
      with memory_errors():
        main()
    except training.CheckpointError as error:
      raise UsageError(str(error)) from error
    except training.Interrupted as error:
      raise Failure(str(error), 128 + error.signum) from error
    except (training.NonFiniteError, training.MultihostError) as error:
      raise Failure(str(error)) from error
    except KeyboardInterrupt as error:
      message = "stopped at once; the last checkpoint is kept"
      raise Failure(message, 128 + signal.SIGINT) from error

  global _main_module
  module = main.__module__
  _main_module = sys.argv[0] if module == "__main__" else module
  program.run(start, parse=_parse)


_main_module = ""


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
  """Turns an error for want of memory into a failure of one line.

  Raises:
    Failure: if an array does not fit in a device's memory, or the host's.
  """
  try:
    yield
  except MemoryError as error:
    raise Failure(f"{error}; smaller sizes need less") from error
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    raise Failure(
        f"{str(error).splitlines()[0]} A smaller --batch_size needs less, and "
        "so does --remat"
    ) from error


def make_parallel() -> training.DataParallel:
  """Returns what --parallel asks for.

  A program that trains calls it first, so that a wrong flag is found before
  anything is compiled.

  Raises:
    UsageError: if the devices do not divide --batch_size.
  """
  with usage_errors():
    parallel = training.DataParallel(FLAGS.parallel)
    if FLAGS.mode == "train":
      parallel.local_indices(FLAGS.batch_size)
  return parallel


def set_precision():
  """Lets linear layers compute in --precision from now on."""
  hk.mixed_precision.clear_policy(hk.Linear)
  if FLAGS.precision == "bfloat16":
    policy = jmp.get_policy("params=float32,compute=bfloat16,output=float32")
    hk.mixed_precision.set_policy(hk.Linear, policy)


def positive_integers(name: str, or_zero: bool = False) -> list[int]:
  """Returns the value of a list flag.

  Args:
    name: the flag's.
    or_zero: whether 0 is allowed too.

  Raises:
    UsageError: if the value is anything else.
  """
  texts = FLAGS[name].value
  try:
    numbers = [int(text) for text in texts]
  except ValueError:
    numbers = [-1]
  if min(numbers, default=1) < (0 if or_zero else 1):
    raise UsageError(
        f"--{name}={','.join(texts)} must be positive integers"
        f"{' or 0' if or_zero else ''}, separated by commas"
    )
  return numbers


def make_optimizer(
    make: Callable[..., optax.GradientTransformation] = optax.adam,
) -> optax.GradientTransformation:
  """Returns an optimiser with the learning rate that the flags ask for.

  Args:
    make: makes it from the schedule of the learning rate.

  Returns:
    The optimiser, behind the clipping of gradients that the flags ask for.
  """
  peak, floor = FLAGS.learning_rate, FLAGS.min_learning_rate
  schedule = optax.constant_schedule(peak)
  if FLAGS.lr_decay_rate < 1:  # At 1, optax takes end_value for a ceiling.
    schedule = optax.exponential_decay(
        peak, FLAGS.lr_decay_steps, FLAGS.lr_decay_rate, end_value=floor
    )
  if FLAGS.warmup_steps:
    warmup = optax.linear_schedule(0.0, peak, FLAGS.warmup_steps)
    schedule = optax.join_schedules([warmup, schedule], [FLAGS.warmup_steps])
  clip = optax.identity()
  if FLAGS.max_grad_norm:
    clip = optax.clip_by_global_norm(FLAGS.max_grad_norm)
  return optax.chain(clip, make(schedule))


def print_parameters(params: hk.Params):
  """Prints a table of the parameters, by module."""
  rows = [
      (
          module,
          ", ".join(f"{name}: {list(x.shape)}" for name, x in bundle.items()),
          sum(x.size for x in bundle.values()),
      )
      for module, bundle in params.items()
  ]
  total = ("all", "", hk.data_structures.tree_size(params))
  print(
      tabulate.tabulate(
          [*rows, total], ["module", "parameters", "size"], intfmt=","
      )
  )


def train_or_evaluate(
    parallel: training.DataParallel,
    init: Callable[[], training.TrainState],
    loss_fn: training.LossFn,
    optimizer: optax.GradientTransformation,
    evaluate: Callable[[training.TrainState], dict[str, float]],
    *,
    batches: Callable[[int, np.ndarray], Any] | None = None,
    summarize: Callable[[int, int, dict[str, float]], dict[str, float]]
    | None = None,
    free_flags: tuple[str, ...] = (),
    bound_flags: tuple[str, ...] = (),
) -> dict[str, Any]:
  """Does what --mode asks for.

  Args:
    parallel: from `make_parallel`.
    init: makes the state before the first update.
    loss_fn: takes as its batch what `batches` returns or, without that, the
      indices of the examples, `[b]`, from which it makes the data itself.
    optimizer: turns gradients into updates.
    evaluate: figures for a state.
    batches: `(step, indices)` to the data of the examples with these indices,
      ascending, of the update after so many; a nest of arrays `[b, ...]`. It
      must be a pure function.
    summarize: see `training.train`.
    free_flags: further flags that may differ when a run goes on.
    bound_flags: flags of `FREE` that may not, in this run.

  Returns:
    The summary of the run, or the figures of the evaluation.
  """
  if FLAGS.mode == "eval":
    return _evaluate(init, evaluate)

  def init_and_show():
    state = init()
    if multihost.is_leader():
      print_parameters(state.params)
    return state

  indices = parallel.local_indices(FLAGS.batch_size)
  placed_indices = parallel.place_batch(indices)

  def placed_batch(step):
    if batches is None:
      return placed_indices
    return parallel.place_batch(batches(step, indices))

  return training.train(
      FLAGS.workdir,
      init_and_show,
      parallel.make_update(
          loss_fn, optimizer, skip_nonfinite=FLAGS.skip_nonfinite
      ),
      placed_batch,
      parallel,
      training.Schedule(
          FLAGS.steps,
          FLAGS.log_every,
          FLAGS.eval_every,
          FLAGS.checkpoint_every,
      ),
      evaluate=evaluate,
      summarize=summarize,
      config={
          name: flag.value
          for name, flag in _flags_of_run().items()
          if name not in FREE.union(free_flags).difference(bound_flags)
      },
      flagfile="".join(
          flag.serialize() + "\n"
          for name, flag in _flags_of_run().items()
          if name not in ("workdir", "mode", *_PROCESS_FLAGS)
          and flag.value is not None
      ),
      skip_nonfinite=FLAGS.skip_nonfinite,
  )


def load_params(expected: hk.Params) -> tuple[hk.Params, int]:
  """Returns the newest parameters in --workdir, and the updates behind them.

  Args:
    expected: parameters of the network of the flags, or their shapes.

  Raises:
    UsageError: if they are of another network.
    CheckpointError: if there are none, or they cannot be read.
  """
  step = training.latest_step(FLAGS.workdir)
  params = training.load_params(FLAGS.workdir, step)
  found, wanted = (
      {
          jax.tree_util.keystr(path): x.shape
          for path, x in jax.tree.leaves_with_path(tree)
      }
      for tree in (params, expected)
  )
  if found != wanted:
    raise UsageError(
        f"the network in --workdir={FLAGS.workdir} is not the one of the flags "
        "that were given"
    )
  return params, step


def _evaluate(init, evaluate) -> dict[str, float]:
  """Evaluates the newest parameters; process 0 alone reads them."""

  def find():  # Before anything is compiled.
    try:
      training.latest_step(FLAGS.workdir)
    except training.CheckpointError as error:
      raise UsageError(
          "--mode=eval needs a checkpoint, and "
          f"--workdir={FLAGS.workdir} has none"
      ) from error

  def load():
    nonlocal params
    params, step = load_params(params)
    return step

  multihost.on_leader(find)
  state = training.to_numpy(init())
  params = state.params
  step = multihost.on_leader(load)
  params = multihost.from_leader(params)
  state = state._replace(params=params, step=np.full_like(state.step, step))
  figures = {"step": step} | evaluate(state)
  if multihost.is_leader():
    print(json.dumps(figures))
  return figures


def _parse(argv: list[str]) -> list[str]:
  """Parses flags, those of the run in --workdir first if it is evaluated."""
  left = FLAGS(argv)
  saved = pathlib.Path(FLAGS.workdir or "") / "flags.txt"
  if FLAGS.workdir and FLAGS.mode == "eval" and saved.is_file():
    try:
      # Absolute, since absl has its own view of ~.
      left = FLAGS([argv[0], f"--flagfile={saved.absolute()}", *argv[1:]])
    except flags.UnrecognizedFlagError as error:  # Not in argv, parsed before.
      raise UsageError(
          f"--workdir={FLAGS.workdir} must be of a run of this program, which "
          f"has no --{error.flagname}, as that run had"
      ) from error
  if FLAGS.matmul_precision != "default":
    jax.config.update("jax_default_matmul_precision", FLAGS.matmul_precision)
  set_precision()
  if FLAGS.deterministic:  # Read when JAX first looks for devices.
    os.environ["XLA_FLAGS"] = " ".join(
        (os.environ.get("XLA_FLAGS", ""), "--xla_gpu_deterministic_ops=true")
    )
  return left


def _flags_of_run() -> dict[str, flags.Flag]:
  """Returns the program's own flags and those that it shares, by name."""
  return {
      flag.name: flag
      for flag in FLAGS.get_key_flags_for_module(_main_module)
  }


def _check_workdir():
  """Raises a UsageError unless --workdir can be used."""
  workdir = FLAGS.workdir
  if "://" in workdir:
    raise UsageError(
        f"--workdir={workdir} must be a directory of a mounted file system; "
        "an object store can be mounted, or copied to afterwards"
    )
  if FLAGS.mode == "eval":  # Which writes nothing.
    return
  path = pathlib.Path(workdir)
  try:
    path.mkdir(parents=True, exist_ok=True)
    probe = path / f".writable-{os.getpid()}"
    probe.touch()
    probe.unlink()
  except OSError as error:
    raise UsageError(
        f"--workdir={workdir} must be a directory that can be written to: "
        f"{error.strerror}"
    ) from error
