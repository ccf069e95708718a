"""Strict JAX for every test: no silent promotion, eight CPU devices."""

import contextlib
import os

import jax
from jax.experimental.compilation_cache import compilation_cache
import pytest

from scripts.lib import experiment, run_flags
from tests.helpers.programs import parsed
from tests.helpers.tiny_training import records_of

# Tests run most programs once or twice, so that time goes to compiling them:
# without LLVM's optimisations it takes half as long. `XLA_FLAGS= make test` has
# them, as users do. The programs that tests start heed this too.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
  """Keeps what is compiled, for modules whose runs have the same program."""
  options = {
      "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
      "jax_persistent_cache_min_compile_time_secs": 0.0,
      "jax_persistent_cache_min_entry_size_bytes": -1,
  }
  before = {name: getattr(jax.config, name) for name in options}
  for name, value in options.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


@pytest.fixture
def train_here(compiled_once):
  """Returns a function that trains in this process.

  Its arguments are the program's module, the directory of the run, flags, and
  how many devices there are; it returns the records of metrics.jsonl.
  """
  del compiled_once

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
def experiment_of(tmp_path, compiled_once):
  """Returns a context with the experiment of a program, for one device.

  Its arguments are the program's module and flags, which stay parsed in it.
  """
  del compiled_once

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
