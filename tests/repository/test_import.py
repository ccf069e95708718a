"""What `import rmc` loads: JAX, Haiku and NumPy, and nothing of a run."""

import json
import pathlib
import subprocess
import sys

import rmc

ROOT = pathlib.Path(__file__).parents[2]

# Haiku itself loads absl (its logging and flags), jmp and more, so what it
# has loaded is noted first; then what our package adds to that.
PROGRAM = """
import json, sys
import haiku, jax, numpy
from absl import flags
before, flags_before = set(sys.modules), set(flags.FLAGS)
import rmc
print(json.dumps({
    "loaded": sorted(sys.modules),
    "added": sorted(set(sys.modules) - before),
    "flags": sorted(set(flags.FLAGS) - flags_before),
    "backends": len(jax._src.xla_bridge._backends),
}))
"""
UNWANTED = {
    "array_record",
    "chex",
    "dm_env",
    "matplotlib",
    "optax",
    "orbax",
    "safetensors",
    "scripts",
    "tasks",
    "tensorboardX",
    "tensorflow",
    "tensorflow_datasets",
    "tqdm",
}


def test_import_in_a_fresh_interpreter():
  process = subprocess.run(
      [sys.executable, "-c", PROGRAM],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=True,
  )
  report = json.loads(process.stdout)
  loaded = {name.split(".")[0] for name in report["loaded"]}
  assert {"rmc", "haiku", "jax", "numpy"} <= loaded
  assert not loaded & UNWANTED
  assert not {m for m in report["loaded"] if m.startswith("rmc.training")}
  added = {name.split(".")[0] for name in report["added"]}
  assert added - set(sys.stdlib_module_names) == {"rmc"}
  assert report["flags"] == []
  assert report["backends"] == 0


def test_public_names():
  assert all(hasattr(rmc, name) for name in rmc.__all__)
  assert rmc.__all__ == sorted(rmc.__all__)
  assert {"RelationalMemory", "unroll", "sonnet"} <= set(rmc.__all__)
