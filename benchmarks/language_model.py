"""Memory and speed of a language model's training, on a made-up text.

    python -m benchmarks.language_model --batch_size=16

measures `paper_wikitext103` with the 267,735 words of WikiText-103, 16
streams and 20 updates; raise --batch_size to the largest that the device can
do, or leave it out for the paper's 384; --updates=0 compiles an update, which
tells what memory it needs, and runs none. Flags of `train_language_model`
overrule those of the preset: `--core=lstm`, `--softmax=adaptive`, `--remat`.

    python -m benchmarks.language_model --preset=wikitext2 --num_types=33278

The text has each word as often as any other and is repeated until no update
sees a window of another. It goes through the program's own pipeline, is
tokenised and read from disk, in a temporary folder.

Columns:
  - parameters: of the network.
  - compiled_bytes: what XLA sets aside for an update: the state, which it
    reuses, the batch, and what it computes with.
  - updates: how many were timed, after one that was not.
  - tokens_per_second: of the median update, with its batch.
  - peak_device_bytes: on the fullest device, if its backend says so.
  - peak_resident_bytes: of the process, from tokenising and compiling on. On a
    CPU it has parameters, optimiser and all that an update needs too.
"""

from collections.abc import Sequence
import itertools
import pathlib
import resource
import statistics
import sys
import tempfile
import time
from typing import Any

from absl import flags
import haiku as hk
import jax
import tabulate
import tqdm

from rmc import training
from scripts import train_language_model
from scripts.lib import experiment, program, run_flags

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(train_language_model)

_PRESETS = (
    pathlib.Path(run_flags.__file__).parents[1] / "presets/language_modeling"
)
_NAMES = sorted({path.stem for path in _PRESETS.glob("*.flags")} - {"base"})
flags.DEFINE_string(
    "preset", "paper_wikitext103", f"What to measure: {', '.join(_NAMES)}."
)
flags.register_validator(
    "preset",
    lambda name: name.removeprefix("lm_") in _NAMES,  # An old name.
    f"must be one of {', '.join(_NAMES)}",
)
flags.DEFINE_integer(
    "num_types",
    267_735,
    "Words of the vocabulary, <unk> and <eos> among them.",
    lower_bound=3,
)
flags.DEFINE_integer(
    "updates", 20, "Updates to time; 0: none is run.", lower_bound=0
)


def measure(
    preset: str,
    arguments: Sequence[str],
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
  """Measures the training of a language model.

  Args:
    preset: its name.
    arguments: flags that overrule those of the preset.
    devices: the devices to use; None for all that there are.

  Returns:
    A row, by column.

  Raises:
    Failure: if there is too little memory.
  """
  preset = preset.removeprefix("lm_")
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    program.parse([
        sys.argv[0],
        f"--flagfile={_PRESETS / preset}.flags",
        "--corpus=text",
        "--vocab_size=0",
        "--min_count=1",
        f"--manual_dir={folder / 'text'}",
        f"--data_dir={folder / 'data'}",
        f"--workdir={folder}",
        *arguments,
    ])
    run_flags.set_precision()
    num_updates = 1 + FLAGS.updates
    _write_text(
        folder / "text", num_updates * FLAGS.batch_size * FLAGS.window
    )
    with (
        jax.default_matmul_precision(FLAGS.matmul_precision),
        experiment.memory_errors(),
    ):
      row = {
          "preset": preset,
          "core": FLAGS.core,
          "batch_size": FLAGS.batch_size,
          "window": FLAGS.window,
      } | _measure_updates(devices)
  stats = [device.memory_stats() for device in jax.local_devices()]
  if all(stats):
    row["peak_device_bytes"] = max(x["peak_bytes_in_use"] for x in stats)
  usage = resource.getrusage(resource.RUSAGE_SELF)
  row["peak_resident_bytes"] = 1024 * usage.ru_maxrss
  return row


def _measure_updates(
    devices: Sequence[jax.Device] | None,
) -> dict[str, float]:
  """Compiles an update and times as many as --updates says.

  Args:
    devices: the devices to use.

  Returns:
    Columns of a row.
  """
  parallel = run_flags.make_parallel(devices)
  measured = train_language_model.make_experiment(parallel)
  batches = experiment.make_batches(measured, parallel)
  state = training.to_numpy(measured.init())
  row = {"parameters": hk.data_structures.tree_size(state.params)}
  state = parallel.place_state(state)
  update = parallel.make_update(
      measured.loss_fn,
      measured.optimizer,
      skip_nonfinite=FLAGS.skip_nonfinite,
  )
  compiled = update.lower(state, batches(0)).compile()
  memory = compiled.memory_analysis()
  row["compiled_bytes"] = (
      memory.argument_size_in_bytes
      + memory.output_size_in_bytes
      - memory.alias_size_in_bytes
      + memory.temp_size_in_bytes
  )
  row["updates"] = FLAGS.updates
  if FLAGS.updates:
    seconds = []
    for step in tqdm.trange(1 + FLAGS.updates, unit="update"):
      start = time.perf_counter()
      state, _ = jax.block_until_ready(compiled(state, batches(step)))
      seconds.append(time.perf_counter() - start)
    tokens = FLAGS.batch_size * FLAGS.window
    row["tokens_per_second"] = tokens / statistics.median(seconds[1:])
  return row


def _write_text(folder: pathlib.Path, num_tokens: int):
  """Writes all words in turn, as many as asked for and each once at least."""
  folder.mkdir()
  num_words = FLAGS.num_types - 2
  words = itertools.cycle(f"w{i}" for i in range(num_words))
  with (folder / "train.txt").open("w") as file:
    for _ in range(0, max(num_tokens, num_words), 20):
      file.write(" ".join(itertools.islice(words, 20)) + "\n")
  for split in ("valid", "test"):
    (folder / f"{split}.txt").write_text("w0\n")


def main():
  """Prints a table."""
  row = measure(FLAGS.preset, sys.argv[1:])
  print(
      tabulate.tabulate([row], headers="keys", intfmt=",", floatfmt=",.1f")
  )


if __name__ == "__main__":
  program.run(main)
