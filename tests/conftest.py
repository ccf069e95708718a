"""Strict JAX for every test: no silent promotion, eight CPU devices."""

import contextlib
import os
import types

import jax
from jax.experimental.compilation_cache import compilation_cache
import pytest

from rmc import training
from scripts.lib import run_flags
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
def train_here(monkeypatch, compiled_once):
  """Returns a function that runs a training program in this process.

  Its arguments are the program's module, the directory of the run, flags, and
  how many devices there are; it returns the records of metrics.jsonl.
  """
  data_parallel = training.DataParallel

  def train_here(program, workdir, *arguments, num_devices=1):
    monkeypatch.setattr(
        training,
        "DataParallel",
        lambda mode: data_parallel(mode, jax.devices()[:num_devices]),
    )
    monkeypatch.setattr(run_flags, "_main_module", program.__name__)
    # Optax divides by a mixture of types.
    promotion = jax.numpy_dtype_promotion("standard")
    with promotion, parsed(f"--workdir={workdir}", *arguments):
      program.main()
    return records_of(workdir)

  return train_here


@pytest.fixture
def about_to_train(monkeypatch, tmp_path, compiled_once):
  """Returns a context in which a training program has come to where it trains.

  Its arguments are the program's module and flags; it yields, as attributes,
  what `run_flags.train_or_evaluate` would have been given.
  """

  class Reached(Exception):
    pass

  @contextlib.contextmanager
  def about_to_train(program, *arguments):
    given = types.SimpleNamespace()

    def train(parallel, init, loss_fn, optimizer, evaluate, **options):
      del parallel, optimizer
      vars(given).update(init=init, loss_fn=loss_fn, evaluate=evaluate)
      vars(given).update(options)
      raise Reached

    monkeypatch.setattr(run_flags, "train_or_evaluate", train)
    promotion = jax.numpy_dtype_promotion("standard")
    with promotion, parsed(f"--workdir={tmp_path}", *arguments):
      with pytest.raises(Reached):
        program.main()
      yield given

  return about_to_train
