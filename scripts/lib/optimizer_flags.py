"""Flags of the optimiser, and the optimiser that they ask for."""

from collections.abc import Callable
import math
from typing import Any

from absl import flags
import haiku as hk
import jax
import optax
from optax import contrib

FLAGS = flags.FLAGS


def _rmsprop(
    learning_rate: optax.Schedule, loss_terms: int
) -> optax.GradientTransformation:
  """Returns RMSProp for a loss that is summed over so many terms."""
  rmsprop = optax.rmsprop(
      learning_rate,
      decay=FLAGS.rmsprop_decay,
      eps=FLAGS.rmsprop_epsilon,
      initial_scale=1.0,
      eps_in_sqrt=True,
  )
  return optax.chain(optax.scale(float(loss_terms)), rmsprop)


def linear_weights(params: hk.Params) -> Any:
  """Returns for each parameter whether it is the matrix of an `hk.Linear`.

  Haiku calls it `w`, as it does the kernel of a convolution, which has more
  axes; nothing else.
  """
  return jax.tree.map_with_path(
      lambda path, x: path[-1].key == "w" and x.ndim == 2, params
  )


def _muon(
    learning_rate: optax.Schedule, loss_terms: int
) -> optax.GradientTransformation:
  """Returns Muon (Jordan et al., 2024) for the weights of `hk.Linear`.

  All other parameters, embeddings too, take Adam. optax gives both Nesterov's
  momentum. Muon's steps are as large as Adam's (`consistent_rms`, Liu et al.,
  2025), so that one learning rate serves both.
  """
  del loss_terms  # Neither sees the scale of a gradient.

  def matrices(params):
    return jax.tree.map(
        lambda is_linear: contrib.MuonDimensionNumbers() if is_linear else None,
        linear_weights(params),
    )

  return contrib.muon(
      learning_rate,
      consistent_rms=0.2,
      muon_weight_dimension_numbers=matrices,
  )


# By name: what makes it from a learning rate and the number of a loss's terms.
# Adam is the same for a sum and for a mean, but for its epsilon.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": lambda learning_rate, loss_terms: optax.adam(learning_rate),
    "rmsprop": _rmsprop,
    "muon": _muon,
}

flags.DEFINE_float("learning_rate", 1e-3, "The optimiser's learning rate.")
flags.DEFINE_integer(
    "warmup_steps",
    0,
    "Updates in which the learning rate rises from 0, linearly.",
    lower_bound=0,
    upper_bound=2**31 - 1,  # optax counts no further.
)
flags.DEFINE_float(
    "lr_decay_rate",
    1.0,
    "Factor of the learning rate over --lr_decay_steps updates, exponential.",
)
flags.DEFINE_integer(
    "lr_decay_steps",
    10_000,
    "Updates in which the learning rate falls by --lr_decay_rate.",
    lower_bound=1,
    upper_bound=2**31 - 1,
)
flags.DEFINE_float(
    "min_learning_rate", 0.0, "The decay stops here.", lower_bound=0.0
)
flags.DEFINE_float(
    "max_grad_norm",
    0.0,
    "Gradients are scaled down to this global norm; 0: never.",
    lower_bound=0.0,
)
flags.DEFINE_enum(
    "optimizer",
    "adam",
    list(OPTIMIZERS),
    "adam; muon: Muon for the matrices of linear layers and Adam for the rest; "
    "or rmsprop: TensorFlow 1's RMSProp as IMPALA uses it, with epsilon inside "
    "the root and mean squares that begin at 1. For agents, RMSProp "
    "gets the gradients of losses that are summed over steps and "
    "environments, as in IMPALA; all other losses are means. --max_grad_norm "
    "limits the gradient of the mean loss in either case.",
)
flags.DEFINE_float(
    "rmsprop_decay",
    0.99,
    "RMSProp: decay of the mean squares.",
    lower_bound=0.0,
    upper_bound=1.0,
)
flags.DEFINE_float(
    "rmsprop_epsilon", 0.1, "RMSProp: added to the mean squares.", lower_bound=0
)

for _name in (
    "learning_rate",
    "lr_decay_rate",
    "min_learning_rate",
    "max_grad_norm",
    "rmsprop_decay",
    "rmsprop_epsilon",
):
  flags.register_validator(_name, math.isfinite, "must be a finite number")
flags.register_validator(
    "learning_rate", lambda value: value > 0, "must be above 0"
)
flags.register_multi_flags_validator(
    ["min_learning_rate", "learning_rate"],
    lambda value: value["min_learning_rate"] <= value["learning_rate"],
    "--min_learning_rate must be at most --learning_rate",
)
flags.register_validator(
    "lr_decay_rate", lambda value: 0 < value <= 1, "must be above 0, up to 1"
)


def make_optimizer(loss_terms: int = 1) -> optax.GradientTransformation:
  """Returns the optimiser that the flags ask for.

  Args:
    loss_terms: how many terms the loss is the mean of, if RMSProp is to see
      the gradient of their sum.

  Returns:
    The optimiser, behind the clipping of gradients that the flags ask for.
  """
  peak, floor = FLAGS.learning_rate, FLAGS.min_learning_rate
  schedule = optax.constant_schedule(peak)
  if FLAGS.lr_decay_rate < 1:  # At 1, optax takes end_value for a ceiling.
    schedule = optax.exponential_decay(
        peak, FLAGS.lr_decay_steps, FLAGS.lr_decay_rate, end_value=floor
    )
  if FLAGS.warmup_steps:
    warmup = optax.linear_schedule(0.0, peak, FLAGS.warmup_steps)
    schedule = optax.join_schedules([warmup, schedule], [FLAGS.warmup_steps])
  clip = optax.identity()
  if FLAGS.max_grad_norm:
    clip = optax.clip_by_global_norm(FLAGS.max_grad_norm)
  return optax.chain(clip, OPTIMIZERS[FLAGS.optimizer](schedule, loss_terms))
