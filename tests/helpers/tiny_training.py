"""A problem so small that a whole training run takes a second.

Glossary of shapes:
  - B: examples of an update.
"""

import contextlib
import functools
import json
import pathlib
import signal
import struct

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tensorboardX.proto import event_pb2

from rmc import training

BATCH_SIZE = 8
# Facts of a summary, or of a report, that no two runs share.
TIMES = ("wall_seconds", "steps_per_second", "compile_seconds")


def loss_fn(params, batch, carry, key):
  """Linear regression on targets that depend on the last prediction.

  Args:
    params: `{"linear": {"w": [3], "b": []}}`.
    batch: `indices`, int32 `[B]`, and `scale`, `[B]`, which a test may spoil.
    carry: the last predictions, `[B]`.
    key: of the update.
  """
  keys = training.example_keys(key, batch["indices"])
  x = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)  # [B, 3]
  linear = params["linear"]
  predictions = x @ linear["w"] + linear["b"][None]
  targets = jnp.sum(x, axis=1) + jnp.float32(0.1) * carry
  errors = (predictions - targets) * batch["scale"]
  metrics = {"largest": jnp.mean(jnp.abs(errors))}
  return jnp.mean(errors**2), (metrics, jax.lax.stop_gradient(predictions))


def optimizer():
  """Momentum, so that there is a state of the optimiser to get wrong."""
  return optax.sgd(0.01, momentum=0.9)


def init():
  """Returns the state before the first update."""
  linear = {"w": jnp.zeros([3]), "b": jnp.zeros([])}
  return training.init_state(
      {"linear": linear},
      optimizer(),
      jax.random.key(1),
      carry=jnp.zeros([BATCH_SIZE]),
  )


def evaluate(state):
  """Returns figures that depend on the parameters and on the step."""
  w = np.asarray(state.params["linear"]["w"])
  return {"eval_loss": float(np.sum((w - 1) ** 2)), "eval_at": int(state.step)}


@functools.cache
def parallel(num_devices=1, mode="auto"):
  """Returns a DataParallel over the first devices."""
  return training.DataParallel(mode, jax.devices()[:num_devices])


@functools.cache
def update(num_devices=1, mode="auto", skip_nonfinite=False):
  """Returns the compiled update, one for all tests of a process."""
  return parallel(num_devices, mode).make_update(
      loss_fn, optimizer(), skip_nonfinite=skip_nonfinite
  )


def train(
    workdir,
    num_steps,
    *,
    num_devices=1,
    mode="auto",
    before=lambda step: None,
    spoilt=(),
    skip_nonfinite=False,
    log_every=10,
    eval_every=20,
    checkpoint_every=15,
    checkpoint_minutes=0.0,
    evaluate=evaluate,
    **options,
):
  """Trains the tiny problem.

  Args:
    workdir: the run's directory.
    num_steps: updates in all.
    num_devices: how many devices to use.
    mode: how to use them.
    before: called with the number of updates done before each.
    spoilt: updates, from 1, in which one example is not finite.
    skip_nonfinite: see `training.train`.
    log_every: see `training.Schedule`.
    eval_every: see `training.Schedule`.
    checkpoint_every: see `training.Schedule`.
    checkpoint_minutes: see `training.Schedule`.
    evaluate: see `training.train`.
    **options: further arguments of `training.train`.

  Returns:
    The summary.
  """
  placing = parallel(num_devices, mode)

  def batches(step):
    before(step)
    indices = placing.local_indices(BATCH_SIZE)
    scale = np.ones([BATCH_SIZE], np.float32)
    if step + 1 in spoilt:
      scale[-1] = np.nan
    return placing.place_batch({"indices": indices, "scale": scale})

  return training.train(
      workdir,
      init,
      update(num_devices, mode, skip_nonfinite),
      batches,
      placing,
      training.Schedule(
          num_steps, log_every, eval_every, checkpoint_every, checkpoint_minutes
      ),
      evaluate=evaluate,
      skip_nonfinite=skip_nonfinite,
      **options,
  )


def state_of(workdir):
  """Returns the whole state of a run's newest checkpoint, and its notes."""
  with contextlib.closing(training.Checkpointer(workdir)) as checkpointer:
    return checkpointer.restore(training.to_numpy(init()))


def steps_of(workdir):
  """Returns the steps of a run's checkpoints; anything else is an error."""
  directory = pathlib.Path(workdir) / "checkpoints"
  return sorted(int(path.name) for path in directory.iterdir())


def records_of(workdir):
  """Returns the lines of `metrics.jsonl`, without times; all must be whole."""
  text = (pathlib.Path(workdir) / "metrics.jsonl").read_text()
  assert not text or text.endswith("\n")
  return [without_times(json.loads(line)) for line in text.splitlines()]


def summary_of(workdir):
  """Returns `summary.json`, without times."""
  text = (pathlib.Path(workdir) / "summary.json").read_text()
  return without_times(json.loads(text))


def without_times(figures):
  """Leaves out what no two runs share."""
  return {name: v for name, v in figures.items() if name not in TIMES}


def events_of(workdir):
  """Returns what TensorBoard is told, `[(step, name, value)]`, without times.

  A record is its length, a checksum, the event and a checksum; one that is cut
  off is an error.
  """
  (path,) = pathlib.Path(workdir).glob("events.out.tfevents.*")
  data = path.read_bytes()
  scalars = []
  while data:
    (length,) = struct.unpack("<Q", data[:8])
    event = event_pb2.Event.FromString(data[12 : 12 + length])
    assert len(data) >= 16 + length
    data = data[16 + length :]
    for value in event.summary.value:
      if value.tag not in TIMES:
        scalars.append((event.step, value.tag, value.simple_value))
  return scalars


def events_expected(records):
  """Returns what `events_of` should be for these records."""
  return [
      (record["step"], name, float(np.float32(value)))
      for record in records
      for name, value in record.items()
      if name not in ("step", "final")
  ]


def assert_same_bits(actual, expected):
  """Asserts that two nests of arrays are equal to the bit."""
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for (path, x), y in zip(
      jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True
  ):
    x, y = np.asarray(x), np.asarray(y)
    assert (x.dtype, x.shape) == (y.dtype, y.shape), path
    assert x.tobytes() == y.tobytes(), f"{jax.tree_util.keystr(path)} differs"


def assert_same_run(actual, expected):
  """Asserts that two runs left the same, but for times."""
  assert records_of(actual) == records_of(expected)
  assert summary_of(actual) == summary_of(expected)
  assert events_of(actual) == events_of(expected)
  state, meta = state_of(actual)
  expected_state, expected_meta = state_of(expected)
  assert_same_bits(state, expected_state)
  assert meta["means"] == expected_meta["means"]


@contextlib.contextmanager
def deadline(seconds):
  """Makes a hang in the main thread an error."""

  def fail(signum, frame):
    raise TimeoutError(f"not done after {seconds} seconds")

  old = signal.signal(signal.SIGALRM, fail)
  signal.alarm(seconds)
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)
