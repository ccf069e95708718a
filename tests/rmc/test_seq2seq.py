"""Seq2Seq: lengths, decoders, and what it is made of."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rmc
from tests.helpers.small_cores import CASES, apply, assert_close, draw_params

VOCAB = 5
MLP = (6, 8)
LENGTHS = np.array([4, 1, 3], np.int32)
OUTPUT_LENGTHS = np.array([2, 3, 1], np.int32)
CORES = {
    "rmc": CASES["memory_gate"].core,
    "lstm": lambda: hk.deep_rnn_with_skip_connections(
        [hk.LSTM(4), hk.LSTM(3)]
    ),
}


def make(core="rmc", **options):
  return rmc.Seq2Seq(CORES[core], VOCAB, MLP, **options)


def call(core="rmc", **options):
  return lambda *args: make(core, **options)(*args)


def draw_batch(seed=0):
  random = np.random.default_rng(seed)
  inputs = random.integers(VOCAB, size=(4, 3)).astype(np.int32)
  told = random.integers(VOCAB, size=(3, 3)).astype(np.int32)
  told[1, 1] = told[0, 2] = -1
  return inputs, LENGTHS, told, OUTPUT_LENGTHS


def plainly(core, share_core=True):
  """Each example alone, without padding, a step at a time."""

  def fn(inputs, lengths, told, output_lengths):
    encoder = CORES[core]()
    decoder = encoder if share_core else CORES[core]()
    mlp = hk.nets.MLP(MLP, activate_final=True, name="mlp")
    head = hk.Linear(VOCAB, name="logits")
    table = jnp.eye(VOCAB)
    answers = []
    for b in range(len(lengths)):
      state = encoder.initial_state(1)
      for token in inputs[: lengths[b], b]:
        _, state = encoder(table[None, token], state)
      logits = []
      for token in told[: output_lengths[b], b]:
        x = jnp.zeros([VOCAB]) if token < 0 else table[token]
        output, state = decoder(x[None], state)
        logits.append(head(mlp(output))[0])
      answers.append(jnp.stack(logits))
    return answers

  return fn


@pytest.mark.parametrize("share_core", [True, False])
@pytest.mark.parametrize("core", CORES)
def test_against_single_steps(core, share_core):
  batch = draw_batch()
  params = draw_params(call(core, share_core=share_core), *batch)
  assert all(name.startswith("seq2seq/~/") for name in params)
  logits = apply(call(core, share_core=share_core), params, *batch)
  assert logits.shape == (3, 3, VOCAB)
  assert logits.dtype == np.float32
  own = {name.removeprefix("seq2seq/~/"): x for name, x in params.items()}
  fn = hk.without_apply_rng(hk.transform(plainly(core, share_core))).apply
  for b, expected in enumerate(fn(own, *batch)):
    assert_close(logits[: OUTPUT_LENGTHS[b], b], expected, atol=1e-5)


def test_sharing_halves_the_cores():
  batch = draw_batch()
  shared = set(draw_params(call(), *batch))
  apart = set(draw_params(call(share_core=False), *batch))
  more = apart - shared
  assert shared < apart
  assert all("/relational_memory_1/" in name for name in more)
  assert len(more) == sum("/relational_memory/" in name for name in shared)


def test_default_read_out():
  """Four layers of 256, as in the paper."""

  def fn(*batch):
    return rmc.Seq2Seq(CORES["lstm"], VOCAB)(*batch)

  shapes = jax.eval_shape(
      hk.transform(fn).init, jax.random.key(0), *draw_batch()
  )
  sizes = [x["b"].shape for name, x in shapes.items() if "/mlp/" in name]
  assert sizes == [(256,)] * 4


def test_padding_does_not_matter():
  inputs, lengths, told, output_lengths = draw_batch()
  params = draw_params(call(), inputs, lengths, told, output_lengths)
  others = draw_batch(seed=1)
  steps = np.arange(4)[:, None]
  inputs_2 = np.where(steps < lengths, inputs, others[0])
  told_2 = np.where(steps[:3] < output_lengths, told, others[2])
  assert np.any(inputs_2 != inputs)
  assert np.any(told_2 != told)
  first = apply(call(), params, inputs, lengths, told, output_lengths)
  second = apply(call(), params, inputs_2, lengths, told_2, output_lengths)
  np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("core", CORES)
def test_generate_is_told_its_own_tokens(core):
  """It equals a call that is told what it generated, a step late."""
  inputs, lengths, told, _ = draw_batch()
  everything = np.full(3, 3, np.int32)
  params = draw_params(call(core), inputs, lengths, told, everything)
  # Weights large enough for what was read and told to decide.
  params = jax.tree.map(lambda x: 3 * x, params)
  start = 2
  logits = apply(
      lambda inputs, lengths: make(core).generate(inputs, lengths, start, 3),
      params,
      inputs,
      lengths,
  )
  tokens = np.argmax(logits, axis=2).astype(np.int32)
  assert len(np.unique(tokens)) > 1
  told = np.concatenate([np.full((1, 3), start, np.int32), tokens[:-1]])
  expected = apply(call(core), params, inputs, lengths, told, everything)
  assert_close(logits, expected, atol=1e-5)


def test_gradients_reach_every_parameter():
  batch = draw_batch()
  fn = call(share_core=False)
  params = draw_params(fn, *batch)

  def loss(params):
    logits = hk.transform(fn).apply(params, None, *batch)
    return jnp.sum(jax.nn.log_softmax(logits)[0, :, 0])

  for path, grad in jax.tree.leaves_with_path(jax.jit(jax.grad(loss))(params)):
    assert np.any(grad), path


def test_unroll_options():
  """They reach both unrolls and change no number."""
  batch = draw_batch()
  params = draw_params(call(), *batch)
  with_options = call(remat=True, unroll=2)
  assert_close(
      apply(with_options, params, *batch), apply(call(), params, *batch)
  )
  fn = hk.without_apply_rng(hk.transform(with_options)).apply
  assert str(jax.make_jaxpr(fn)(params, *batch)).count("unroll=2") == 2
