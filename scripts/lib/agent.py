"""An agent that acts and learns on the device, beside its environments.

One update takes T steps in each of B environments and then one step of
gradient descent, all in one compiled program (Anakin: Hessel et al. 2021). What
is learnt is IMPALA's actor-critic (Espeholt et al. 2018): V-trace targets, the
policy gradient with a bonus for entropy, and values; the losses are means over
steps and environments.

What an environment draws depends on its own key, and the actions of
environment i in update t on the seed, t and i.

Glossary of shapes:
  - B: environments; of evaluation, episodes.
  - T: steps of a trajectory.
  - A: actions.
"""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

import rmc
from rmc import training
from tasks.environments import Environment, StepType, TimeStep

# By name: values, and which of them count, arrays of one shape.
Metrics = dict[str, tuple[jax.Array, jax.Array]]


class Trajectory(NamedTuple):
  """What was seen and done in T steps.

  Attributes:
    core_state: the core's state before the first of them, a nest of `[B, ...]`.
    timesteps: the first observation and all that followed, `[B, T + 1, ...]`.
    actions: what was done, int32 `[B, T]`.
    log_probs: log-probabilities of that under the policy that did it, `[B, T]`.
  """

  core_state: Any
  timesteps: TimeStep
  actions: jax.Array
  log_probs: jax.Array


class Carry(NamedTuple):
  """What goes from update to update, `[B, ...]`.

  Attributes:
    env_state: states of the environments.
    timestep: what the agent sees and has not acted on yet.
    core_state: the core's state before that.
    episode_return: sum of the rewards of the episodes so far, `[B]`.
    episode_length: their steps so far, `[B]`.
    queue: trajectories to learn from, the oldest first.
  """

  env_state: Any
  timestep: TimeStep
  core_state: Any
  episode_return: jax.Array
  episode_length: jax.Array
  queue: tuple[Trajectory, ...]


class _Apply(NamedTuple):
  """The methods of `rmc.ActorCritic`, with parameters."""

  initial_state: Callable[..., Any]
  step: Callable[..., Any]
  unroll: Callable[..., Any]
  inspect: Callable[..., Any]


class Agent:
  """A network, an environment, and how the one learns from the other.

  Attributes:
    env: the environment.
    network: `init` takes a key and observations `[B, ...]`; `apply` has the
      methods of `rmc.ActorCritic`.
  """

  def __init__(
      self,
      env: Environment,
      build: Callable[[], rmc.ActorCritic],
      *,
      unroll_length: int = 40,
      discount: float = 0.99,
      entropy_cost: float = 0.005,
      value_cost: float = 0.5,
      actor_lag: int = 0,
  ):
    """Constructs an Agent.

    Args:
      env: the environment.
      build: makes the network, inside a transform.
      unroll_length: T.
      discount: of a reward one step ahead.
      entropy_cost: weight of the entropy.
      value_cost: weight of the values' squared errors, halved.
      actor_lag: how many updates pass between acting and learning from it, as
        with actors apart from the learner. The first updates then learn
        nothing.
    """
    self.env = env
    self._unroll_length = unroll_length
    self._discount = discount
    self._entropy_cost = entropy_cost
    self._value_cost = value_cost
    self._actor_lag = actor_lag

    def methods():
      model = build()

      def init(observation):
        size = len(observation)
        state = model.initial_state(size)
        return model.step(observation, state, jnp.zeros([size], bool))

      return init, _Apply(
          model.initial_state, model.step, model, model.inspect
      )

    self.network = hk.without_apply_rng(hk.multi_transform(methods))
    self.play = jax.jit(
        self._play, static_argnames=("num_episodes", "greedy")
    )

  def init(self, key: jax.Array) -> hk.Params:
    """Returns the network's parameters."""
    shape = self.env.observation_shape
    return self.network.init(key, jnp.zeros([1, *shape], jnp.float32))

  def initial_carry(
      self, params: hk.Params, key: jax.Array, batch_size: int
  ) -> Carry:
    """Returns what the first update begins with.

    Args:
      params: the network's parameters.
      key: of all that the environments will draw.
      batch_size: B.

    Returns:
      The carry, with B first steps of episodes.
    """
    indices = jnp.arange(batch_size, dtype=jnp.int32)
    carry = self._begin(params, training.example_keys(key, indices))
    _, trajectory, _ = jax.eval_shape(self._act, params, key, indices, carry)
    # Nothing but first steps, from none to the next of which there is anything
    # to learn.
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), trajectory)
    return carry._replace(queue=(nothing,) * self._actor_lag)

  def loss_fn(
      self, params: hk.Params, indices: jax.Array, carry: Carry, key: jax.Array
  ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Carry]]:
    """Acts, and returns the loss of what there is to learn from.

    Args:
      params: the network's parameters.
      indices: of the environments at hand, `[B]`.
      carry: what the last update left.
      key: of the update.

    Returns:
      As `training.LossFn`; `summarize` makes a report from these metrics.
    """
    carry, trajectory, episodes = self._act(
        jax.lax.stop_gradient(params), key, indices, carry
    )
    trajectory, *queue = (*carry.queue, trajectory)
    loss, losses, steps = self._loss(params, trajectory)
    metrics = losses | _sums(steps) | _sums(episodes)
    return loss, (metrics, carry._replace(queue=tuple(queue)))

  def summarize(
      self, batch_size: int, step: int, updates: int, means: dict[str, float]
  ) -> dict[str, float]:
    """Makes the metrics of a report from means over updates.

    Args:
      batch_size: B.
      step: updates done.
      updates: how many of them the report is of.
      means: of the metrics of `loss_fn`.

    Returns:
      Losses; means over steps, of entropy, importance ratio and so on; and over
      the episodes that ended, if any did. `environment_steps` are all calls of
      the environments' `step`, with those that lead from the end of an episode
      to the next.
    """
    metrics = {"environment_steps": step * batch_size * self._unroll_length}
    for name, value in means.items():
      if name.endswith(_SUM):
        name = name.removesuffix(_SUM)
        weight = means[name + _WEIGHT]
        if weight:
          metrics[name] = value / weight
      elif not name.endswith(_WEIGHT):
        metrics[name] = value
    episodes = round(batch_size * updates * means["return" + _WEIGHT])
    metrics["episodes"] = episodes
    if episodes:
      variance = _take_variance(metrics, "return")
      metrics["return_standard_error"] = math.sqrt(
          variance / max(episodes - 1, 1)
      )
    if "target" in metrics:
      unexplained = _take_variance(metrics, "error")
      variance = _take_variance(metrics, "target")
      if variance:
        metrics["explained_variance"] = 1 - unexplained / variance
      del metrics["error"], metrics["target"]
    return metrics

  def _begin(self, params: hk.Params, keys: jax.Array) -> Carry:
    """Begins an episode with each key, `[B]`, with an empty queue."""
    size = len(keys)
    # Checkpoints hold arrays of numbers, so the states do too.
    env_state, timestep = jax.vmap(self.env.reset)(jax.random.key_data(keys))
    return Carry(
        env_state=env_state,
        timestep=timestep,
        core_state=self.network.apply.initial_state(params, size),
        episode_return=jnp.zeros([size]),
        episode_length=jnp.zeros([size], jnp.int32),
        queue=(),
    )

  def _advance(
      self,
      choose: Callable[[jax.Array, jax.Array], jax.Array],
      params: hk.Params,
      keys: jax.Array,
      carry: Carry,
  ) -> tuple[Carry, tuple[jax.Array, jax.Array]]:
    """Takes a step in each environment.

    Args:
      choose: chooses an action, given a key and logits `[A]`.
      params: the network's parameters.
      keys: one for each environment, `[B]`.
      carry: what is so far.

    Returns:
      What is then; and actions and their log-probabilities, `[B]`.
    """
    (logits, _), core_state = self.network.apply.step(
        params,
        carry.timestep.observation,
        carry.core_state,
        carry.timestep.step_type == StepType.FIRST,
    )
    actions = jax.vmap(choose)(keys, logits).astype(jnp.int32)
    log_probs = _of_actions(jax.nn.log_softmax(logits), actions)
    env_state, timestep = jax.vmap(self.env.step)(carry.env_state, actions)
    begins = timestep.step_type == StepType.FIRST
    carry = carry._replace(
        env_state=env_state,
        timestep=timestep,
        core_state=core_state,
        episode_return=jnp.where(
            begins, 0.0, carry.episode_return + timestep.reward
        ),
        episode_length=jnp.where(begins, 0, carry.episode_length + 1),
    )
    return carry, (actions, log_probs)

  def _act(
      self, params: hk.Params, key: jax.Array, indices: jax.Array, carry: Carry
  ) -> tuple[Carry, Trajectory, Metrics]:
    """Takes T steps; returns also metrics of what ended in them, `[T, B]`."""

    def step(carry, keys):
      carry, done = self._advance(
          jax.random.categorical, params, keys, carry
      )
      return carry, (carry.timestep, *done, self._episode_metrics(carry))

    keys = jax.vmap(
        lambda key: jax.random.split(key, self._unroll_length), out_axes=1
    )(training.example_keys(key, indices))  # [T, B]
    last, (timesteps, actions, log_probs, metrics) = jax.lax.scan(
        step, carry, keys
    )
    timesteps = jax.tree.map(
        lambda first, rest: jnp.concatenate([first[None], rest]),
        carry.timestep,
        timesteps,
    )
    seen = jax.tree.map(_swap, (timesteps, actions, log_probs))
    return last, Trajectory(carry.core_state, *seen), metrics

  def _episode_metrics(self, carry: Carry) -> Metrics:
    """Returns metrics of episodes, which count where one ends, `[B]`."""
    ended = carry.timestep.step_type == StepType.LAST
    metrics = {
        "return": (carry.episode_return, ended),
        "return_squared": (carry.episode_return**2, ended),
        "length": (carry.episode_length.astype(jnp.float32), ended),
    }
    outcome = jax.vmap(self.env.outcome)(carry.env_state, carry.timestep)
    for name, (value, counts) in outcome.items():
      metrics[name] = (value, counts & ended)
    return metrics

  def _loss(
      self, params: hk.Params, trajectory: Trajectory
  ) -> tuple[jax.Array, dict[str, jax.Array], Metrics]:
    """Returns the loss, its parts, and metrics of the steps, `[T, B]`."""
    timesteps, actions, actor_log_probs = jax.tree.map(_swap, trajectory[1:])
    begins = timesteps.step_type == StepType.FIRST  # [T + 1, B]
    (logits, values), _ = self.network.apply.unroll(
        params, timesteps.observation, trajectory.core_state, begins
    )
    log_policy = jax.nn.log_softmax(logits[:-1])  # [T, B, A]
    log_probs = _of_actions(log_policy, actions)
    # From the end of an episode to the next the action is none of the agent's.
    counts = ~begins[1:]
    weights = counts.astype(values.dtype)
    ratios = jnp.exp(log_probs - actor_log_probs)
    learn = rmc.vtrace(
        values[:-1],
        values[1:],
        timesteps.reward[1:],
        self._discount * timesteps.discount[1:],
        # Not a product, since a ratio that counts for nothing may be infinite.
        jnp.where(counts, ratios, 0.0),
    )
    errors = learn.targets - values[:-1]
    entropy = -jnp.sum(jnp.exp(log_policy) * log_policy, axis=-1)
    # One of another shape would be broadcast, silently.
    chex.assert_equal_shape(
        [log_probs, weights, entropy, errors, learn.advantages]
    )
    losses = {
        "policy_loss": -jnp.mean(learn.advantages * log_probs),
        "value_loss": jnp.mean(errors**2) / 2,
        "entropy_loss": -jnp.mean(weights * entropy),
    }
    loss = (
        losses["policy_loss"]
        + self._value_cost * losses["value_loss"]
        + self._entropy_cost * losses["entropy_loss"]
    )
    steps = {
        "entropy": entropy,
        "importance_ratio": ratios,
        # Not those that only rounding takes above 1.
        "clipped_ratios": (ratios > 1.001).astype(ratios.dtype),
        "error": errors,
        "error_squared": errors**2,
        "target": learn.targets,
        "target_squared": learn.targets**2,
    }
    return loss, losses, {name: (x, counts) for name, x in steps.items()}

  def _play(
      self,
      params: hk.Params,
      key: jax.Array,
      num_episodes: int,
      greedy: bool = False,
  ) -> Metrics:
    """Plays episodes to their end.

    Args:
      params: the network's parameters.
      key: of levels and actions.
      num_episodes: how many, each on a level of its own.
      greedy: whether to take the likeliest action, rather than draw one.

    Returns:
      Metrics of the episodes, `[num_episodes]`.
    """
    level_key, action_key = jax.random.split(key)
    carry = self._begin(params, jax.random.split(level_key, num_episodes))
    keys = jax.random.split(action_key, num_episodes)
    choose = jax.random.categorical
    if greedy:
      choose = lambda key, logits: jnp.argmax(logits)  # noqa: E731

    def step(loop):
      number, carry, metrics, done = loop
      step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)
      carry, _ = self._advance(choose, params, step_keys, carry)
      latest = self._episode_metrics(carry)
      metrics = jax.tree.map(
          lambda old, new: jnp.where(done, old, new), metrics, latest
      )
      done |= latest["return"][1]
      return number + 1, carry, metrics, done

    none = jax.tree.map(jnp.zeros_like, self._episode_metrics(carry))
    done = jnp.zeros([num_episodes], bool)
    return jax.lax.while_loop(
        lambda loop: ~jnp.all(loop[-1]), step, (jnp.int32(0), carry, none, done)
    )[2]


def describe(metrics: Metrics) -> dict[str, tuple[float, float, int]]:
  """Returns means over episodes, of metrics that `Agent.play` returned.

  Args:
    metrics: values and whether they count, by name.

  Returns:
    For each metric that counts in any episode: its mean, the standard error of
    that (0 of a single episode) and in how many episodes it counts.
  """
  described = {}
  for name, (values, counts) in metrics.items():
    values = np.asarray(values, np.float64)[np.asarray(counts)]
    if values.size and name != "return_squared":
      error = 0.0
      if values.size > 1:
        error = float(values.std(ddof=1)) / math.sqrt(values.size)
      described[name] = (float(values.mean()), error, values.size)
  return described


_SUM, _WEIGHT = ":sum", ":weight"


def _sums(metrics: Metrics) -> dict[str, jax.Array]:
  """Returns sums over steps and means over environments, of `[T, B]`."""
  sums = {}
  for name, (values, counts) in metrics.items():
    counted = jnp.where(counts, values, 0.0)
    counts = counts.astype(values.dtype)
    sums[name + _SUM] = jnp.mean(jnp.sum(counted, axis=0))
    sums[name + _WEIGHT] = jnp.mean(jnp.sum(counts, axis=0))
  return sums


def _take_variance(metrics: dict[str, float], name: str) -> float:
  """Takes a mean of squares out of metrics; returns the variance."""
  return max(metrics.pop(f"{name}_squared") - metrics[name] ** 2, 0.0)


def _of_actions(table: jax.Array, actions: jax.Array) -> jax.Array:
  """Returns the entries `[...]` of `[..., A]` that belong to actions."""
  return jnp.take_along_axis(table, actions[..., None], axis=-1)[..., 0]


def _swap(x: jax.Array) -> jax.Array:
  return jnp.swapaxes(x, 0, 1)
