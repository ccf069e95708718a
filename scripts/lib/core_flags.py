"""Flags of the recurrent cores, of their unroll and of the read-out."""

import math
from typing import Any

from absl import flags

from scripts.lib import program

FLAGS = flags.FLAGS

flags.DEFINE_integer("mem_slots", 8, "RMC: memory slots.", lower_bound=1)
flags.DEFINE_integer(
    "head_size", 64, "RMC: size of a value, per head.", lower_bound=1
)
flags.DEFINE_integer("num_heads", 4, "RMC: attention heads.", lower_bound=1)
flags.DEFINE_integer(
    "num_blocks", 1, "RMC: attention blocks in a step.", lower_bound=1
)
flags.DEFINE_integer(
    "key_size",
    0,
    "RMC: size of a query and of a key, per head; 0: --head_size.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "attention_mlp_layers",
    2,
    "RMC: layers of the MLP after the attention.",
    lower_bound=1,
)
flags.DEFINE_enum(
    "gate_style",
    "unit",
    ["unit", "memory", "none"],
    "RMC: a gate per unit, a gate per slot, or no gates.",
)
flags.DEFINE_float("forget_bias", 1.0, "RMC: bias of the forget gate.")
flags.DEFINE_float("input_bias", 0.0, "RMC: bias of the input gate.")
flags.DEFINE_integer("hidden_size", 512, "LSTM: units.", lower_bound=1)
flags.DEFINE_integer(
    "dnc_memory_size", 16, "DNC: memory slots.", lower_bound=1
)
flags.DEFINE_integer(
    "dnc_word_size", 64, "DNC: size of a slot.", lower_bound=1
)
flags.DEFINE_integer("dnc_num_reads", 4, "DNC: read heads.", lower_bound=1)
flags.DEFINE_integer("dnc_num_writes", 1, "DNC: write heads.", lower_bound=1)
flags.DEFINE_enum(
    "dnc_controller",
    "lstm",
    ["lstm", "feedforward"],
    "DNC: what reads the input and moves the heads.",
)
flags.DEFINE_integer(
    "dnc_controller_layers", 2, "DNC: layers of the controller.", lower_bound=1
)
flags.DEFINE_integer(
    "dnc_hidden_size",
    128,
    "DNC: units of each layer of the controller, and of the output.",
    lower_bound=1,
)
flags.DEFINE_float(
    "dnc_clip_value",
    20.0,
    "DNC: controller and output are clipped to within plus and minus this; 0: "
    "not at all.",
    lower_bound=0.0,
)
flags.DEFINE_integer("entnet_num_cells", 4, "EntNet: cells.", lower_bound=1)
flags.DEFINE_integer(
    "entnet_hidden_size", 128, "EntNet: units of each cell.", lower_bound=1
)
flags.DEFINE_integer(
    "conv_lstm_channels", 64, "ConvLSTM: channels.", lower_bound=1
)
flags.DEFINE_integer(
    "conv_lstm_kernel", 2, "ConvLSTM: side of its kernels.", lower_bound=1
)
flags.DEFINE_list(
    "mlp_sizes",
    ["256"] * 4,
    "Sizes of the read-out's ReLU layers; for Nth Farthest and Learning to "
    "Execute only.",
)
flags.DEFINE_boolean(
    "remat",
    False,
    "Compute everything anew in the backward pass, in chunks of about the root "
    "of all steps: less memory, the same numbers.",
)
flags.DEFINE_integer(
    "scan_unroll",
    1,
    "Steps that the compiled loop takes at a time.",
    lower_bound=1,
)
program.define_alias("unroll", "scan_unroll")

for _name in ("forget_bias", "input_bias", "dnc_clip_value"):
  flags.register_validator(_name, math.isfinite, "must be a finite number")


def unroll_options() -> dict[str, Any]:
  """Returns the arguments of `rmc.unroll` that the flags ask for."""
  return {"remat": FLAGS.remat, "unroll": FLAGS.scan_unroll}


def mlp_sizes() -> list[int]:
  """Returns the sizes of the read-out's layers that the flags ask for."""
  return program.positive_integers("mlp_sizes")
