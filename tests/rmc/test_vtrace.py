"""V-trace against its definition, a loop, n-step returns and rlax."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rmc

STEPS, BATCH = 7, 3
NAMES = ("v_tm1", "v_t", "r_t", "discount_t", "rho_tm1")


@functools.cache
def sequences(on_policy=False):
  """Returns arguments `[T, B]`, in which some episodes end."""
  rng = np.random.default_rng(0)
  values = rng.normal(size=(STEPS + 1, BATCH)).astype(np.float32)
  discounts = np.float32(0.9) * (rng.uniform(size=(STEPS, BATCH)) < 0.8)
  rho = np.exp(rng.normal(size=(STEPS, BATCH))).astype(np.float32)
  return {
      "v_tm1": values[:-1],
      "v_t": values[1:],
      "r_t": rng.normal(size=(STEPS, BATCH)).astype(np.float32),
      "discount_t": discounts.astype(np.float32),
      "rho_tm1": np.ones_like(rho) if on_policy else rho,
  }


def by_definition(v_tm1, v_t, r_t, discount_t, rho_tm1, lambda_, bar, pg_bar):
  """Sums the products of the paper's equation 1 for one example, `[T]`."""
  c = lambda_ * np.minimum(1, rho_tm1)
  rho = np.minimum(bar, rho_tm1)
  targets = []
  for s in range(STEPS):
    total, weight = v_tm1[s], 1.0
    for t in range(s, STEPS):
      delta = rho[t] * (r_t[t] + discount_t[t] * v_t[t] - v_tm1[t])
      total += weight * delta
      weight *= discount_t[t] * c[t]
    targets.append(total)
  advantages = []
  for s in range(STEPS):
    following = targets[s + 1] if s + 1 < STEPS else v_t[s]
    ahead = lambda_ * following + (1 - lambda_) * v_t[s]
    advantage = r_t[s] + discount_t[s] * ahead - v_tm1[s]
    advantages.append(min(pg_bar, rho_tm1[s]) * advantage)
  return np.array(targets), np.array(advantages)


SETTINGS = [(1.0, 1.0, 1.0), (0.7, 1.5, 0.8), (0.0, 2.0, 3.0)]


@pytest.mark.parametrize("lambda_, bar, pg_bar", SETTINGS)
def test_definition(lambda_, bar, pg_bar):
  arguments = sequences()
  actual = jax.jit(
      functools.partial(
          rmc.vtrace, lambda_=lambda_, clip_rho=bar, clip_pg_rho=pg_bar
      )
  )(**arguments)
  for b in range(BATCH):
    expected = by_definition(
        *(arguments[name][:, b].astype(np.float64) for name in NAMES),
        lambda_,
        bar,
        pg_bar,
    )
    np.testing.assert_allclose(actual.targets[:, b], expected[0], atol=1e-5)
    np.testing.assert_allclose(actual.advantages[:, b], expected[1], atol=1e-5)


def test_defaults():
  """Nothing is mixed, and both ratios are clipped at 1."""
  arguments = sequences()
  explicit = rmc.vtrace(**arguments, lambda_=1.0, clip_rho=1.0, clip_pg_rho=1.0)
  jax.tree.map(
      np.testing.assert_array_equal, rmc.vtrace(**arguments), explicit
  )


def test_on_policy_targets_are_n_step_returns():
  arguments = sequences(on_policy=True)
  actual = rmc.vtrace(**arguments)
  returns = arguments["v_t"][-1]
  for t in reversed(range(STEPS)):
    returns = arguments["r_t"][t] + arguments["discount_t"][t] * returns
    np.testing.assert_allclose(actual.targets[t], returns, atol=1e-5)
    np.testing.assert_allclose(
        actual.advantages[t], returns - arguments["v_tm1"][t], atol=1e-5
    )


@pytest.mark.parametrize("name", ["discount_t", "rho_tm1"])
def test_nothing_comes_from_beyond_a_cut(name):
  """Neither after a discount of 0 nor after a ratio of 0."""
  cut = 3
  arguments = {key: value.copy() for key, value in sequences().items()}
  arguments[name][cut] = 0
  before = rmc.vtrace(**arguments)
  for key in ("r_t", "v_tm1"):
    arguments[key][cut + 1 :] += 5
  arguments["v_t"][cut + 1 :] += 5
  after = rmc.vtrace(**arguments)
  for x, y in zip(before, after, strict=True):
    np.testing.assert_array_equal(x[: cut + 1], y[: cut + 1])
    assert np.any(x[cut + 1 :] != y[cut + 1 :])
  if name == "rho_tm1":
    np.testing.assert_array_equal(
        after.targets[cut], arguments["v_tm1"][cut]
    )
    np.testing.assert_array_equal(after.advantages[cut], np.zeros(BATCH))


def test_no_gradient():
  arguments = sequences()

  def total(arguments):
    return sum(jnp.sum(x) for x in rmc.vtrace(**arguments))

  for grad in jax.grad(total)(arguments).values():
    assert not np.any(grad)


def test_numbers_may_be_traced():
  """They may be learned; a gradient reaches them, though not the values."""

  def total(numbers):
    return sum(jnp.sum(x) for x in rmc.vtrace(**sequences(), **numbers))

  numbers = {"lambda_": 0.9, "clip_rho": 0.8, "clip_pg_rho": 0.7}
  value, grads = jax.jit(jax.value_and_grad(total))(numbers)
  np.testing.assert_allclose(value, total(numbers), rtol=1e-6)
  assert all(grads.values())


def test_a_wider_lambda():
  arguments = {
      name: jnp.asarray(x, jnp.bfloat16) for name, x in sequences().items()
  }
  with jax.numpy_dtype_promotion("standard"):
    narrow = rmc.vtrace(**arguments, lambda_=0.75)
    wide = rmc.vtrace(**arguments, lambda_=np.float32(0.75))
  for x, y in zip(narrow, wide, strict=True):
    assert x.dtype == jnp.bfloat16 and y.dtype == jnp.float32
    np.testing.assert_allclose(x.astype(jnp.float32), y, rtol=0.1, atol=0.1)


def test_a_sequence_without_a_batch():
  arguments = sequences()
  whole = rmc.vtrace(**arguments)
  alone = rmc.vtrace(**{name: x[:, 1] for name, x in arguments.items()})
  for x, y in zip(whole, alone, strict=True):
    np.testing.assert_allclose(x[:, 1], y, atol=1e-6)


@pytest.mark.parametrize("lambda_, bar, pg_bar", SETTINGS)
def test_rlax(lambda_, bar, pg_bar):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Of what it imports.
    rlax = pytest.importorskip("rlax")
  arguments = sequences()
  actual = rmc.vtrace(
      **arguments, lambda_=lambda_, clip_rho=bar, clip_pg_rho=pg_bar
  )
  for b in range(BATCH):
    with jax.numpy_dtype_promotion("standard"):
      expected = rlax.vtrace_td_error_and_advantage(
          *(arguments[name][:, b] for name in NAMES),
          lambda_=lambda_,
          clip_rho_threshold=bar,
          clip_pg_rho_threshold=pg_bar,
      )
    targets = arguments["v_tm1"][:, b] + expected.errors
    np.testing.assert_allclose(actual.targets[:, b], targets, atol=1e-6)
    np.testing.assert_allclose(
        actual.advantages[:, b], expected.pg_advantage, atol=1e-6
    )


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"r_t": np.zeros([STEPS, 1], np.float32)}, r"one shape \[T, ...\]"),
        ({name: np.zeros([0, 2], np.float32) for name in NAMES}, "at least 1"),
        ({name: np.float32(0) for name in NAMES}, "at least 1"),
        ({"lambda_": 1.5}, "lambda_ must be from 0 to 1, got 1.5"),
        ({"clip_rho": 0.0}, "clip_rho must be above 0, got 0.0"),
        ({"clip_pg_rho": -1.0}, "clip_pg_rho must be above 0, got -1.0"),
    ],
)
def test_wrong_arguments(wrong, message):
  with pytest.raises(ValueError, match=message):
    rmc.vtrace(**(sequences() | wrong))
