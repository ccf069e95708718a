"""Exports what a run has learnt to one small file, without its optimiser.

  python -m scripts.export_weights --workdir=runs/copy \
      --output=weights/copy.safetensors

The file contains the parameters of the newest checkpoint, the flags of the run
except its paths, its step and last metrics, the commit of this repository, and
the vocabulary of a language model. `--weights=FILE` stands in place of
`--workdir` wherever something is evaluated or shown, and `--init_from=FILE`
begins a new run with these parameters. `rmc.training.load_weights` reads it in
Python.
"""

import json
import pathlib
import subprocess

from absl import flags
import jax
import numpy as np

from rmc import training
from scripts.lib import program, run_flags

FLAGS = flags.FLAGS
flags.declare_key_flag("workdir")

flags.DEFINE_string("output", None, "The file to write.")
flags.DEFINE_enum(
    "dtype",
    "float32",
    ["float32", "float16"],
    "float32: as they are. float16: half the size; results then differ a bit.",
)

# Flags that name places on the machine of the run.
_PLACES = ("manual_dir", "data_dir", "attention", "init_from")


def main():
  """Exports the newest checkpoint."""
  if FLAGS.workdir is None:
    raise program.UsageError("--workdir must name the directory of the run")
  workdir = pathlib.Path(FLAGS.workdir)
  output = pathlib.Path(FLAGS.output or "")
  if output.suffix != ".safetensors" or not output.parent.is_dir():
    raise program.UsageError(
        f"--output={FLAGS.output} must name a .safetensors file in a folder "
        "that exists"
    )
  try:
    step = training.latest_step(workdir)
    params = training.load_params(workdir, step)
  except training.CheckpointError as error:
    raise program.UsageError(f"--workdir={workdir}: {error}") from error
  training.save_weights(
      output,
      jax.tree.map(lambda x: x.astype(_dtype_of(x)), params),
      _metadata(workdir, step),
  )
  size = output.stat().st_size
  print(f"Saved the parameters of step {step}, {size:,} bytes, to {output}")


def _dtype_of(x: np.ndarray) -> np.dtype:
  """Returns the type to save an array in."""
  if np.issubdtype(x.dtype, np.floating):
    return np.dtype(FLAGS.dtype)
  return x.dtype


def _metadata(workdir: pathlib.Path, step: int) -> dict[str, str]:
  """Returns what the file says of the run."""
  kept = [
      line
      for line in run_flags.saved_flags()
      if line.removeprefix("--").partition("=")[0] not in _PLACES
  ]
  metrics = {}
  for record in training.read_metrics(workdir):
    if record["step"] <= step:
      metrics |= record
  metrics.pop("final", None)
  metadata = {
      "flags": "\n".join(kept),
      "step": str(step),
      "metrics": json.dumps(metrics),
      "commit": _commit(),
  }
  vocabulary = workdir / "vocabulary.txt"
  if vocabulary.exists():
    metadata["vocabulary"] = vocabulary.read_text("utf-8")
  return metadata


def _commit() -> str:
  """Returns the commit of this repository; 'unknown' outside of one."""
  process = subprocess.run(
      ["git", "describe", "--always", "--dirty", "--abbrev=40"],
      cwd=pathlib.Path(__file__).parent,
      capture_output=True,
      text=True,
      check=False,
  )
  return process.stdout.strip() or "unknown"


if __name__ == "__main__":
  program.run(main)
