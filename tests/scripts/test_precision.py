"""The flag --precision: which arrays are bfloat16, and that it learns."""

from absl.testing import flagsaver
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rmc
from scripts.lib import cores, run_flags
from tests.helpers import jaxprs

STEPS, BATCH = 3, 16


@pytest.fixture
def parse():
  """Parses flags as a program does, and undoes it."""
  with flagsaver.flagsaver():
    yield lambda *arguments: run_flags.parse(["program", *arguments])
  hk.mixed_precision.clear_policy(hk.Linear)


def classify(inputs):
  core = cores.make_core
  return rmc.SequenceClassifier(core, num_classes=2, mlp_sizes=[8])(inputs)


@pytest.mark.parametrize("core", ["rmc", "lstm"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_types(parse, core, precision):
  parse(f"--precision={precision}", f"--core={core}", "--head_size=4")
  network = hk.without_apply_rng(hk.transform(classify))
  inputs = jnp.zeros([STEPS, BATCH, 5])
  params = jax.eval_shape(network.init, jax.random.key(0), inputs)
  assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("float32")}
  jaxpr = jax.make_jaxpr(network.apply)(params, inputs)
  assert jaxpr.out_avals[0].dtype == jnp.float32
  by_weights, carries = set(), set()
  for equation in jaxprs.equations(jaxpr.jaxpr):
    if equation.primitive.name == "dot_general":
      if equation.invars[1].aval.ndim == 2:
        by_weights.add(str(equation.invars[1].aval.dtype))
    elif equation.primitive.name == "scan":
      carries |= {str(aval.dtype) for aval in jaxprs.carries(equation)}
  assert by_weights == {precision}
  assert carries == {"float32"}


def test_bfloat16_learns(parse):
  """Whether the last number is positive."""
  parse("--precision=bfloat16", "--mem_slots=2", "--head_size=4")
  network = hk.without_apply_rng(hk.transform(classify))
  inputs = np.random.default_rng(0).normal(size=(STEPS, 64, 1))
  inputs = inputs.astype(np.float32)
  labels = (inputs[-1, :, 0] > 0).astype(np.int32)
  params = jax.jit(network.init)(jax.random.key(0), inputs)
  optimizer = optax.sgd(0.3, momentum=0.9)

  def loss(params):
    return jnp.mean(
        optax.softmax_cross_entropy_with_integer_labels(
            network.apply(params, inputs), labels
        )
    )

  @jax.jit
  def update(params, state):
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(grads, state)
    return value, optax.apply_updates(params, updates), state

  state, losses = optimizer.init(params), []
  for _ in range(60):
    value, params, state = update(params, state)
    losses.append(float(value))
  assert losses[-1] < 0.5 * losses[0]
  assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("float32")}
