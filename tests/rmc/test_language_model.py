"""LanguageModel: windows, dropout, and what it is made of."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rmc
from tests.helpers.small_cores import CASES, apply, assert_close, draw_params

VOCAB, SIZE, STEPS, BATCH = 11, 12, 5, 3
CORES = {"rmc": CASES["memory_gate"].core, "lstm": lambda: hk.LSTM(4)}
SOFTMAXES = {
    "full": lambda: rmc.Softmax(VOCAB, SIZE),
    "untied": lambda: rmc.Softmax(VOCAB, SIZE, tied=False),
    "adaptive": lambda: rmc.AdaptiveSoftmax(VOCAB, SIZE, [4], factor=3),
}


def make(core="rmc", softmax="full", **options):
  return rmc.LanguageModel(CORES[core], SOFTMAXES[softmax], **options)


def call(keys=None, core="rmc", **options):
  """Reads texts from the initial state."""

  def fn(tokens, targets):
    model = make(core, **options)
    state = model.initial_state(tokens.shape[1])
    return model(tokens, targets, state, keys)

  return fn


def draw_words(seed=0):
  random = np.random.default_rng(seed)
  words = random.integers(VOCAB, size=(STEPS + 1, BATCH)).astype(np.int32)
  return words[:-1], words[1:]


@pytest.mark.parametrize("softmax", SOFTMAXES)
@pytest.mark.parametrize("core", CORES)
def test_call_is_many_steps(core, softmax):
  """Each word's log-probability is that of a step, the state too."""
  tokens, targets = draw_words()
  options = {"core": core, "softmax": softmax}
  params = draw_params(call(**options), tokens, targets)
  log_probs, state = apply(call(**options), params, tokens, targets)
  assert log_probs.shape == (STEPS, BATCH)

  def steps(tokens, targets):
    model = make(core, softmax)
    state = model.initial_state(BATCH)
    found = []
    for word, target in zip(tokens, targets, strict=True):
      table, state = model.step(word, state)  # [B, V]
      found.append(jnp.take_along_axis(table, target[:, None], axis=1)[:, 0])
    return jnp.stack(found), state

  expected = apply(steps, params, tokens, targets)
  assert_close((log_probs, state), expected, atol=1e-5)


def test_state_is_carried():
  """Two windows are one text."""
  tokens, targets = draw_words()
  params = draw_params(call(), tokens, targets)
  whole = apply(call(), params, tokens, targets)

  def halves(tokens, targets):
    model = make()
    state = model.initial_state(BATCH)
    first, state = model(tokens[:2], targets[:2], state)
    second, state = model(tokens[2:], targets[2:], state)
    return jnp.concatenate([first, second]), state

  assert_close(apply(halves, params, tokens, targets), whole)


@pytest.mark.parametrize("softmax", SOFTMAXES)
def test_loss(softmax):
  """It is the mean of minus what a call finds, and so are its gradients."""
  tokens, targets = draw_words()
  keys = jax.random.split(jax.random.key(0), BATCH)
  fn = call(keys, softmax=softmax, output_dropout=0.3)
  params = draw_params(fn, tokens, targets)

  def loss(tokens, targets):
    model = make(softmax=softmax, output_dropout=0.3)
    return model.loss(tokens, targets, model.initial_state(BATCH), keys)

  def mean(tokens, targets):
    log_probs, state = fn(tokens, targets)
    return -jnp.mean(log_probs), state

  def gradients(fn):
    apply = hk.without_apply_rng(hk.transform(fn)).apply
    grad = jax.value_and_grad(apply, has_aux=True)
    return jax.jit(grad)(params, tokens, targets)

  assert_close(gradients(loss), gradients(mean))


@pytest.mark.parametrize("which", ["embedding_dropout", "output_dropout"])
def test_dropout_depends_on_the_example_alone(which):
  """An example's numbers are the same among others, and with other keys not."""
  tokens, targets = draw_words()
  rates = {"embedding_dropout": 0.0, "output_dropout": 0.0} | {which: 0.5}
  keys = jax.random.split(jax.random.key(0), BATCH)
  params = draw_params(call(), tokens, targets)
  whole, _ = apply(call(keys, **rates), params, tokens, targets)
  alone, _ = apply(
      call(keys[1:2], **rates), params, tokens[:, 1:2], targets[:, 1:2]
  )
  assert_close(alone[:, 0], whole[:, 1])
  other, _ = apply(call(keys[::-1], **rates), params, tokens, targets)
  assert np.all(other[:, 0] != whole[:, 0])
  assert_close(other[:, 1], whole[:, 1])
  without, _ = apply(call(**rates), params, tokens, targets)
  none, _ = apply(
      call(keys, embedding_dropout=0.0), params, tokens, targets
  )
  np.testing.assert_array_equal(without, none)


class Echo(hk.RNNCore):
  """Puts out what it is given."""

  def initial_state(self, batch_size):
    return jnp.zeros([] if batch_size is None else [batch_size])

  def __call__(self, inputs, state):
    return inputs, state


class Ones:
  """Embeds each word as ones, and returns what it is given to project."""

  embedding_size = 100

  def embed(self, tokens):
    return jnp.ones([*tokens.shape, self.embedding_size])

  def log_probs(self, outputs, targets):
    del targets
    return outputs


def dropped(**rates):
  """Returns ones, [50, 4, 100], after the dropout of a model."""

  def fn(tokens, keys):
    model = rmc.LanguageModel(Echo, Ones, output_projection=False, **rates)
    return model(tokens, tokens, model.initial_state(4), keys)[0]

  keys = jax.random.split(jax.random.key(0), 4)
  return apply(fn, {}, np.zeros([50, 4], np.int32), keys)


def test_embeddings_alone_are_dropped_by_default():
  """At a rate of a half, by the mask that the rate alone gives."""
  by_default = dropped()
  np.testing.assert_allclose(np.unique(by_default), [0, 2])
  expected = dropped(embedding_dropout=0.5, output_dropout=0.0)
  np.testing.assert_array_equal(by_default, expected)


def test_dropout_rate():
  """Entries are left out at the rate, the rest is scaled up to the mean.

  Embeddings and outputs each have a mask of their own.
  """
  embeddings = dropped(embedding_dropout=0.2)
  outputs = dropped(embedding_dropout=0.0, output_dropout=0.2)
  for x in (embeddings, outputs):
    np.testing.assert_allclose(np.unique(x), [0, 1.25])
    np.testing.assert_allclose(np.mean(x == 0, axis=(0, 2)), 0.2, atol=0.02)
  assert 0.25 < np.mean(embeddings != outputs) < 0.4


def test_without_projection():
  """The core's output must then be of an embedding's size."""
  tokens, targets = draw_words()

  def shapes(core):
    fn = hk.transform(call(core=core, output_projection=False)).init
    return jax.eval_shape(fn, jax.random.key(0), tokens, targets)

  with pytest.raises(ValueError, match="4 features and an embedding 12"):
    shapes("lstm")
  CORES["lstm of 12"] = lambda: hk.LSTM(12)
  try:
    names = shapes("lstm of 12")
  finally:
    del CORES["lstm of 12"]
  assert set(names) == {
      "language_model/~/lstm/linear",
      "language_model/~/softmax",
  }


def test_gradients_reach_every_parameter():
  tokens, targets = draw_words()
  keys = jax.random.split(jax.random.key(0), BATCH)
  fn = call(keys, softmax="adaptive")
  params = draw_params(fn, tokens, targets)

  def loss(params):
    return jnp.sum(hk.transform(fn).apply(params, None, tokens, targets)[0])

  for path, grad in jax.tree.leaves_with_path(jax.jit(jax.grad(loss))(params)):
    assert np.any(grad), path


def test_unroll_options():
  """They reach the unroll and change no number."""
  batch = draw_words()
  params = draw_params(call(), *batch)
  with_options = call(remat=True, unroll=2)
  assert_close(
      apply(with_options, params, *batch), apply(call(), params, *batch)
  )
  fn = hk.without_apply_rng(hk.transform(with_options)).apply
  assert "unroll=2" in str(jax.make_jaxpr(fn)(params, *batch))


@pytest.mark.parametrize("rate", [-0.1, 1.0])
@pytest.mark.parametrize("which", ["embedding_dropout", "output_dropout"])
def test_wrong_rates(which, rate):
  with pytest.raises(ValueError, match=f"{which} must be .* got {rate}"):
    hk.transform(call(**{which: rate})).init(jax.random.key(0), *draw_words())
