"""Vectors recorded from the original, and how closely to meet them.

`tests/golden` holds what dm-sonnet 1.36 on TensorFlow 1.15 computed: float32
in `NAME.npz` and the same case in float64 in `NAME_f64.npz`. `dnc_*` is what
DeepMind's released DNC computed on the same installation.
"""

import contextlib
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

DIRECTORY = pathlib.Path(__file__).parents[1] / "golden"


class Golden(NamedTuple):
  """One recorded case.

  Attributes:
    config: how it was made.
    arrays: everything recorded, by name.
    is_float64: whether it was recorded in float64.
  """

  config: dict[str, Any]
  arrays: dict[str, np.ndarray]
  is_float64: bool

  def under(self, prefix: str) -> dict[str, np.ndarray]:
    """Returns the arrays whose name begins with `prefix/`, without it."""
    prefix += "/"
    return {
        name.removeprefix(prefix): value
        for name, value in self.arrays.items()
        if name.startswith(prefix)
    }

  def precision(self) -> contextlib.AbstractContextManager:
    """Returns a context in which JAX computes in the case's precision."""
    return jax.enable_x64(self.is_float64)


def load(name: str) -> Golden:
  """Loads a case by its file's name without the suffix."""
  with np.load(DIRECTORY / f"{name}.npz") as file:
    arrays = dict(file)
  config = json.loads(str(arrays.pop("config")))
  return Golden(config, arrays, name.endswith("_f64"))


def with_f64(names):
  """Returns the names of both precisions of each case."""
  return [name + suffix for name in names for suffix in ("", "_f64")]


def assert_near(actual, expected, atol, what, relative_to_largest=False):
  """Asserts equality to an absolute tolerance, or one of the largest entry."""
  if relative_to_largest:
    atol = atol * np.max(np.abs(expected)) + 1e-8 * (atol > 1e-8)
  np.testing.assert_allclose(
      np.asarray(actual), expected, rtol=0, atol=atol, err_msg=what
  )


def tensorflow_adam(
    learning_rate, beta1=0.9, beta2=0.999, epsilon=1e-8
) -> optax.GradientTransformation:
  """Adam as TensorFlow 1 has it.

  Epsilon stands beside the uncorrected root, and the powers of the betas are
  float32 products whatever the type of the parameters.
  """
  betas = np.array([beta1, beta2], np.float32)

  def init(params):
    zeros = jax.tree.map(jnp.zeros_like, params)
    return jnp.ones_like(betas), zeros, zeros

  def update(grads, state, params=None):
    del params
    powers, mu, nu = state
    powers = powers * betas
    mu = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, mu, grads)
    nu = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, nu, grads)
    power1, power2 = powers.astype(jnp.result_type(float))
    rate = learning_rate * jnp.sqrt(1 - power2) / (1 - power1)
    updates = jax.tree.map(
        lambda m, v: -rate * m / (jnp.sqrt(v) + epsilon), mu, nu
    )
    return updates, (powers, mu, nu)

  return optax.GradientTransformation(init, update)


def without_noise(name: str, value: np.ndarray, core: dict[str, Any]):
  """Leaves out the entries of a parameter whose gradient is rounding noise.

  The key part of a qkv LayerNorm's offset adds the same to every logit of a
  softmax, so its true gradient is 0, and Adam divides noise by noise.

  Args:
    name: the variable's name in Sonnet.
    value: its value.
    core: the constructor's arguments.
  """
  layer = name.split("/")[-2]
  number = int(layer.rpartition("_")[-1]) if layer[-1].isdigit() else 0
  if not layer.startswith("layer_norm") or number % 3 or name[-4:] != "beta":
    return value
  key_size = core.get("key_size") or core["head_size"]
  value = np.reshape(value, [core["num_heads"], -1])
  return np.delete(value, np.s_[key_size : 2 * key_size], axis=1)
