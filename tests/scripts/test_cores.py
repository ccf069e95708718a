"""The table of cores: what `--core` and its flags make, and a new core.

Glossary of shapes:
  - B: batch size.
  - F: size of an input.
"""

from absl import flags
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rmc
from rmc import training
from rmc.baselines import DNC, EntNet
from scripts import (
  train_box_world,
  train_language_model,
  train_learn_to_execute,
  train_mini_pacman,
  train_nth_farthest,
)
from scripts.lib import core_flags, cores
from scripts.lib.program import UsageError
from tests.helpers.programs import ROOT, parsed
from tests.helpers.texts import load, make_text

FLAGS = flags.FLAGS
PRESETS = ROOT / "scripts" / "presets"
# The smallest runs of two updates.
RUNS = {
    train_nth_farthest: (
        "--num_objects=3", "--num_features=2", "--mlp_sizes=4",
        "--eval_examples=8", "--batch_size=8",
    ),
    train_learn_to_execute: (
        f"--flagfile={PRESETS}/learn_to_execute/smoke.flags", "--mlp_sizes=4",
        "--test_programs=8", "--batch_size=8",
    ),
    train_language_model: (
        "--corpus=text", "--embedding_size=8", "--batch_size=8", "--window=5",
        "--eval_streams=3",
    ),
    train_mini_pacman: (f"--flagfile={PRESETS}/mini_pacman/smoke.flags",),
    train_box_world: (f"--flagfile={PRESETS}/box_world/smoke.flags",),
}  # fmt: skip


@pytest.fixture
def gru():
  """Registers a core with a flag of its own, and forgets both."""
  flags.DEFINE_integer("gru_size", 5, "GRU: units.", lower_bound=1)
  cores.CORES["gru"] = cores.Core(
      lambda given: hk.GRU(FLAGS.gru_size), ("gru_size",)
  )
  yield
  del cores.CORES["gru"]
  delattr(FLAGS, "gru_size")


@pytest.mark.parametrize("program", RUNS, ids=lambda program: program.__name__)
def test_a_core_of_ones_own(gru, train_here, tmp_path, program):
  """In every program, and a run is resumed only with its flag as it was."""
  arguments = [*RUNS[program], "--core=gru"]
  if program is train_language_model:
    text = make_text(tmp_path / "text")
    load(text)
    arguments += [f"--manual_dir={text}", f"--data_dir={tmp_path / 'data'}"]
  workdir = tmp_path / "run"
  train_here(program, workdir, *arguments, "--steps=2", "--gru_size=3")
  saved = (workdir / "flags.txt").read_text().splitlines()
  assert {"--core=gru", "--gru_size=3"} <= {*saved}
  sizes = {x.shape for x in jax.tree.leaves(training.load_params(workdir))}
  assert (3, 9) in sizes  # The recurrent weights of three gates.
  with pytest.raises(
      training.CheckpointError, match="gru_size was 3 and is 4"
  ):
    train_here(program, workdir, *arguments, "--steps=3", "--gru_size=4")


def test_core_must_be_in_the_table(gru):
  with (
      pytest.raises(
          flags.IllegalFlagValueError,
          match="must be one of rmc, lstm, conv_lstm, dnc, entnet, gru",
      ),
      parsed("--core=foo"),
  ):
    pass
  with parsed("--core=gru"):
    assert FLAGS.core == "gru"


def step_of(make_core, given):
  """Returns a function from a key to one step's parameters and output."""

  def step(inputs):
    core = make_core()
    return core(inputs, core.initial_state(len(inputs)))

  network = hk.without_apply_rng(hk.transform(step))
  inputs = jax.random.normal(jax.random.key(0), given)
  params = jax.jit(network.init)(jax.random.key(1), inputs)
  return params, jax.jit(network.apply)(params, inputs)


# For each: its flags, none at its default and no two alike, what they ask for,
# and the shape of the inputs.
FLAGS_OF = {
    "rmc": (
        dict(
            mem_slots=4,
            head_size=6,
            num_heads=5,
            num_blocks=2,
            key_size=7,
            attention_mlp_layers=3,
            gate_style="memory",
            forget_bias=1.5,
            input_bias=-0.5,
        ),
        lambda: rmc.RelationalMemory(
            4,
            6,
            5,
            num_blocks=2,
            forget_bias=1.5,
            input_bias=-0.5,
            gate_style="memory",
            attention_mlp_layers=3,
            key_size=7,
        ),
    ),
    "rmc without gates": (
        dict(mem_slots=2, head_size=3, num_heads=1, gate_style="none"),
        lambda: rmc.RelationalMemory(2, 3, 1, gate_style=None),
    ),
    "lstm": (dict(hidden_size=3), lambda: hk.LSTM(3)),
    "dnc": (
        dict(
            dnc_memory_size=2,
            dnc_word_size=3,
            dnc_num_reads=4,
            dnc_num_writes=5,
            dnc_controller="feedforward",
            dnc_controller_layers=6,
            dnc_hidden_size=7,
            dnc_clip_value=0.01,
        ),
        lambda: DNC(
            output_size=7,
            hidden_size=7,
            memory_size=2,
            word_size=3,
            num_reads=4,
            num_writes=5,
            controller="feedforward",
            controller_layers=6,
            clip_value=0.01,
        ),
    ),
    "dnc without clipping": (
        dict(dnc_hidden_size=2, dnc_clip_value=0),
        lambda: DNC(
            output_size=2,
            hidden_size=2,
            memory_size=16,
            word_size=64,
            num_reads=4,
            num_writes=1,
            controller="lstm",
            controller_layers=2,
            clip_value=None,
        ),
    ),
    "entnet": (
        dict(entnet_num_cells=2, entnet_hidden_size=3),
        lambda: EntNet(2, 3),
    ),
    "conv_lstm": (
        dict(conv_lstm_channels=2, conv_lstm_kernel=3),
        lambda: hk.Conv2DLSTM((4, 5), 2, 3, name="conv_lstm"),
    ),
}


@pytest.mark.parametrize("case", FLAGS_OF)
def test_flags_reach_the_core(case):
  """It computes what the core with these arguments does."""
  values, make_core = FLAGS_OF[case]
  name = case.split()[0]
  kind = "image" if name == "conv_lstm" else "flat"
  shape = (2, 4, 5, 1) if kind == "image" else (2, 3)
  given = cores.Input(kind, (4, 5))
  arguments = [f"--{flag}={value}" for flag, value in values.items()]
  assert {*values} <= {*cores.CORES[name].flags}
  with jax.numpy_dtype_promotion("standard"):
    with parsed(f"--core={name}", *arguments):
      found = step_of(lambda: cores.make_core(given), shape)
    expected = step_of(make_core, shape)
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_all_flags_are_tested():
  for name, core in cores.CORES.items():
    tested = {
        flag
        for case, (values, _) in FLAGS_OF.items()
        if case.split()[0] == name
        for flag in values
    }
    assert tested == {*core.flags}


def test_rows():
  """Only the RMC reads them: each becomes a row of its memory's input."""
  inputs = jnp.ones([1, 4, 3])
  with parsed("--mem_slots=2", "--num_heads=1", "--head_size=2"):
    sizes = []
    for kind in ("rows", "flat"):

      def step(inputs, kind=kind):
        core = cores.make_core(cores.Input(kind))
        return core(inputs, core.initial_state(1))

      init = hk.transform(step).init
      params = jax.eval_shape(init, jax.random.key(0), inputs)
      sizes.append(params["relational_memory/~/input_projection"]["w"].shape[0])
  assert sizes == [3, 12]


def test_a_core_must_read_what_there_is():
  with (
      parsed("--core=conv_lstm"),
      pytest.raises(UsageError, match="must be one of rmc, lstm, dnc, entnet"),
  ):
    cores.make_core()


def test_what_is_around_a_core():
  """The loop, and a read-out."""
  with parsed("--remat", "--scan_unroll=3", "--mlp_sizes=4,5"):
    assert core_flags.unroll_options() == {"remat": True, "unroll": 3}
    assert core_flags.mlp_sizes() == [4, 5]
  with parsed():
    assert core_flags.unroll_options() == {"remat": False, "unroll": 1}
    assert core_flags.mlp_sizes() == [256] * 4
