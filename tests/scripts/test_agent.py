"""The agent: what it remembers, what it learns from, and that it learns.

Glossary of shapes:
  - B: environments.
  - T: steps of an unroll.
"""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rmc
from rmc import training
from scripts.lib.agent import Agent, _sums, describe
from tasks.environments import StepType
from tests.helpers.cue_environment import Counter, FeedForward, Recall

FIRST, MID, LAST = StepType
B = 8


def relational_memory():
  return rmc.RelationalMemory(2, 8, 2, treat_input_as_matrix=True)


CORES = {
    "rmc": relational_memory,
    "lstm": lambda: hk.LSTM(16),
    "feed_forward": lambda: FeedForward(16),
    "counter": Counter,
}


def make_agent(core, env, **options):
  """Returns an agent with a small network."""
  return Agent(
      env,
      lambda: rmc.ActorCritic(
          CORES[core],
          env.num_actions,
          "rows" if core == "rmc" else "flat",
          channels=(4,),
          strides=(1,),
          kernel_shape=1,
      ),
      **options,
  )


def begin(agent, batch_size=B):
  """Returns parameters in which everything matters, and the first carry."""
  shapes = jax.eval_shape(agent.init, jax.random.key(0))
  rng = np.random.default_rng(0)
  params = jax.tree.map(
      lambda x: rng.normal(size=x.shape).astype(x.dtype) / 2, shapes
  )
  carry = jax.jit(agent.initial_carry, static_argnums=2)(
      params, jax.random.key(2), batch_size
  )
  return params, carry


def train(agent, num_updates, *, devices=1, learning_rate=1e-3, batch_size=B):
  """Trains; returns the last state and the metrics of each update."""
  optimizer = optax.adam(learning_rate)
  params = jax.jit(agent.init)(jax.random.key(0))
  _, carry = begin(agent, batch_size)
  state = training.init_state(params, optimizer, jax.random.key(1), carry)
  parallel = training.DataParallel("auto", jax.devices()[:devices])
  indices = parallel.local_indices(batch_size)
  metrics = []
  with jax.numpy_dtype_promotion("standard"):  # optax asks for it.
    if devices == 1:
      update = jax.jit(training.make_update(agent.loss_fn, optimizer))
    else:
      update = parallel.make_update(agent.loss_fn, optimizer)
      state = parallel.place_state(training.to_numpy(state))
      indices = parallel.place_batch(indices)
    for _ in range(num_updates):
      state, figures = update(state, indices)
      metrics.append(figures)
  if devices > 1:
    state = parallel.fetch_state(state)
  metrics = jax.device_get(metrics)
  return state, [jax.tree.map(float, figures) for figures in metrics]


# What it remembers.


def test_two_episodes_in_a_table():
  """A core that counts its steps begins anew with each episode."""
  agent = make_agent("counter", Recall(delay=1), unroll_length=8)
  params, carry = begin(agent)
  indices = jnp.arange(B, dtype=jnp.int32)
  act = jax.jit(agent._act)
  table = [
      [FIRST, MID, LAST, FIRST, MID, LAST, FIRST, MID, LAST],
      [LAST, FIRST, MID, LAST, FIRST, MID, LAST, FIRST, MID],
  ]
  # The state before a step: it is the core that begins anew, in the step.
  before = [0, 3 - 1]
  for i, types in enumerate(table):
    assert carry.core_state.tolist() == [[before[i]]] * B
    carry, unroll, _ = act(params, jax.random.key(i), indices, carry)
    assert unroll.timesteps.step_type.tolist() == [types] * B
    heads = jax.jit(agent.network.apply.unroll)(
        params,
        jnp.swapaxes(unroll.timesteps.observation, 0, 1),
        unroll.core_state,
        jnp.swapaxes(unroll.timesteps.step_type, 0, 1) == FIRST,
    )[0]
    counts = {FIRST: 0.0, MID: 1.0, LAST: 2.0}
    value = params["actor_critic/~/value"]
    for t, kind in enumerate(types):
      expected = counts[kind] * value["w"][0, 0] + value["b"][0]
      np.testing.assert_allclose(heads[1][t], expected, rtol=1e-6)


@pytest.mark.parametrize("core", ["rmc", "lstm"])
def test_learning_sees_what_acting_saw(core):
  """Without a lag all importance ratios are 1, in episodes cut by unrolls."""
  agent = make_agent(core, Recall(delay=3), unroll_length=7)
  _, figures = train(agent, 3)
  for metrics in figures:
    weight = metrics["importance_ratio:weight"]
    # Of five steps one leads to the next episode.
    assert 5 <= weight <= 6
    assert metrics["importance_ratio:sum"] == pytest.approx(weight, abs=1e-4)


def test_lag():
  """The first updates learn nothing, and then from older policies."""
  agent = make_agent("lstm", Recall(delay=2), unroll_length=4, actor_lag=2)
  _, figures = train(agent, 5, learning_rate=0.1)
  for metrics in figures[:2]:
    assert metrics["loss"] == metrics["grad_norm"] == 0
    assert metrics["importance_ratio:weight"] == 0
  ratios = [
      metrics["importance_ratio:sum"] / metrics["importance_ratio:weight"]
      for metrics in figures[2:]
  ]
  # Nothing was learnt while the first was on its way.
  assert ratios[0] == pytest.approx(1, abs=1e-5)
  assert abs(ratios[2] - 1) > 1e-3
  assert figures[4]["clipped_ratios:sum"] > 0


# What it learns from.


@functools.cache
def seen(truncated):
  """Returns an agent, its parameters and an unroll."""
  agent = make_agent(
      "lstm",
      Recall(delay=2, truncated=truncated),
      unroll_length=9,
      discount=0.9,
      entropy_cost=0.3,
      value_cost=0.7,
  )
  params, carry = begin(agent)
  indices = jnp.arange(B, dtype=jnp.int32)
  _, unroll, _ = jax.jit(agent._act)(params, jax.random.key(0), indices, carry)
  return agent, params, unroll


@pytest.mark.parametrize("truncated", [False, True])
def test_loss_by_hand(truncated):
  """Each episode by itself: returns, and a value where it is cut off."""
  agent, params, unroll = seen(truncated)
  time_major = jax.tree.map(
      lambda x: np.swapaxes(x, 0, 1), unroll.timesteps
  )
  (logits, values), _ = agent.network.apply.unroll(
      params,
      time_major.observation,
      unroll.core_state,
      time_major.step_type == FIRST,
  )
  log_policy = np.asarray(jax.nn.log_softmax(logits))
  values = np.asarray(values)
  policy_loss = value_loss = entropy = 0.0
  for b in range(B):
    target = values[-1, b]
    for t in reversed(range(9)):
      kind = time_major.step_type[t + 1, b]
      if kind == FIRST:
        continue  # What is done at the end of an episode does nothing.
      if kind == LAST:
        target = values[t + 1, b] if truncated else 0.0
      target = time_major.reward[t + 1, b] + 0.9 * target
      row = log_policy[t, b]
      advantage = target - values[t, b]
      policy_loss -= advantage * row[unroll.actions[b, t]]
      value_loss += advantage**2 / 2
      entropy -= np.sum(np.exp(row) * row)
  expected = (policy_loss + 0.7 * value_loss - 0.3 * entropy) / (9 * B)
  loss, losses, _ = agent._loss(params, unroll)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_allclose(
      losses["policy_loss"], policy_loss / (9 * B), rtol=1e-5
  )
  np.testing.assert_allclose(
      losses["entropy_loss"], -entropy / (9 * B), rtol=1e-5
  )


def test_actions_at_the_end_of_an_episode_teach_nothing():
  agent, params, unroll = seen(False)
  ends = unroll.timesteps.step_type[:, :-1] == LAST
  assert ends.any() and not ends.all()

  def loss(*arguments):
    loss, _, steps = agent._loss(*arguments)
    return loss, _sums(steps)

  grad = jax.jit(jax.grad(loss, has_aux=True))

  def grads(where):
    actions = jnp.where(where, 1 - unroll.actions, unroll.actions)
    # Ratios above all numbers at the end of an episode, below 1 elsewhere.
    log_probs = jnp.where(ends, -1e3, 0.0)
    log_probs = jnp.where(where, log_probs, unroll.log_probs)
    changed = unroll._replace(actions=actions, log_probs=log_probs)
    grads, sums = grad(params, changed)
    assert all(jnp.isfinite(x) for x in sums.values())
    return jax.tree.leaves(grads)

  same, other = grads(ends), grads(~ends)
  for x, y, z in zip(grads(ends & ~ends), same, other, strict=True):
    np.testing.assert_array_equal(x, y)
    assert np.any(x != z)


def test_figures():
  """Means over the episodes that ended, whatever update they ended in."""
  agent = make_agent("lstm", Recall(delay=2), unroll_length=10)
  returns = [[1.0, -1.0, 1.0], [1.0]]
  targets = np.array([1.0, 3.0, 2.0, 6.0])
  errors = np.array([0.5, -0.5, 1.0, 0.0])
  batch_size = 4
  means = {"loss": 0.25}
  for name, values, count in (
      ("return", np.concatenate(returns), 4),
      ("return_squared", np.concatenate(returns) ** 2, 4),
      ("level", np.zeros(0), 0),
      ("target", targets, 4),
      ("target_squared", targets**2, 4),
      ("error", errors, 4),
      ("error_squared", errors**2, 4),
  ):
    means[name + ":sum"] = values.sum() / (2 * batch_size)
    means[name + ":weight"] = count / (2 * batch_size)
  figures = agent.summarize(batch_size, 7, 2, means)
  error = np.std([1, -1, 1, 1], ddof=1) / 2
  assert figures == pytest.approx({
      "loss": 0.25,
      "environment_steps": 7 * 4 * 10,
      "episodes": 4,
      "return": 0.5,
      "return_standard_error": error,
      "explained_variance": 1 - np.var(errors) / np.var(targets),
  })


# The same on any device.


def test_eight_devices_equal_one():
  agent = make_agent("lstm", Recall(delay=2), unroll_length=5, actor_lag=1)
  one, figures = train(agent, 4, batch_size=16)
  eight, others = train(agent, 4, batch_size=16, devices=8)
  assert len({metrics["loss"] for metrics in figures}) == 4
  for metrics, other in zip(figures, others, strict=True):
    assert metrics.keys() == other.keys()
    for name, value in metrics.items():
      np.testing.assert_allclose(
          other[name], value, rtol=1e-4, atol=1e-5, err_msg=name
      )
  # Adam divides gradients that are 0 but for rounding by themselves.
  jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=2e-3),
      one.params,
      eight.params,
  )
  jax.tree.map(
      np.testing.assert_array_equal,
      (one.carry.env_state, one.carry.timestep),
      (eight.carry.env_state, eight.carry.timestep),
  )
  assert len(np.unique(one.carry.env_state.key, axis=0)) == 16


# That it learns.


@pytest.mark.parametrize(
    "core, learning_rate",
    [("rmc", 1e-3), ("lstm", 5e-3), ("feed_forward", 5e-3)],
)
def test_memory(core, learning_rate):
  """A cue is recalled after ten steps, by an agent with a memory alone."""
  agent = make_agent(
      core, Recall(delay=10), unroll_length=12, entropy_cost=0.01
  )
  state, _ = train(agent, 400, learning_rate=learning_rate, batch_size=32)
  for greedy in (True, False):
    played = agent.play(
        state.params, jax.random.key(3), 512, greedy=greedy
    )
    mean, error, count = describe(played)["return"]
    assert count == 512
    if core == "feed_forward":
      assert abs(mean) < 4 * error + 0.05
    else:
      assert mean > 0.9


class RightAnswer(Recall):
  """The answer is always 1."""

  def reset(self, key):
    state = super().reset(key)[0]._replace(cue=jnp.int32(1))
    return state, self._timestep(state, jnp.float32(0))


def test_episodes_are_worth_the_same_in_training_and_in_evaluation():
  """The first, those after it, and those played, of a frozen policy."""
  agent = make_agent("counter", RightAnswer(delay=2), unroll_length=16)
  size = 512
  params, carry = begin(agent, size)
  # At step n of an episode answer 1 has the log-odds n - 1; asked at n = 2.
  params["actor_critic/~/policy"] = {
      "w": jnp.array([[0.0, 1.0]]), "b": jnp.array([0.0, -1.0])
  }  # fmt: skip
  expected = np.tanh(1 / 2)
  indices = jnp.arange(size, dtype=jnp.int32)
  _, _, figures = jax.jit(agent._act)(params, jax.random.key(6), indices, carry)
  returns, counts = (np.asarray(x) for x in figures["return"])  # [T, B]
  # Three steps, and one to the next episode.
  np.testing.assert_array_equal(np.flatnonzero(counts[:, 0]), [2, 6, 10, 14])
  played = agent.play(params, jax.random.key(7), size)["return"][0]
  for found in (returns[2], returns[6::4], np.asarray(played)):
    error = ((1 - expected**2) / found.size) ** 0.5
    assert abs(found.mean() - expected) < 4 * error


def test_play():
  """Episodes to their end, each on a level of its own."""
  agent = make_agent("lstm", Recall(delay=3))
  params, _ = begin(agent)
  params["actor_critic/~/policy"] = {
      "w": jnp.zeros([16, 2]), "b": jnp.array([0.0, 9.0])
  }  # fmt: skip
  key = jax.random.key(5)
  played = agent.play(params, key, 40, greedy=True)
  level_key, _ = jax.random.split(key)
  keys = jax.random.key_data(jax.random.split(level_key, 40))
  states, _ = jax.vmap(agent.env.reset)(keys)
  returns, counts = played["return"]
  np.testing.assert_array_equal(returns, 2.0 * np.asarray(states.cue) - 1)
  assert 0 < states.cue.sum() < 40 and counts.all()
  assert played["length"][0].tolist() == [4] * 40
  mean, error, count = describe(played)["return"]
  np.testing.assert_allclose(mean, returns.mean())
  np.testing.assert_allclose(error, returns.std(ddof=1) / 40**0.5, rtol=1e-6)
  assert count == 40
