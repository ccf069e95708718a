"""Flags of a run, shared by all programs that train, and their meaning."""

from collections.abc import Iterable, Mapping, Sequence
import math
import os
import pathlib
from typing import Any

from absl import flags
import haiku as hk
import jax
import jmp

from rmc import training
from scripts.lib import program
from scripts.lib.program import UsageError, usage_errors

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
flags.DEFINE_string(
    "weights",
    None,
    "File of scripts.export_weights, to evaluate instead of --workdir.",
)
flags.DEFINE_string(
    "init_from",
    None,
    "File of scripts.export_weights whose parameters a new run begins with.",
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
flags.DEFINE_float(
    "checkpoint_minutes",
    0.0,
    "Also save a checkpoint with the first report so many minutes after the "
    "last one; 0: no.",
    lower_bound=0.0,
)
flags.register_validator(
    "checkpoint_minutes", math.isfinite, "must be a finite number"
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

_PROCESS_FLAGS = (
    "coordinator_address",
    "num_processes",
    "process_id",
    "coordinator_timeout",
)
# Flags that a run does not record: where it is, and what is done with it.
_UNRECORDED = ("workdir", "weights", "mode", *_PROCESS_FLAGS)
# Flags whose value may change when a run is resumed: none changes what an
# update does, except --skip_nonfinite one that would have ended the run.
CHANGEABLE_ON_RESUME = frozenset({
    *_UNRECORDED,
    "steps",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "checkpoint_minutes",
    "parallel",
    "remat",
    "scan_unroll",
    "skip_nonfinite",
    "deterministic",
})
# Flags of all programs that say which network there is, except those of the
# cores. The modules that define them add them here.
NETWORK_FLAGS: set[str] = set()


def parse(argv: Sequence[str]) -> list[str]:
  """Parses a command line, after the flags of the run that is evaluated.

  Args:
    argv: the program's name and its arguments.

  Returns:
    The program's name and the arguments that are no flags.

  Raises:
    UsageError: if `--workdir` or `--weights` is of a run of another program, or
      a file cannot be read.
  """
  left = program.parse(argv)
  if FLAGS.weights and FLAGS.mode != "eval":
    raise UsageError(
        f"--weights={FLAGS.weights} goes with --mode=eval; a training begins "
        "with --init_from"
    )
  if FLAGS.weights and FLAGS.workdir:
    raise UsageError(
        f"--weights={FLAGS.weights} stands in place of --workdir, so that "
        f"--workdir={FLAGS.workdir} must not be given too"
    )
  if FLAGS.mode == "eval" and (saved := saved_flags()):
    given = origin()  # The flags of the run may name another.
    try:
      left = program.parse([argv[0], *saved, *argv[1:]])
    except flags.UnrecognizedFlagError as error:  # Not in argv, parsed before.
      raise UsageError(
          f"{given} must be of a run of this program, which has no "
          f"--{error.flagname}, as that run had"
      ) from error
  if FLAGS.matmul_precision != "default":
    jax.config.update("jax_default_matmul_precision", FLAGS.matmul_precision)
  set_precision()
  if FLAGS.deterministic:  # Read when JAX first looks for devices.
    os.environ["XLA_FLAGS"] = " ".join(
        (os.environ.get("XLA_FLAGS", ""), "--xla_gpu_deterministic_ops=true")
    )
  return left


def origin() -> str:
  """Returns the flag that names what was trained, with its value."""
  return FLAGS["weights" if FLAGS.weights else "workdir"].serialize()


def saved_flags() -> list[str]:
  """Returns the flags of the run in --workdir or --weights; none if it is none.

  Raises:
    UsageError: if --weights cannot be read.
  """
  if FLAGS.weights:
    return read_weights(FLAGS.weights)[1].get("flags", "").splitlines()
  path = pathlib.Path(FLAGS.workdir or "") / "flags.txt"
  if not FLAGS.workdir or not path.is_file():
    return []
  return program.expand_flagfiles([f"--flagfile={path}"])


def read_weights(path: str) -> tuple[hk.Params, dict[str, str]]:
  """Returns `training.load_weights`, or raises a UsageError."""
  try:
    return training.load_weights(path)
  except training.WeightsError as error:
    raise UsageError(str(error)) from error


def set_precision():
  """Lets linear layers compute in --precision from now on."""
  hk.mixed_precision.clear_policy(hk.Linear)
  if FLAGS.precision == "bfloat16":
    policy = jmp.get_policy("params=float32,compute=bfloat16,output=float32")
    hk.mixed_precision.set_policy(hk.Linear, policy)


def make_parallel(
    devices: Sequence[jax.Device] | None = None,
) -> training.DataParallel:
  """Returns what --parallel asks for.

  A program that trains calls it first, so that a wrong flag is found before
  anything is compiled.

  Args:
    devices: the devices of all processes; None for all that there are.

  Raises:
    UsageError: if the number of devices does not divide --batch_size.
  """
  with usage_errors():
    parallel = training.DataParallel(FLAGS.parallel, devices)
    if FLAGS.mode == "train":
      parallel.local_indices(FLAGS.batch_size)
  return parallel


def check_workdir():
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


def flags_of_run(
    module: str, extra: Iterable[str] = ()
) -> dict[str, flags.Flag]:
  """Returns the flags that a run of a program records, by name.

  Args:
    module: the program's module; its own flags and those that it adopts count.
    extra: names of further flags.
  """
  own = FLAGS.get_key_flags_for_module(module)
  return {flag.name: flag for flag in own} | {
      name: FLAGS[name] for name in extra
  }


def flagfile(of_run: Mapping[str, flags.Flag]) -> str:
  """Returns what `flags.txt` is to contain, for the flags of a run."""
  return "".join(
      flag.serialize() + "\n"
      for name, flag in of_run.items()
      if name not in _UNRECORDED
      and flag.value is not None
  )


def identity(
    of_run: Mapping[str, flags.Flag],
    free: Iterable[str],
    bound: Iterable[str],
    recorded: Mapping[str, Any] | None,
) -> dict[str, Any]:
  """Returns what must be the same for a run to be resumed.

  A flag that did not exist yet when a checkpoint was written counts there as
  its default. So it is left out here as long as it has that value.

  Args:
    of_run: the flags of the run, by name.
    free: names of flags that may change, beside `CHANGEABLE_ON_RESUME`.
    bound: names of flags in `CHANGEABLE_ON_RESUME` that may not change.
    recorded: what the run's newest checkpoint records; None without one.

  Returns:
    The values of flags, by name.
  """
  changeable = CHANGEABLE_ON_RESUME.union(free).difference(bound)
  return {
      name: flag.value
      for name, flag in of_run.items()
      if name not in changeable
      and (
          recorded is None or name in recorded or flag.value != flag.default
      )
  }
