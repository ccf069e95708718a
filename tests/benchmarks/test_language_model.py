"""The benchmark of language models, run as its users run it."""

from absl.testing import flagsaver

# Defines flags, which a flagsaver would take back.
from array_record.python import array_record_data_source  # noqa: F401
import haiku as hk
import jax
import jax.numpy as jnp

from benchmarks import language_model
from scripts.lib import language_model_flags
from tests.helpers.in_process import exit_of
from tests.helpers.programs import ROOT, parsed

NETWORK = (
    "--head_size=2",
    "--embedding_size=4",
    "--attention_mlp_layers=1",
)


def test_table():
  """Of the paper's preset and words, but for what the flags overrule."""
  sizes = ("--num_types=30", "--updates=2", "--batch_size=8", "--window=5")
  status, out, err = exit_of(language_model, *sizes, *NETWORK)
  assert status == 0, err
  head, _, values = (line.split() for line in out.splitlines())
  row = dict(zip(head, values, strict=True))
  row = {name: value.replace(",", "") for name, value in row.items()}
  assert row["preset"] == "paper_wikitext103"
  assert row["core"] == "rmc"
  assert [int(row[x]) for x in ("batch_size", "window", "updates")] == [8, 5, 2]
  preset = ROOT / "scripts/presets/language_modeling/paper_wikitext103.flags"
  with parsed(f"--flagfile={preset}", *NETWORK):
    network = language_model_flags.make_network(30)
    tokens = jnp.zeros([1, 1], jnp.int32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), tokens)
  size = hk.data_structures.tree_size(shapes)
  assert int(row["parameters"]) == size
  assert float(row["tokens_per_second"]) > 0
  assert int(row["peak_resident_bytes"]) > 50e6
  # Parameters and Adam's two means, at the least.
  assert int(row["compiled_bytes"]) > 3 * 4 * size


def test_memory_alone():
  """Of two batches, the larger needs more, by more than its words."""
  found = []
  for batch_size in (2, 40):
    with flagsaver.flagsaver(), jax.numpy_dtype_promotion("standard"):
      row = language_model.measure(
          "lm_paper_wikitext103",  # An old name.
          [
              *("--num_types=30", "--updates=0", "--window=50", *NETWORK),
              f"--batch_size={batch_size}",
          ],
          jax.devices()[:1],
      )
    assert row["preset"] == "paper_wikitext103"
    assert row["updates"] == 0 and "tokens_per_second" not in row
    found.append(row["compiled_bytes"])
  assert found[1] - found[0] > (40 - 2) * 50 * 4 * 4


def test_too_little_memory():
  """Of a memory that has more slots than any machine has bytes."""
  status, _, err = exit_of(
      language_model,
      *("--num_types=30", "--batch_size=8", "--window=1", "--updates=0"),
      *NETWORK,
      f"--mem_slots={2**50}",
  )
  assert status == 1
  assert "Traceback" not in err
  assert "A smaller --batch_size needs less" in err
