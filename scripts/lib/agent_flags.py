"""Flags of the programs that train and show agents, and what they make."""

from collections.abc import Callable
import functools
import math
from typing import Any

from absl import flags
import jax

import rmc
from rmc import training
from scripts.lib import (
  core_flags,
  cores,
  experiment,
  optimizer_flags,
  plots,
  program,
  run_flags,
)
from scripts.lib.agent import Agent, describe
from tasks.environments import Environment

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(run_flags)
flags.adopt_module_key_flags(optimizer_flags)
flags.adopt_module_key_flags(cores)

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
    "eval_episodes",
    512,
    "Episodes of an evaluation, on levels apart from those of training and the "
    "same each time. Evaluations in training draw actions from the policy.",
    lower_bound=2,
)

run_flags.NETWORK_FLAGS.update(
    ("view", "conv_channels", "conv_strides", "conv_kernel", "flatten")
)
for _name in ("discount", "entropy_cost", "value_cost"):
  flags.register_validator(_name, math.isfinite, "must be a finite number")

# Told apart from what `jax.random.split` makes of a run's seed.
_HELD_OUT = 2**31 - 1


def held_out_key(seed: int = 0) -> jax.Array:
  """Returns the key of levels that no training draws."""
  return jax.random.fold_in(jax.random.key(seed), _HELD_OUT)


def torso_shape(env: Environment) -> tuple[int, int]:
  """Returns height and width of what the torso makes of an observation."""
  stride = math.prod(program.positive_integers("conv_strides"))
  height, width, _ = env.observation_shape
  return -(-height // stride), -(-width // stride)


def make_agent(env: Environment) -> Agent:
  """Returns the agent that the flags ask for.

  Args:
    env: its environment.

  Raises:
    UsageError: if the network cannot be made so.
  """
  channels = program.positive_integers("conv_channels")
  strides = program.positive_integers("conv_strides")
  kind = core_input()
  given = cores.Input(kind, torso_shape(env))
  with program.usage_errors():
    agent = Agent(
        env,
        lambda: rmc.ActorCritic(
            lambda: cores.make_core(given),
            env.num_actions,
            kind,
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


def core_input() -> str:
  """Returns which kind of input the core gets, as in `cores.Input`."""
  kind = cores.CORES[FLAGS.core].inputs[0]
  return "flat" if kind == "rows" and FLAGS.flatten else kind


def make_experiment(
    make_environment: Callable[[], Environment],
) -> experiment.Experiment:
  """Returns the experiment in which an agent learns.

  Args:
    make_environment: makes the environment that the flags ask for.

  Raises:
    UsageError: if the flags do not go together.
  """
  with program.usage_errors():
    env = make_environment()
  agent = make_agent(env)
  optimizer = optimizer_flags.make_optimizer(
      loss_terms=FLAGS.batch_size * FLAGS.unroll_length
  )
  init_key, act_key, level_key = jax.random.split(
      jax.random.key(FLAGS.seed), 3
  )

  def init():
    params = experiment.initial_params(lambda: jax.jit(agent.init)(init_key))
    carry = jax.jit(agent.initial_carry, static_argnames="batch_size")(
        params, level_key, batch_size=FLAGS.batch_size
    )
    return training.init_state(params, optimizer, act_key, carry)

  def evaluate(state):
    played = agent.play(state.params, held_out_key(), FLAGS.eval_episodes)
    described = describe(played)
    found = {f"eval_{name}": mean for name, (mean, *_) in described.items()}
    return found | {"eval_return_standard_error": described["return"][1]}

  return experiment.Experiment(
      network=agent.network,
      init=init,
      loss_fn=agent.loss_fn,
      optimizer=optimizer,
      evaluate=evaluate,
      summarize=functools.partial(agent.summarize, FLAGS.batch_size),
      free_flags=("eval_episodes",),
  )


def report(summary: dict[str, Any]):
  """Adds the speed to a run's summary, prints it and draws the curve.

  Args:
    summary: what `training.train` returned.
  """
  speed = summary["steps_per_second"] * FLAGS.batch_size * FLAGS.unroll_length
  summary["environment_steps_per_second"] = round(speed, 1)
  experiment.write_summary(summary)
  print(f"{speed:,.0f} environment steps a second, without compilation")
  reports = training.read_metrics(FLAGS.workdir)
  ended = any("return" in report for report in reports)
  plots.learning_curve(FLAGS.workdir, "return" if ended else "eval_return")
