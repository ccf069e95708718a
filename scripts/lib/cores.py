"""The table of recurrent cores, which `--core` chooses from.

A core of one's own is an entry of `CORES` and its flags::

    flags.DEFINE_integer("gru_size", 64, "GRU: units.", lower_bound=1)
    CORES["gru"] = Core(lambda given: hk.GRU(FLAGS.gru_size), ("gru_size",))

Every program that trains can then use it, records its flags with a run, and
does not resume a run with others.
"""

from collections.abc import Callable
from typing import NamedTuple

from absl import flags
import haiku as hk

import rmc
from scripts.lib import core_flags
from scripts.lib.program import UsageError

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(core_flags)


class Input(NamedTuple):
  """What a core reads in each step.

  Attributes:
    kind: 'flat', one vector `[F]` for each example; 'rows', a matrix `[n, F]`;
      or 'image', `[H, W, C]`.
    image_size: H and W of an image.
  """

  kind: str = "flat"
  image_size: tuple[int, int] | None = None


FLAT = Input()


class Core(NamedTuple):
  """A recurrent core that `--core` can name.

  Attributes:
    build: makes the core from the flags, inside a transform.
    flags: names of the flags that it reads.
    inputs: the kinds of input that it can read, the one that suits agents best
      first. Programs other than the agents' give it 'flat' inputs only.
    seq2seq_layers: how many of it Learning to Execute stacks, each of which
      sees the input; their outputs are concatenated.
  """

  build: Callable[[Input], hk.RNNCore]
  flags: tuple[str, ...] = ()
  inputs: tuple[str, ...] = ("flat",)
  seq2seq_layers: int = 1


def _build_rmc(given: Input) -> hk.RNNCore:
  return rmc.RelationalMemory(
      mem_slots=FLAGS.mem_slots,
      head_size=FLAGS.head_size,
      num_heads=FLAGS.num_heads,
      num_blocks=FLAGS.num_blocks,
      forget_bias=FLAGS.forget_bias,
      input_bias=FLAGS.input_bias,
      gate_style=None if FLAGS.gate_style == "none" else FLAGS.gate_style,
      attention_mlp_layers=FLAGS.attention_mlp_layers,
      key_size=FLAGS.key_size,
      treat_input_as_matrix=given.kind == "rows",
  )


def _build_lstm(given: Input) -> hk.RNNCore:
  del given
  return hk.LSTM(FLAGS.hidden_size)


def _build_conv_lstm(given: Input) -> hk.RNNCore:
  return hk.Conv2DLSTM(
      given.image_size,
      FLAGS.conv_lstm_channels,
      FLAGS.conv_lstm_kernel,
      name="conv_lstm",
  )


def _build_dnc(given: Input) -> hk.RNNCore:
  del given
  return rmc.baselines.DNC(
      output_size=FLAGS.dnc_hidden_size,
      hidden_size=FLAGS.dnc_hidden_size,
      memory_size=FLAGS.dnc_memory_size,
      word_size=FLAGS.dnc_word_size,
      num_reads=FLAGS.dnc_num_reads,
      num_writes=FLAGS.dnc_num_writes,
      controller=FLAGS.dnc_controller,
      controller_layers=FLAGS.dnc_controller_layers,
      clip_value=FLAGS.dnc_clip_value or None,
  )


def _build_entnet(given: Input) -> hk.RNNCore:
  del given
  return rmc.baselines.EntNet(
      FLAGS.entnet_num_cells, FLAGS.entnet_hidden_size
  )


CORES = {
    "rmc": Core(
        _build_rmc,
        (
            "mem_slots",
            "head_size",
            "num_heads",
            "num_blocks",
            "key_size",
            "attention_mlp_layers",
            "gate_style",
            "forget_bias",
            "input_bias",
        ),
        inputs=("rows", "flat"),
    ),
    # Two layers in Learning to Execute, as in the paper (appendix A.2).
    "lstm": Core(_build_lstm, ("hidden_size",), seq2seq_layers=2),
    "conv_lstm": Core(
        _build_conv_lstm,
        ("conv_lstm_channels", "conv_lstm_kernel"),
        inputs=("image",),
    ),
    "dnc": Core(
        _build_dnc,
        (
            "dnc_memory_size",
            "dnc_word_size",
            "dnc_num_reads",
            "dnc_num_writes",
            "dnc_controller",
            "dnc_controller_layers",
            "dnc_hidden_size",
            "dnc_clip_value",
        ),
    ),
    "entnet": Core(_build_entnet, ("entnet_num_cells", "entnet_hidden_size")),
}

flags.DEFINE_string(
    "core",
    "rmc",
    f"The recurrent core: {', '.join(CORES)}; conv_lstm for agents only.",
)


@flags.validator("core")
def _check_core(name: str) -> bool:
  """Raises an error that lists the table as it is when flags are parsed."""
  if name not in CORES:
    raise flags.ValidationError(f"must be one of {', '.join(CORES)}")
  return True


def all_flags() -> list[str]:
  """Returns the names of the flags of all cores, and `core`."""
  return ["core", *(name for core in CORES.values() for name in core.flags)]


def names_for(kind: str) -> list[str]:
  """Returns the names of the cores that read inputs of a kind."""
  return [name for name, core in CORES.items() if kind in core.inputs]


def make_core(given: Input = FLAT) -> hk.RNNCore:
  """Returns the core that the flags ask for; inside a transform.

  Args:
    given: what it is to read.

  Raises:
    UsageError: if it cannot read that.
  """
  core = CORES[FLAGS.core]
  if given.kind not in core.inputs:
    raise UsageError(
        f"--core={FLAGS.core} reads {' or '.join(core.inputs)} inputs, which "
        f"this program does not have; it must be one of "
        f"{', '.join(names_for(given.kind))}"
    )
  return core.build(given)
