"""The benchmark of language models, run as its users run it."""

import subprocess
import sys

from tests.scripts import test_train_language_model as programs

NETWORK = (
    "--head_size=2",
    "--embedding_size=4",
    "--attention_mlp_layers=1",
)


def run(*arguments):
  return subprocess.run(
      [sys.executable, "-m", "benchmarks.language_model", *arguments],
      capture_output=True,
      text=True,
      timeout=600,
  )


def test_table():
  """Of the paper's preset and words, but for what the flags overrule."""
  sizes = ("--num_types=30", "--updates=2", "--batch_size=3", "--window=5")
  done = run(*sizes, *NETWORK)
  assert done.returncode == 0, done.stderr
  head, _, values = (line.split() for line in done.stdout.splitlines())
  row = dict(zip(head, values, strict=True))
  row = {name: value.replace(",", "") for name, value in row.items()}
  assert row["preset"] == "lm_paper_wikitext103"
  assert row["core"] == "rmc"
  assert [int(row[x]) for x in ("batch_size", "window", "updates")] == [3, 5, 2]
  preset = programs.ROOT / "scripts/presets/lm_paper_wikitext103.flags"
  assert int(row["parameters"]) == programs.sizes_of(
      f"--flagfile={preset}", *NETWORK, vocab_size=30
  )
  assert float(row["tokens_per_second"]) > 0
  assert int(row["peak_resident_bytes"]) > 50e6
  # Parameters and Adam's two means, at the least.
  assert int(row["compiled_bytes"]) > 3 * 4 * int(row["parameters"])


def test_memory_alone():
  """Of two batches, the larger needs more, by more than its words."""
  sizes = ("--num_types=30", "--updates=0", "--window=50", *NETWORK)
  found = []
  for batch_size in (2, 40):
    done = run(*sizes, f"--batch_size={batch_size}")
    assert done.returncode == 0, done.stderr
    head, _, values = (line.split() for line in done.stdout.splitlines())
    row = dict(zip(head, values, strict=True))
    assert row["updates"] == "0" and "tokens_per_second" not in row
    found.append(int(row["compiled_bytes"].replace(",", "")))
  assert found[1] - found[0] > (40 - 2) * 50 * 4 * 4


def test_too_little_memory():
  code = """
from benchmarks import language_model
import jax
import jax.numpy as jnp
from scripts import train_language_model
from scripts.lib import program
def fill():
  jax.block_until_ready(jnp.zeros([2**50], jnp.uint8))
train_language_model.main = fill
program.run(language_model.main)
"""
  done = subprocess.run(
      [sys.executable, "-c", code, "--num_types=30", "--batch_size=2"],
      capture_output=True,
      text=True,
      timeout=600,
  )
  assert done.returncode == 1
  assert "Traceback" not in done.stderr
  assert "A smaller --batch_size needs less" in done.stderr


def test_wrong_flag():
  done = run("--preset=lm_nothing")
  assert done.returncode == 2
  assert done.stderr.count("\n") == 1
  assert "--preset=lm_nothing" in done.stderr
