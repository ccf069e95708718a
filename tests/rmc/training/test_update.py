"""The update step alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rmc import training


def quadratic(params, batch, carry, key):
  """A loss whose gradient is the batch's mean."""
  loss = params["w"] * jnp.mean(batch)
  noise = jax.random.normal(key)
  return loss, ({"noise": noise}, carry + 1)


def make(optimizer=None, **options):
  optimizer = optimizer or optax.sgd(0.5)
  state = training.init_state(
      {"w": jnp.float32(2.0)},
      optimizer,
      jax.random.key(3),
      carry=jnp.zeros([4]),
  )
  return state, training.make_update(quadratic, optimizer, **options)


def _rmsprop():
  return optax.rmsprop(0.1, momentum=0.9)


def test_one_step_by_hand():
  state, update = make()
  batch = jnp.array([1.0, 2.0, 3.0, 6.0])
  state, metrics = update(state, batch)
  assert int(state.step) == 1
  assert float(state.params["w"]) == 2.0 - 0.5 * 3.0
  np.testing.assert_array_equal(state.carry, np.ones(4))
  assert float(metrics["loss"]) == 6.0
  assert float(metrics["grad_norm"]) == 3.0
  assert float(metrics["finite"]) == 1.0
  assert set(metrics) == {"loss", "grad_norm", "finite", "noise"}


def test_an_update_draws_from_the_seed_and_its_number_alone():
  state, update = make()
  batch = jnp.ones([4])
  expected = [
      float(jax.random.normal(jax.random.fold_in(jax.random.key(3), t)))
      for t in range(3)
  ]
  drawn = []
  for _ in range(3):
    state, metrics = update(state, batch)
    drawn.append(float(metrics["noise"]))
  assert drawn == expected
  assert len(set(drawn)) == 3
  jumped, metrics = update(make()[0]._replace(step=jnp.int32(2)), batch)
  assert float(metrics["noise"]) == expected[2]
  assert jnp.array_equal(
      jax.random.key_data(jumped.key), jax.random.key_data(state.key)
  )


def test_example_keys_do_not_depend_on_the_company():
  key = jax.random.key(0)
  whole = jax.random.key_data(
      training.example_keys(key, jnp.arange(8, dtype=jnp.int32))
  )
  part = jax.random.key_data(
      training.example_keys(key, jnp.array([5, 2], jnp.int32))
  )
  np.testing.assert_array_equal(part, whole[np.array([5, 2])])
  assert len(np.unique(whole, axis=0)) == 8


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_flagged(value):
  state, update = make()
  _, metrics = update(state, jnp.array([1.0, value]))
  assert float(metrics["finite"]) == 0.0


def test_a_gradient_that_is_not_finite_is_flagged_though_the_loss_is():
  def loss_fn(params, batch, carry, key):
    del batch, key
    return jnp.sqrt(params["w"]), ({}, carry)

  optimizer = optax.sgd(0.5)
  state = training.init_state(
      {"w": jnp.float32(0.0)}, optimizer, jax.random.key(0)
  )
  update = training.make_update(loss_fn, optimizer, skip_nonfinite=True)
  state, metrics = update(state, None)
  assert float(metrics["loss"]) == 0.0
  assert float(metrics["finite"]) == 0.0
  assert float(state.params["w"]) == 0.0


def test_skipping_leaves_parameters_and_optimizer():
  state, update = make(_rmsprop(), skip_nonfinite=True)
  state, _ = update(state, jnp.ones([4]))
  after, metrics = update(state, jnp.array([1.0, np.nan]))
  assert float(metrics["finite"]) == 0.0
  assert int(after.step) == int(state.step) + 1
  np.testing.assert_array_equal(after.carry, np.full(4, 2.0))
  for part in ("params", "opt_state"):
    for new, old in zip(
        jax.tree.leaves(getattr(after, part)),
        jax.tree.leaves(getattr(state, part)),
        strict=True,
    ):
      np.testing.assert_array_equal(new, old)


def test_skipping_lets_a_queue_go_on():
  """A batch that is learnt from an update after it is seen, as by an actor."""

  def loss_fn(params, batch, carry, key):
    del key
    return params["w"] * jnp.mean(carry["seen"]), ({}, {"seen": batch})

  optimizer = optax.sgd(0.5)
  state = training.init_state(
      {"w": jnp.float32(2.0)},
      optimizer,
      jax.random.key(0),
      carry={"seen": jnp.zeros([2, 1])},
  )
  update = training.make_update(loss_fn, optimizer, skip_nonfinite=True)
  finite = []
  for batch in ([1, 1], [np.nan, 1], [2, 2], [3, 3]):
    state, metrics = update(state, jnp.float32(batch)[:, None])
    finite.append(float(metrics["finite"]))
  assert finite == [1, 1, 0, 1]
  assert float(state.params["w"]) == 2.0 - 0.5 * (1 + 2)


def test_skipping_keeps_what_examples_had_before_they_were_not_finite():
  def loss_fn(params, batch, carry, key):
    del key
    count, memory = carry
    memory = memory + batch[:, None]
    return params["w"] * jnp.sum(memory), ({}, (count + 1, memory))

  optimizer = optax.sgd(0.5)
  state = training.init_state(
      {"w": jnp.float32(2.0)},
      optimizer,
      jax.random.key(0),
      carry=(jnp.zeros([3], jnp.int32), jnp.zeros([3, 2])),
  )
  update = training.make_update(loss_fn, optimizer, skip_nonfinite=True)
  state, metrics = update(state, jnp.array([1.0, np.inf, 3.0]))
  assert float(metrics["finite"]) == 0.0
  count, memory = state.carry
  np.testing.assert_array_equal(count, [1, 0, 1])
  np.testing.assert_array_equal(memory, [[1, 1], [0, 0], [3, 3]])


def test_skipping_changes_nothing_where_all_is_finite():
  states = []
  for skip_nonfinite in (False, True):
    state, update = make(_rmsprop(), skip_nonfinite=skip_nonfinite)
    for _ in range(3):
      state, _ = update(state, jnp.ones([4]))
    states.append(training.to_numpy(state))
  for x, y in zip(*map(jax.tree.leaves, states), strict=True):
    np.testing.assert_array_equal(x, y)


def test_to_numpy_takes_new_keys_in_one_place_alone():
  state, _ = make()
  state = state._replace(carry={"env": [jax.random.key(0)]})
  with pytest.raises(ValueError, match=r"state.carry\['env'\]\[0\] .*PRNGKey"):
    training.to_numpy(state)


def test_to_numpy_takes_keys_of_both_kinds():
  state, _ = make()
  typed = training.to_numpy(state)
  raw = training.to_numpy(
      state._replace(key=jax.random.key_data(state.key))
  )
  for x, y in zip(jax.tree.leaves(typed), jax.tree.leaves(raw), strict=True):
    assert isinstance(x, np.ndarray) and x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)
