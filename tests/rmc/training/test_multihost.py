"""Several processes as one run, on the loopback address."""

import re
import signal
import socket

import jax
import pytest

from rmc import training
from rmc.training import multihost
from tests.helpers.golden_vectors import assert_near, without_noise
from tests.helpers.tiny_training import records_of, steps_of, summary_of
from tests.scripts.test_train_nth_farthest import (
  TINY,
  finish,
  made_once,
  start,
  wait_until,
)

# A rate at which rounding does not grow much.
SMALL = (*TINY, "--learning_rate=1e-3")
CORE = {"num_heads": 2, "head_size": 4}


@pytest.mark.parametrize(
    "environment,expected",
    [
        ({}, False),
        ({"HOME": "here", "TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "t1k-0,t1k-1", "TPU_WORKER_ID": "1"}, True),
        ({"TPU_PROCESS_ADDRESSES": "localhost:8476,localhost:8477"}, True),
        # A TPU VM, where JAX asks for the metadata; one without them.
        ({"TPU_ML_PLATFORM": "JAX"}, True),
        ({"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}, False),
        ({"TPU_ML_PLATFORM": "JAX", "TPU_WORKER_HOSTNAMES": "a"}, False),
        # An allocation of several tasks, outside srun.
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}, False),
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3"}, True),
        ({"SLURM_STEP_NUM_TASKS": ""}, False),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        (
            {
                "KUBERNETES_SERVICE_HOST": "10.0.0.1",
                "JOB_COMPLETION_INDEX": "0",
            },
            True,
        ),
    ],
)
def test_is_multihost(environment, expected):
  assert multihost.is_multihost(environment) == expected


def test_alone_nothing_is_initialised(monkeypatch):
  def fail(*args, **kwargs):
    raise AssertionError("initialised")

  monkeypatch.setattr(jax.distributed, "initialize", fail)
  for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
    monkeypatch.delenv(name, raising=False)
  training.initialize()
  assert multihost.is_leader()
  assert multihost.on_leader(lambda: {"a": 1}) == {"a": 1}


def test_in_a_job_jax_finds_the_others(monkeypatch):
  calls = []
  monkeypatch.setattr(
      jax.distributed,
      "initialize",
      lambda *args, **kwargs: calls.append((args, kwargs)),
  )
  monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
  training.initialize(timeout_seconds=7)
  training.initialize("host:1", 3, 2)
  assert calls == [
      ((None, None, None), {"initialization_timeout": 7 + 3600}),
      (("host:1", 3, 2), {"initialization_timeout": 300 + 3600}),
  ]


@pytest.mark.parametrize("error", [OSError, RuntimeError, KeyError])
def test_any_error_of_joining_is_told(monkeypatch, error):
  def fail(*args, **kwargs):
    raise error("no metadata")

  monkeypatch.setattr(jax.distributed, "initialize", fail)
  monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
  with pytest.raises(training.MultihostError, match="no metadata"):
    training.initialize(timeout_seconds=7)


@pytest.mark.parametrize(
    "arguments,message",
    [
        (("host:1", None, None), "together"),
        ((None, 2, 0), "together"),
        (("host:1", 2, 2), "from 0 to 1"),
        (("host:1", 2, -1), "from 0 to 1"),
        (("host", 2, 1), "host:port"),
        (("host:", 2, 1), "host:port"),
    ],
)
def test_arguments_that_do_not_go_together(arguments, message):
  with pytest.raises(ValueError, match=message):
    training.initialize(*arguments)


def start_pair(workdirs, *arguments):
  """Starts two processes of two devices each."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  return [
      start(
          *SMALL,
          f"--workdir={workdir}",
          f"--coordinator_address=127.0.0.1:{port}",
          "--num_processes=2",
          f"--process_id={i}",
          "--coordinator_timeout=120",
          *arguments,
          num_devices=2,
      )
      for i, workdir in enumerate(workdirs)
  ]


def finish_pair(pair, statuses=(0, 0)):
  """Waits for both; returns what they printed."""
  try:
    return [
        finish(process, status, timeout=240)
        for process, status in zip(pair, statuses, strict=True)
    ]
  finally:
    for process in pair:
      process.kill()


@pytest.fixture(scope="session")
def alone(tmp_path_factory, worker_id):
  """The directory of the same run in one process on one device."""

  def make(workdir):
    finish(start(*SMALL, "--steps=20", f"--workdir={workdir}"))

  return made_once(tmp_path_factory, worker_id, "alone", make)


def assert_agree(workdir, alone):
  """Asserts that the first 20 steps are those of one process."""
  records = records_of(workdir)[:2]
  for record, expected in zip(records, records_of(alone), strict=True):
    assert record == pytest.approx(expected, rel=1e-5)
  assert_near_params(training.load_params(workdir, 20), alone)


def assert_near_params(params, alone):
  """Asserts that these are the parameters of one process after 20 steps."""
  expected = training.load_params(alone, 20)
  assert jax.tree.structure(params) == jax.tree.structure(expected)
  for module, bundle in expected.items():
    for name, value in bundle.items():
      other = params[module][name]
      if module.endswith("qkv_norm_0") and name == "offset":
        value, other = (
            without_noise("layer_norm/beta", x, CORE) for x in (value, other)
        )
      assert_near(other, value, 1e-5, f"{module}/{name}")


def test_two_processes_agree_with_one_under_jit(tmp_path, alone):
  """Process 1 has a directory of its own, into which it writes nothing."""
  workdirs = tmp_path / "run", tmp_path / "elsewhere"
  outputs = finish_pair(
      start_pair(workdirs, "--steps=20", "--parallel=jit")
  )
  assert_agree(workdirs[0], alone)
  assert summary_of(workdirs[0])["devices"] == 4
  assert not workdirs[1].exists()
  assert "step" not in outputs[1][0]
  assert (workdirs[0] / "learning_curve.png").exists()
  # Flags that name this process are not kept.
  assert "process" not in (workdirs[0] / "flags.txt").read_text()

  # A failure of process 0 ends both.
  outputs = finish_pair(
      start_pair(workdirs, "--steps=30", "--num_heads=1"), (2, 1)
  )
  for _, err in outputs:
    (line,) = ours(err)
    assert "num_heads was 2 and is 1" in line
  assert "process 0 failed" in outputs[1][1]


def test_a_signal_to_one_stops_both_and_the_pair_resumes(tmp_path, alone):
  workdirs = tmp_path / "run", tmp_path / "elsewhere"
  rare = "--checkpoint_every=20"  # So that the first is there for a while.
  pair = start_pair(workdirs, "--steps=100000", "--parallel=pmap", rare)
  wait_until(
      pair[0],
      (workdirs[0] / "checkpoints" / "20").exists,
      timeout=240,
  )
  kept = training.load_params(workdirs[0], 20)
  pair[1].send_signal(signal.SIGTERM)
  outputs = finish_pair(pair, (143, 143))
  stopped_at = {
      int(re.search(r"stopped after step (\d+) of", err)[1])
      for _, err in outputs
  }
  assert len(stopped_at) == 1
  (step,) = stopped_at
  assert steps_of(workdirs[0])[-1] == step >= 20
  assert_near_params(kept, alone)
  for record, expected in zip(
      records_of(workdirs[0]), records_of(alone), strict=False
  ):
    assert record == pytest.approx(expected, rel=1e-5)
  assert not workdirs[1].exists()

  finish_pair(start_pair(workdirs, f"--steps={step + 15}"))
  assert summary_of(workdirs[0])["step"] == step + 15
  steps = [r["step"] for r in records_of(workdirs[0])]
  assert steps == sorted(set(steps))
  assert set(range(10, step + 15, 10)) <= set(steps)
  assert not workdirs[1].exists()


@pytest.mark.parametrize("process_id", [0, 1])
def test_a_process_that_never_comes(tmp_path, process_id):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  process = start(
      *TINY,
      f"--workdir={tmp_path / 'run'}",
      f"--coordinator_address={address}",
      "--num_processes=2",
      f"--process_id={process_id}",
      "--coordinator_timeout=3",
  )
  out, err = finish(process, status=1, timeout=120)
  assert ours(err) == [
      "train_nth_farthest: the processes of this run did not come together "
      f"within 3 seconds (process {process_id} of 2, coordinator {address})"
  ]
  assert "Traceback" not in err and "failure stack" not in err and out == ""


@pytest.mark.slow
def test_a_directory_that_process_0_cannot_write(tmp_path):
  outputs = finish_pair(
      start_pair(("/dev/null/run", tmp_path / "elsewhere")), (2, 1)
  )
  for _, err in outputs:
    (line,) = ours(err)
    assert "must be a directory that can be written to" in line


def ours(err):
  """Returns the program's own lines; JAX's runtime has some to say too."""
  return [x for x in err.splitlines() if x.startswith("train_nth_farthest: ")]
