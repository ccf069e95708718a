"""Strict JAX for every test: no silent promotion, eight CPU devices."""

import atexit
import contextlib
import os
import shutil
import tempfile

# It defines flags, which would be gone after a test that imported it first:
# what restores flags forgets those that are new.
import array_record.python.array_record_data_source  # noqa: F401
import jax
import pytest

from scripts.lib import experiment, run_flags
from tests.helpers.programs import parsed
from tests.helpers.tiny_training import records_of

# Tests run most programs once or twice, so that time goes to compiling them. It
# takes a quarter as long without LLVM's optimisations and with XLA's older code
# for a CPU, and what one process has compiled the others find. Programs that
# tests start heed this too. `XLA_FLAGS= make test` compiles as users do.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false",
)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  _compiled = tempfile.mkdtemp(prefix="compiled-")
  atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
  for _name, _value in {
      "jax_compilation_cache_dir": _compiled,
      "jax_persistent_cache_min_compile_time_secs": 0,
      "jax_persistent_cache_min_entry_size_bytes": -1,
  }.items():
    os.environ[_name.upper()] = str(_value)
    jax.config.update(_name, _value)

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture
def train_here():
  """Returns a function that trains in this process.

  Its arguments are the program's module, the directory of the run, flags, and
  how many devices there are; it returns the records of metrics.jsonl.
  """
  def train_here(program, workdir, *arguments, num_devices=1):
    # Optax divides by a mixture of types.
    promotion = jax.numpy_dtype_promotion("standard")
    with promotion, parsed(f"--workdir={workdir}", *arguments):
      experiment.train_or_evaluate(
          program.make_experiment, jax.devices()[:num_devices]
      )
    return records_of(workdir)

  return train_here


@pytest.fixture
def experiment_of(tmp_path):
  """Returns a context with the experiment of a program, for one device.

  Its arguments are the program's module and flags, which stay parsed in it.
  """
  @contextlib.contextmanager
  def experiment_of(program, *arguments):
    promotion = jax.numpy_dtype_promotion("standard")
    with promotion, parsed(f"--workdir={tmp_path}", *arguments):
      parallel = run_flags.make_parallel(jax.devices()[:1])
      made = program.make_experiment(parallel)
      yield made
      if made.close is not None:
        made.close()

  return experiment_of
