"""What a training program defines, and the runner that all of them share."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import json
import pathlib
import signal
from typing import Any, NamedTuple

from absl import flags
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tabulate

from rmc import training
from rmc.training import multihost
from rmc.training.metrics import write_text
from scripts.lib import cores, program, run_flags
from scripts.lib.program import Failure, UsageError, usage_errors

FLAGS = flags.FLAGS


class Experiment(NamedTuple):
  """What is trained, and how.

  Attributes:
    network: the transformed network: `init` and `apply`. Plots, generation and
      inspection use it.
    init: makes the state before the first update.
    loss_fn: takes as its batch what `batches` returns or, without that, the
      indices of the examples, `[b]`, from which it makes the data itself.
    optimizer: turns gradients into updates.
    evaluate: the metrics of a state.
    batches: `(step, indices)` to the data of the examples with these indices,
      ascending, of the update after so many; a nest of arrays `[b, ...]`. It
      must be a pure function.
    summarize: see `training.train`.
    free_flags: flags that may change when a run is resumed, beside
      `run_flags.CHANGEABLE_ON_RESUME`.
    bound_flags: flags of `run_flags.CHANGEABLE_ON_RESUME` that may not change
      in this experiment.
    close: ends what works in the background.
  """

  network: Any
  init: Callable[[], training.TrainState]
  loss_fn: training.LossFn
  optimizer: optax.GradientTransformation
  evaluate: Callable[[training.TrainState], dict[str, float]]
  batches: Callable[[int, np.ndarray], Any] | None = None
  summarize: Callable[..., dict[str, float]] | None = None
  free_flags: tuple[str, ...] = ()
  bound_flags: tuple[str, ...] = ()
  close: Callable[[], None] | None = None


MakeExperiment = Callable[[training.DataParallel], Experiment]


def run_program(main: Callable[[], None]):
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
      if FLAGS.weights:
        _check_contradictions()
      elif FLAGS.workdir is None:
        raise UsageError("--workdir must name the directory of the run")
      else:
        multihost.on_leader(run_flags.check_workdir)
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

  program.run(start, parse=run_flags.parse)


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


def train_or_evaluate(
    make_experiment: MakeExperiment,
    devices: Sequence[jax.Device] | None = None,
) -> tuple[Experiment, dict[str, Any]]:
  """Does what --mode asks for.

  Args:
    make_experiment: the program's. The flags of the program that defines it
      are those of the run.
    devices: the devices of all processes; None for all that there are.

  Returns:
    The experiment; and the summary of the run, or the metrics of the
    evaluation.

  Raises:
    UsageError: if a flag is wrong.
    CheckpointError: as `training.train`, and so are the other errors.
  """
  parallel = run_flags.make_parallel(devices)
  experiment = make_experiment(parallel)
  with contextlib.ExitStack() as stack:
    if experiment.close is not None:
      stack.callback(experiment.close)
    if FLAGS.mode == "eval":
      return experiment, _evaluate(experiment)
    module = make_experiment.__module__
    return experiment, _train(experiment, parallel, module)


def trained() -> bool:
  """Returns whether this process is the one that reports on a training."""
  return FLAGS.mode == "train" and multihost.is_leader()


def make_batches(
    experiment: Experiment, parallel: training.DataParallel
) -> Callable[[int], Any]:
  """Returns what makes the placed batch of the update after so many."""
  indices = parallel.local_indices(FLAGS.batch_size)
  placed_indices = parallel.place_batch(indices)

  def placed_batch(step):
    if experiment.batches is None:
      return placed_indices
    return parallel.place_batch(experiment.batches(step, indices))

  return placed_batch


def load_params(expected: hk.Params) -> tuple[hk.Params, int]:
  """Returns the parameters in --weights, or the newest ones in --workdir.

  Args:
    expected: parameters of the network of the flags, or their shapes.

  Returns:
    Parameters as NumPy arrays, and the updates behind them.

  Raises:
    UsageError: if they are of another network, or --weights cannot be read.
    CheckpointError: if there are none in --workdir, or they cannot be read.
  """
  if FLAGS.weights:
    params, metadata = run_flags.read_weights(FLAGS.weights)
    step = int(metadata.get("step", 0))
  else:
    step = training.latest_step(FLAGS.workdir)
    params = training.load_params(FLAGS.workdir, step)
  return _fitted(params, expected, run_flags.origin()), step


def initial_params(init: Callable[[], hk.Params]) -> hk.Params:
  """Returns the parameters that a run begins with.

  Args:
    init: draws them. With --init_from its result says only what is expected,
      except in a run that goes on, whose file is not read again.

  Raises:
    UsageError: if the parameters of --init_from do not fit or cannot be read.
  """
  if not FLAGS.init_from or FLAGS.mode == "eval" or _has_checkpoint():
    return init()
  expected = jax.eval_shape(init)

  def load():
    nonlocal params
    found, _ = run_flags.read_weights(FLAGS.init_from)
    params = _fitted(found, expected, f"--init_from={FLAGS.init_from}")

  params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), expected)
  multihost.on_leader(load)
  return jax.tree.map(jnp.asarray, multihost.from_leader(params))


def _has_checkpoint() -> bool:
  def find():
    return training.recorded_config(FLAGS.workdir) is not None

  return multihost.on_leader(find)


def _fitted(params: hk.Params, expected: hk.Params, source: str) -> hk.Params:
  """Returns parameters in the types expected, or lists what does not fit."""
  found, wanted = (
      {
          "/".join(key.key for key in path): list(x.shape)
          for path, x in jax.tree.leaves_with_path(tree)
      }
      for tree in (params, expected)
  )
  different = [
      f"{name} is {found.get(name, 'missing')} and should be "
      f"{wanted.get(name, 'missing')}"
      for name in sorted(found.keys() | wanted.keys())
      if found.get(name) != wanted.get(name)
  ]
  if different:
    raise UsageError(
        f"the network in {source} is not the one of the flags that were given: "
        f"{'; '.join(different)}"
    )
  return jax.tree.map(lambda x, like: x.astype(like.dtype), params, expected)


def _check_contradictions():
  """Raises a UsageError if a flag asks for another network than --weights."""
  names = {*cores.all_flags(), *run_flags.NETWORK_FLAGS}
  for saved in run_flags.saved_flags():
    name = saved.removeprefix("--").partition("=")[0]
    name = name if name in FLAGS else name.removeprefix("no")
    given = FLAGS[name].serialize()
    if FLAGS[name].name in names and given != saved:
      raise UsageError(
          f"{given} contradicts {run_flags.origin()}, whose network has {saved}"
      )


def _train(
    experiment: Experiment, parallel: training.DataParallel, module: str
) -> dict[str, Any]:
  """Trains, or resumes; returns the summary."""
  of_run = run_flags.flags_of_run(module, cores.all_flags())

  def init_and_show():
    state = experiment.init()
    if multihost.is_leader():
      _print_parameters(state.params)
    return state

  summary = training.train(
      FLAGS.workdir,
      init_and_show,
      parallel.make_update(
          experiment.loss_fn,
          experiment.optimizer,
          skip_nonfinite=FLAGS.skip_nonfinite,
      ),
      make_batches(experiment, parallel),
      parallel,
      training.Schedule(
          FLAGS.steps,
          FLAGS.log_every,
          FLAGS.eval_every,
          FLAGS.checkpoint_every,
          FLAGS.checkpoint_minutes,
      ),
      evaluate=experiment.evaluate,
      summarize=experiment.summarize,
      config=run_flags.identity(
          of_run,
          experiment.free_flags,
          experiment.bound_flags,
          training.recorded_config(FLAGS.workdir),
      ),
      flagfile=run_flags.flagfile(of_run),
      skip_nonfinite=FLAGS.skip_nonfinite,
  )
  if FLAGS.init_from:
    summary["init_from"] = FLAGS.init_from
    multihost.on_leader(lambda: write_summary(summary))
  return summary


def write_summary(summary: Mapping[str, Any]):
  """Replaces the summary of the run in --workdir."""
  path = pathlib.Path(FLAGS.workdir) / "summary.json"
  write_text(path, json.dumps(summary, indent=2) + "\n")


def _print_parameters(params: hk.Params):
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


def _evaluate(experiment: Experiment) -> dict[str, float]:
  """Evaluates the newest parameters; process 0 alone reads them."""

  def find():  # Before anything is compiled.
    if FLAGS.weights:
      return
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
  state = training.to_numpy(experiment.init())
  params = state.params
  step = multihost.on_leader(load)
  params = multihost.from_leader(params)
  state = state._replace(params=params, step=np.full_like(state.step, step))
  metrics = {"step": step} | experiment.evaluate(state)
  if multihost.is_leader():
    print(json.dumps(metrics))
  return metrics
