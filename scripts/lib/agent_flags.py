"""Flags of the programs that train and show agents, and what they make."""

from collections.abc import Callable
import functools
import json
import math
import pathlib

from absl import flags
import haiku as hk
import jax
import optax

import rmc
from rmc import training
from rmc.training import multihost
from rmc.training.metrics import write_text
from scripts.lib import core_flags, plots, run_flags
from scripts.lib.agent import Agent, describe
from tasks.environment import Environment

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(run_flags)
flags.adopt_module_key_flags(core_flags)

# Acting and learning.
flags.DEFINE_integer(
    "unroll_length",
    40,
    "Steps of each environment in an update.",
    lower_bound=1,
)
flags.DEFINE_float(
    "discount",
    0.99,
    "Discount of rewards a step ahead.",
    lower_bound=0.0,
    upper_bound=1.0,
)
flags.DEFINE_float(
    "entropy_cost", 0.005, "Weight of the policy's entropy.", lower_bound=0.0
)
flags.DEFINE_float(
    "value_cost",
    0.5,
    "Weight of the squared errors of the values, halved.",
    lower_bound=0.0,
)
flags.DEFINE_integer(
    "actor_lag",
    0,
    "Updates between acting and learning from it, as with actors apart from "
    "the learner; the first updates then learn nothing.",
    lower_bound=0,
)
flags.DEFINE_enum(
    "optimizer",
    "adam",
    ["adam", "rmsprop"],
    "adam, or TensorFlow 1's RMSProp as IMPALA uses it: of losses that are "
    "summed over steps and environments rather than averaged, with epsilon "
    "inside the root and mean squares that begin at 1. --max_grad_norm is of "
    "the average in either case.",
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

# The network.
flags.DEFINE_enum(
    "view",
    "viewport",
    ["viewport", "full"],
    "Whether the agent sees the 5 x 5 cells around it or the whole board.",
)
flags.DEFINE_list(
    "conv_channels", ["12", "24"], "Channels of the torso's convolutions."
)
flags.DEFINE_list("conv_strides", ["1", "1"], "Their strides.")
flags.DEFINE_integer(
    "conv_kernel", 2, "Side of their kernels.", lower_bound=1
)
flags.DEFINE_boolean(
    "flatten",
    False,
    "RMC: the torso's cells are one long input, rather than a row each. The "
    "ConvLSTM reads an image, the other cores a long input, in any case.",
)
flags.DEFINE_integer(
    "conv_lstm_channels", 64, "ConvLSTM: channels.", lower_bound=1
)
flags.DEFINE_integer(
    "conv_lstm_kernel", 2, "ConvLSTM: side of its kernels.", lower_bound=1
)

flags.DEFINE_integer(
    "eval_episodes",
    512,
    "Episodes of an evaluation, on levels apart from those of training and the "
    "same each time. Evaluations in training draw actions from the policy.",
    lower_bound=2,
)

for _name in (
    "discount",
    "entropy_cost",
    "value_cost",
    "rmsprop_decay",
    "rmsprop_epsilon",
):
  flags.register_validator(_name, math.isfinite, "must be a finite number")

# Told apart from what `jax.random.split` makes of a run's seed.
_HELD_OUT = 2**31 - 1


def held_out_key(seed: int = 0) -> jax.Array:
  """Returns the key of levels that no training draws."""
  return jax.random.fold_in(jax.random.key(seed), _HELD_OUT)


def torso_shape(env: Environment) -> tuple[int, int]:
  """Returns height and width of what the torso makes of an observation."""
  stride = math.prod(run_flags.positive_integers("conv_strides"))
  height, width, _ = env.observation_shape
  return -(-height // stride), -(-width // stride)


def make_agent(env: Environment) -> Agent:
  """Returns the agent that the flags ask for.

  Args:
    env: its environment.

  Raises:
    UsageError: if the network cannot be made so.
  """
  channels = run_flags.positive_integers("conv_channels")
  strides = run_flags.positive_integers("conv_strides")
  rows = FLAGS.core == "rmc" and not FLAGS.flatten

  def make_core():
    if FLAGS.core != "conv_lstm":
      return core_flags.make_core(treat_input_as_matrix=rows)
    return hk.Conv2DLSTM(
        torso_shape(env),
        FLAGS.conv_lstm_channels,
        FLAGS.conv_lstm_kernel,
        name="conv_lstm",
    )

  core_input = "rows" if rows else "flat"
  if FLAGS.core == "conv_lstm":
    core_input = "image"
  with run_flags.usage_errors():
    agent = Agent(
        env,
        lambda: rmc.ActorCritic(
            make_core,
            env.num_actions,
            core_input,
            channels,
            strides,
            FLAGS.conv_kernel,
            **core_flags.unroll_options(),
        ),
        unroll_length=FLAGS.unroll_length,
        discount=FLAGS.discount,
        entropy_cost=FLAGS.entropy_cost,
        value_cost=FLAGS.value_cost,
        actor_lag=FLAGS.actor_lag,
    )
    jax.eval_shape(agent.init, jax.random.key(0))
  return agent


def train(make_environment: Callable[[], Environment]):
  """Trains or evaluates an agent.

  Args:
    make_environment: makes the environment that the flags ask for.
  """
  parallel = run_flags.make_parallel()
  with run_flags.usage_errors():
    env = make_environment()
  agent = make_agent(env)
  optimizer = run_flags.make_optimizer(_optimizers()[FLAGS.optimizer])
  init_key, act_key, level_key = jax.random.split(
      jax.random.key(FLAGS.seed), 3
  )

  def init():
    params = jax.jit(agent.init)(init_key)
    carry = jax.jit(agent.initial_carry, static_argnames="batch_size")(
        params, level_key, batch_size=FLAGS.batch_size
    )
    return training.init_state(params, optimizer, act_key, carry)

  def evaluate(state):
    played = agent.play(state.params, held_out_key(), FLAGS.eval_episodes)
    described = describe(played)
    found = {f"eval_{name}": mean for name, (mean, *_) in described.items()}
    return found | {"eval_return_standard_error": described["return"][1]}

  summary = run_flags.train_or_evaluate(
      parallel,
      init,
      agent.loss_fn,
      optimizer,
      evaluate,
      summarize=functools.partial(agent.summarize, FLAGS.batch_size),
      free_flags=("eval_episodes",),
  )
  if FLAGS.mode == "train" and multihost.is_leader():
    speed = summary["steps_per_second"] * FLAGS.batch_size * FLAGS.unroll_length
    summary["environment_steps_per_second"] = round(speed, 1)
    path = pathlib.Path(FLAGS.workdir) / "summary.json"
    write_text(path, json.dumps(summary, indent=2) + "\n")
    print(f"{speed:,.0f} environment steps a second, without compilation")
    reports = training.read_metrics(FLAGS.workdir)
    ended = any("return" in report for report in reports)
    plots.learning_curve(FLAGS.workdir, "return" if ended else "eval_return")


def _optimizers() -> dict[str, Callable[..., optax.GradientTransformation]]:
  """Returns the optimisers of --optimizer, each of a learning rate."""

  def rmsprop(learning_rate):
    return optax.chain(
        optax.scale(float(FLAGS.batch_size * FLAGS.unroll_length)),
        optax.rmsprop(
            learning_rate,
            decay=FLAGS.rmsprop_decay,
            eps=FLAGS.rmsprop_epsilon,
            initial_scale=1.0,
            eps_in_sqrt=True,
        ),
    )

  return {"adam": optax.adam, "rmsprop": rmsprop}
