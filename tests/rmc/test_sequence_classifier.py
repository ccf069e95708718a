"""SequenceClassifier: the last output, lengths, and what it is made of."""

import json

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rmc
from tests.helpers import make_param_tree
from tests.helpers.small_cores import (
  BATCH,
  CASES,
  apply,
  assert_close,
  draw_params,
)

DEFAULT = CASES["default"]
STEPS = 3
CORES = {"rmc": DEFAULT.core, "lstm": lambda: hk.LSTM(4)}


def classify(core=DEFAULT.core, **kwargs):
  return lambda inputs: rmc.SequenceClassifier(
      core, 7, mlp_sizes=(6, 8), **kwargs
  )(inputs)


def test_parameters():
  golden = json.loads(make_param_tree.PATH.read_text())
  assert make_param_tree.of_classifier() == golden["sequence_classifier"]


@pytest.mark.parametrize("core", CORES)
def test_classifier(core):
  """The last output through an MLP with a last ReLU and a linear layer."""
  inputs = DEFAULT.inputs(STEPS, BATCH)
  params = draw_params(classify(CORES[core]), inputs)
  logits = apply(classify(CORES[core]), params, inputs)
  assert logits.shape == (BATCH, 7)
  assert logits.dtype == np.float32

  def last_output(inputs):
    made = CORES[core]()
    outputs, _ = hk.dynamic_unroll(made, inputs, made.initial_state(BATCH))
    return outputs[-1]

  prefix = "sequence_classifier/~/"
  own = {name.removeprefix(prefix): value for name, value in params.items()}
  assert all(name.startswith(prefix) for name in params)
  hidden = np.asarray(apply(last_output, own, inputs))
  for layer in ("mlp/~/linear_0", "mlp/~/linear_1"):
    hidden = np.maximum(hidden @ own[layer]["w"] + own[layer]["b"], 0)
  expected = hidden @ own["logits"]["w"] + own["logits"]["b"]
  assert_close(np.asarray(logits), expected, atol=1e-5)


def test_inspect():
  """The logits of a call, and what each step of the core tells."""
  inputs = DEFAULT.inputs(STEPS, BATCH)
  params = draw_params(classify(), inputs)

  def inspect(inputs):
    model = rmc.SequenceClassifier(DEFAULT.core, 7, mlp_sizes=(6, 8))
    return model.inspect(inputs)

  def steps(inputs):
    core, found = DEFAULT.core(), []
    memory = core.initial_state(BATCH)
    for x in inputs:
      _, memory, info = core.step(x, memory)
      found.append(info)
    return jax.tree.map(lambda *x: jnp.stack(x), *found)

  logits, info = apply(inspect, params, inputs)
  assert_close(logits, apply(classify(), params, inputs))
  prefix = "sequence_classifier/~/"
  own = {name.removeprefix(prefix): value for name, value in params.items()}
  assert_close(info, apply(steps, own, inputs))


@pytest.mark.parametrize("core", CORES)
def test_classifier_of_sequences_that_differ_in_length(core):
  """Each is classified as it would be by itself, whatever comes after."""
  inputs = DEFAULT.inputs(STEPS, BATCH)
  network = classify(CORES[core])
  params = draw_params(network, inputs)
  lengths = jnp.arange(BATCH, dtype=jnp.int32) % STEPS + 1

  def with_lengths(inputs):
    model = rmc.SequenceClassifier(CORES[core], 7, mlp_sizes=(6, 8))
    return model(inputs, lengths)

  logits = apply(with_lengths, params, inputs)
  for b, length in enumerate(lengths.tolist()):
    alone = apply(network, params, inputs[:length, b : b + 1])
    assert_close(np.asarray(logits[b]), np.asarray(alone[0]), atol=1e-5)


def test_a_length_beyond_the_end_is_the_end():
  inputs = DEFAULT.inputs(STEPS, BATCH)
  params = draw_params(classify(), inputs)

  def with_lengths(inputs):
    lengths = [STEPS + 3] * BATCH
    return rmc.SequenceClassifier(CORES["rmc"], 7, (6, 8))(inputs, lengths)

  assert_close(
      apply(with_lengths, params, inputs), apply(classify(), params, inputs)
  )


def test_no_classes():
  with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
    hk.transform(
        lambda: rmc.SequenceClassifier(CORES["rmc"], num_classes=0)
    ).init(None)


def test_default_read_out():
  """Four layers of 256, as in the paper."""

  def fn(inputs):
    return rmc.SequenceClassifier(DEFAULT.core, 7)(inputs)

  shapes = make_param_tree.shapes(fn, DEFAULT.inputs(STEPS, BATCH))
  biases = [
      shapes[f"sequence_classifier/~/mlp/~/linear_{i}/b"] for i in range(4)
  ]
  assert biases == ["[256]"] * 4
  assert "sequence_classifier/~/mlp/~/linear_4/b" not in shapes


def test_gradients_reach_every_parameter():
  inputs = DEFAULT.inputs(STEPS, 8)
  params = draw_params(classify(), inputs)

  def loss(params):
    logits = hk.transform(classify()).apply(params, None, inputs)
    return jnp.sum(jax.nn.log_softmax(logits)[:, 0])

  for path, grad in jax.tree.leaves_with_path(jax.jit(jax.grad(loss))(params)):
    assert np.any(grad), path


@pytest.mark.parametrize("options", [{"remat": True}, {"unroll": 2}], ids=str)
def test_unroll_options(options):
  """They reach `rmc.unroll` and change no number."""
  inputs = DEFAULT.inputs(STEPS, BATCH)
  params = draw_params(classify(), inputs)
  with_options = classify(**options)
  assert_close(
      apply(with_options, params, inputs), apply(classify(), params, inputs)
  )
  apply_fn = hk.without_apply_rng(hk.transform(with_options)).apply
  jaxpr = str(jax.make_jaxpr(apply_fn)(params, inputs))
  # Without the option a policy says what is kept for the backward pass.
  assert ("policy=None" in jaxpr) == ("remat" in options)
  assert ("unroll=2" in jaxpr) == ("unroll" in options)
