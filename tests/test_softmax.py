"""Softmaxes over many words, against dense ones in float64."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rmc
from rmc import softmax
from tests.small_cores import jit

STEPS, BATCH, SIZE, VOCAB = 7, 3, 32, 29
CUTOFFS = (5, 12)
# One step at a time, a part that does not divide the steps, all at once, more.
CHUNK_SIZES = (1, 3, 7, 100, None)


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def draw(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def draw_targets():
  """Returns words of which each is there at least once."""
  words = np.arange(STEPS * BATCH) * 10 % VOCAB
  return jnp.asarray(words.reshape(STEPS, BATCH))


def value_and_grads(function, *arguments):
  """Returns values and gradients of their sum, unevenly weighted."""

  def loss(*arguments):
    values = function(*arguments)
    return jnp.sum(values * draw(*values.shape, seed=9)), values

  grad = jax.grad(loss, range(len(arguments)), has_aux=True)
  return jit(grad)(*arguments)


def assert_near(actual, expected):
  for x, y in zip(
      jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    assert x.dtype == np.float64
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-10)


@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
def test_chunks_agree_with_dense(chunk_size):
  targets = draw_targets()
  arrays = (
      draw(STEPS, BATCH, SIZE),
      draw(VOCAB, SIZE, seed=1),
      draw(VOCAB, seed=2),
  )

  def chunked(outputs, weights, bias):
    return softmax.log_probs(outputs, weights, bias, targets, chunk_size)

  def dense(outputs, weights, bias):
    logits = jnp.einsum("tbd,vd->tbv", outputs, weights) + bias[None, None]
    probs = jnp.exp(logits) / jnp.sum(jnp.exp(logits), axis=2, keepdims=True)
    return jnp.sum(jnp.log(probs) * jax.nn.one_hot(targets, VOCAB), axis=2)

  assert_near(
      value_and_grads(chunked, *arrays), value_and_grads(dense, *arrays)
  )


def make(kind, tied=True, chunk_size=None):
  if kind == "full":
    return rmc.Softmax(VOCAB, SIZE, tied, chunk_size)
  return rmc.AdaptiveSoftmax(
      VOCAB, SIZE, CUTOFFS, tied=tied, chunk_size=chunk_size
  )


def both(kind, **options):
  """Uses embedding and softmax, as a network does."""

  def fn(outputs, tokens):
    module = make(kind, **options)
    return module.log_probs(outputs + module.embed(tokens), tokens[::-1])

  return hk.without_apply_rng(hk.transform(fn))


def draw_params(kind, tied=True):
  shapes = jax.eval_shape(
      both(kind, tied=tied).init,
      jax.random.key(0),
      draw(STEPS, BATCH, SIZE),
      draw_targets(),
  )
  (bundle,) = shapes.values()
  return {
      name: draw(*value.shape, seed=i) / 4
      for i, (name, value) in enumerate(sorted(bundle.items()))
  }


def dense_adaptive(params, tied):
  """Writes the factorisation out, as one matrix of embeddings and a table."""
  cuts = [*CUTOFFS, VOCAB]
  head = cuts[0]
  tables = [params["head_weights"][:head]]
  for i in range(2):
    tables.append(
        params[f"tail_{i}_weights"] @ params[f"tail_{i}_projection"]
    )
  shared = jnp.concatenate(tables)  # [V, D]

  def fn(outputs, tokens):
    embedding = shared if tied else params["embedding"]
    x = outputs + embedding[tokens]
    classes = x @ params["head_weights"].T + params["head_bias"][None, None]
    p_head = jnp.exp(classes) / jnp.sum(
        jnp.exp(classes), axis=2, keepdims=True
    )
    tables = [p_head[..., :head]]
    for i in range(2):
      logits = x @ shared[cuts[i] : cuts[i + 1]].T
      scores = jnp.exp(logits + params[f"tail_{i}_bias"][None, None])
      p_tail = scores / jnp.sum(scores, axis=2, keepdims=True)
      tables.append(p_head[..., head + i, None] * p_tail)
    table = jnp.log(jnp.concatenate(tables, axis=2))  # [T, B, V]
    return jnp.take_along_axis(table, tokens[::-1, :, None], axis=2)[..., 0]

  return fn


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk_size", [2, None])
def test_adaptive_agrees_with_dense(chunk_size, tied):
  """Values, and the gradients of all parameters and of the outputs."""
  params = draw_params("adaptive", tied)
  tokens = draw_targets()
  outputs = draw(STEPS, BATCH, SIZE)

  def adaptive(params, outputs):
    fn = both("adaptive", tied=tied, chunk_size=chunk_size).apply
    return fn({"adaptive_softmax": params}, outputs, tokens)

  def dense(params, outputs):
    return dense_adaptive(params, tied)(outputs, tokens)

  actual = value_and_grads(adaptive, params, outputs)
  assert_near(actual, value_and_grads(dense, params, outputs))
  assert all(np.any(grad) for grad in jax.tree.leaves(actual))


@pytest.mark.parametrize("kind", ["full", "adaptive"])
def test_all_log_probs(kind):
  """They sum to 1, and hold those of single words."""
  params = draw_params(kind)
  outputs = draw(STEPS, BATCH, SIZE)

  def fn(outputs, targets):
    module = make(kind)
    return module.all_log_probs(outputs), module.log_probs(outputs, targets)

  name = "softmax" if kind == "full" else "adaptive_softmax"
  apply = hk.without_apply_rng(hk.transform(fn)).apply
  table, picked = jit(apply)({name: params}, outputs, draw_targets())
  assert table.shape == (STEPS, BATCH, VOCAB)
  np.testing.assert_allclose(np.exp(table).sum(axis=2), 1, atol=1e-12)
  expected = np.take_along_axis(
      np.asarray(table), np.asarray(draw_targets())[..., None], axis=2
  )
  assert_near(picked, expected[..., 0])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["full", "adaptive"])
def test_embeddings_start_alike(kind, tied):
  """Rows are about 1 long, whichever part of the words they are of."""

  def fn(tokens):
    module = make(kind, tied)
    return module.log_probs(module.embed(tokens), tokens), module.embed(tokens)

  transformed = hk.without_apply_rng(hk.transform(fn))
  tokens = jnp.arange(VOCAB)
  params = jit(transformed.init)(jax.random.key(0), tokens)
  assert ("embedding" in next(iter(params.values()))) == (not tied)
  _, embeddings = jit(transformed.apply)(params, tokens)
  for part in np.split(np.asarray(embeddings), CUTOFFS):
    lengths = np.sqrt(np.mean(np.sum(part**2, axis=1)))
    assert 0.6 < lengths < 1.6


@pytest.mark.parametrize("size", [8, 16])
def test_logits_never_exist_at_once(size):
  """Memory of forward and backward does not grow with the steps."""
  vocab, batch, features = 2000, 4, 8
  outputs = jnp.zeros([size, batch, features], jnp.float32)
  weights = jnp.zeros([vocab, features], jnp.float32)
  bias = jnp.zeros([vocab], jnp.float32)
  targets = jnp.zeros([size, batch], jnp.int32)

  def loss(outputs, weights, bias):
    return jnp.sum(softmax.log_probs(outputs, weights, bias, targets, 1))

  compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(outputs, weights, bias)
  memory = compiled.compile().memory_analysis().temp_size_in_bytes
  logits = 4 * vocab * batch  # Bytes of one step's.
  assert memory < 8 * logits


@pytest.mark.parametrize(
    "max_logits, steps",
    [
        (1, 1),  # One step has more.
        (2 * BATCH * VOCAB - 1, 1),
        (3 * BATCH * VOCAB, 3),
        (6 * BATCH * VOCAB, 4),  # Two chunks, as even as can be.
        (STEPS * BATCH * VOCAB, STEPS),
    ],
)
@pytest.mark.parametrize("kind", ["full", "adaptive"])
def test_chunks_are_as_large_as_allowed(monkeypatch, kind, max_logits, steps):
  """Unless their size is given."""
  monkeypatch.setattr(softmax, "_MAX_LOGITS", max_logits)
  sizes = []
  log_softmax = jax.nn.log_softmax

  def watched(logits):
    sizes.append(logits.shape[0])
    return log_softmax(logits)

  monkeypatch.setattr(jax.nn, "log_softmax", watched)
  params, tokens = draw_params(kind), draw_targets()
  sizes.clear()  # What it took to make them.
  apply = both(kind).apply
  name = "softmax" if kind == "full" else "adaptive_softmax"
  jax.eval_shape(apply, {name: params}, draw(STEPS, BATCH, SIZE), tokens)
  assert set(sizes) == {steps}


@pytest.mark.parametrize(
    "cutoffs", [(), (0, 5), (5, 5), (7, 5), (5, VOCAB), (5, 6, 7)]
)
def test_wrong_cutoffs(cutoffs):
  def fn():
    rmc.AdaptiveSoftmax(VOCAB, SIZE, cutoffs)

  with pytest.raises(ValueError, match="cutoffs must .* got "):
    hk.transform(fn).init(None)


@pytest.mark.parametrize(
    "kind, arguments",
    [
        (rmc.Softmax, {"vocab_size": 0}),
        (rmc.Softmax, {"embedding_size": 0}),
        (rmc.AdaptiveSoftmax, {"cutoffs": (2,), "factor": 0}),
        (rmc.AdaptiveSoftmax, {"cutoffs": (2,), "factor": -2}),
        (rmc.AdaptiveSoftmax, {"cutoffs": (2,), "chunk_size": 0}),
        (rmc.Softmax, {"chunk_size": -1}),
    ],
)
def test_wrong_sizes(kind, arguments):
  name, value = list(arguments.items())[-1]

  def fn():
    sizes = {"vocab_size": VOCAB, "embedding_size": SIZE} | arguments
    return kind(**sizes).log_probs(jnp.zeros([2, SIZE]), jnp.zeros(2, int))

  with pytest.raises(ValueError, match=f"{name} must be at least 1, .*{value}"):
    hk.transform(fn).init(jax.random.key(0))


@pytest.mark.parametrize("kind", ["full", "adaptive"])
def test_what_is_no_word_has_no_probability(kind):
  def fn(outputs, targets):
    return make(kind).log_probs(outputs, targets)

  transformed = hk.without_apply_rng(hk.transform(fn))
  arguments = jnp.zeros([4, SIZE]), jnp.array([-1, 0, VOCAB - 1, VOCAB])
  params = transformed.init(jax.random.key(0), *arguments)
  with jax.debug_nans(False):
    values = transformed.apply(params, *arguments)
  assert np.isnan(values).tolist() == [True, False, False, True]


def test_adaptive_starts_even():
  """Without features every word is as likely, wherever it is."""

  def fn(outputs):
    return make("adaptive").all_log_probs(outputs)

  transformed = hk.without_apply_rng(hk.transform(fn))
  outputs = jnp.zeros([SIZE])
  params = transformed.init(jax.random.key(0), outputs)
  table = transformed.apply(params, outputs)
  np.testing.assert_allclose(table, np.full(VOCAB, -np.log(VOCAB)))
