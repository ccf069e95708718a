"""Softmaxes over many words, against dense ones in float64."""

import re

import haiku as hk
import jax
import jax.numpy as jnp
import jmp
import numpy as np
import pytest

import rmc
from rmc import softmax

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
  return jax.jit(grad)(*arguments)


def mean_and_grads(function, *arguments):
  """Returns a mean of minus values, times a factor, and its gradients."""

  def loss(*arguments):
    return -3 * jnp.mean(function(*arguments))

  return jax.jit(jax.value_and_grad(loss, range(len(arguments))))(*arguments)


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

  def loss(*arrays):
    return -softmax.cross_entropy(*arrays, targets, chunk_size)

  assert_near(
      value_and_grads(chunked, *arrays), value_and_grads(dense, *arrays)
  )
  expected = mean_and_grads(dense, *arrays)
  assert_near(mean_and_grads(loss, *arrays), expected)
  assert_near(-3 * jax.jit(loss)(*arrays), expected[0])


@pytest.mark.parametrize("shape", [(STEPS,), (STEPS, 2, BATCH)])
def test_other_axes(shape):
  """There may be any number between the steps and the features."""
  weights, bias = draw(VOCAB, SIZE, seed=1), draw(VOCAB, seed=2)
  outputs = draw(*shape, SIZE)
  targets = jnp.asarray(np.random.default_rng(3).integers(VOCAB, size=shape))

  def grads(function, chunk_size):
    def loss(*arrays):
      return function(*arrays, targets, chunk_size)

    return mean_and_grads(loss, outputs, weights, bias)

  expected = grads(softmax.log_probs, STEPS)
  assert_near(grads(softmax.log_probs, 2), expected)

  def minus_loss(*arguments):
    return -softmax.cross_entropy(*arguments)

  assert_near(grads(minus_loss, 2), expected)


def test_coarse_outputs():
  """The loss and the parameters' gradients are not as coarse as they are."""
  outputs = draw(STEPS, BATCH, SIZE).astype(jnp.bfloat16)
  arrays = [x.astype(jnp.float32) for x in (draw(VOCAB, SIZE), draw(VOCAB))]

  def grads(chunk_size):
    def loss(outputs, *arrays):
      return softmax.cross_entropy(outputs, *arrays, draw_targets(), chunk_size)

    with jax.numpy_dtype_promotion("standard"):
      return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(outputs, *arrays)

  value, (of_outputs, *of_arrays) = grads(2)
  expected, (expected_of_outputs, *expected_of_arrays) = grads(STEPS)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  for x, y in zip(of_arrays, expected_of_arrays, strict=True):
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-7)
  assert of_outputs.dtype == jnp.bfloat16
  x, y = (x.astype(np.float32) for x in (of_outputs, expected_of_outputs))
  last_place = 2**-7 * np.max(np.abs(y))  # They are rounded twice.
  np.testing.assert_allclose(x, y, rtol=0, atol=last_place)


def test_logits_are_made_once():
  """Of the three products backwards, two are left: the logits' is not one."""
  arrays = draw(STEPS, BATCH, SIZE), draw(VOCAB, SIZE), draw(VOCAB)

  def products(function):
    def loss(*arrays):
      return jnp.sum(function(*arrays, draw_targets(), 2))

    jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(*arrays)
    return str(jaxpr).count("dot_general[")

  assert products(softmax.log_probs) == 4
  assert products(softmax.cross_entropy) == 3


def test_sure_of_a_word():
  """Next to all probability is no difference of large numbers."""
  outputs = jnp.full([1, 1], 50.0, jnp.float32)
  weights = jnp.array([[1.0], [0.7]], jnp.float32)
  zeros = jnp.zeros(2, jnp.float32)
  value = softmax.log_probs(outputs, weights, zeros, jnp.zeros(1, int))
  np.testing.assert_allclose(value, [-np.exp(-15.0)], rtol=0, atol=2e-7)


def make(kind, tied=True, chunk_size=None):
  if kind == "full":
    return rmc.Softmax(VOCAB, SIZE, tied, chunk_size)
  return rmc.AdaptiveSoftmax(
      VOCAB, SIZE, CUTOFFS, tied=tied, chunk_size=chunk_size
  )


def both(kind, loss=False, **options):
  """Uses embedding and softmax, as a network does."""

  def fn(outputs, tokens):
    module = make(kind, **options)
    call = module.cross_entropy if loss else module.log_probs
    return call(outputs + module.embed(tokens), tokens[::-1])

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


@pytest.mark.parametrize("kind", ["full", "adaptive"])
@pytest.mark.parametrize("loss", [False, True])
def test_gradients_through_other_transforms(kind, loss):
  """JAX may ask for the backward pass when Haiku's transform has ended."""
  outputs, targets = draw(STEPS, BATCH, SIZE), draw_targets()
  params = {
      "softmax" if kind == "full" else "adaptive_softmax": draw_params(kind)
  }
  apply = both(kind, loss, chunk_size=2).apply

  def mean(params, outputs):
    return jnp.mean(apply(params, outputs, targets))

  def accumulated(params, outputs):
    def add(total, outputs):
      return total + mean(params, outputs), None

    total, _ = jax.lax.scan(add, 0.0, jnp.stack([outputs, outputs]))
    return total / 2

  expected = jax.jit(jax.grad(mean, (0, 1)))(params, outputs)
  for function in (jax.jit(mean), jax.checkpoint(mean), accumulated):
    assert_near(jax.grad(function, (0, 1))(params, outputs), expected)


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

  def loss(params, outputs):
    options = {"tied": tied, "chunk_size": chunk_size, "loss": True}
    fn = both("adaptive", **options).apply
    return -fn({"adaptive_softmax": params}, outputs, tokens)

  expected = mean_and_grads(dense, params, outputs)
  assert_near(mean_and_grads(loss, params, outputs), expected)


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
  table, picked = jax.jit(apply)({name: params}, outputs, draw_targets())
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
  params = jax.jit(transformed.init)(jax.random.key(0), tokens)
  assert ("embedding" in next(iter(params.values()))) == (not tied)
  _, embeddings = jax.jit(transformed.apply)(params, tokens)
  for part in np.split(np.asarray(embeddings), CUTOFFS):
    lengths = np.sqrt(np.mean(np.sum(part**2, axis=1)))
    assert 0.6 < lengths < 1.6


def test_embeddings_shrink_by_tails():
  """Four times each, unless told otherwise."""
  (shapes,) = jax.eval_shape(
      both("adaptive").init,
      jax.random.key(0),
      draw(STEPS, BATCH, SIZE),
      draw_targets(),
  ).values()
  found = {name: x.shape for name, x in shapes.items() if "bias" not in name}
  assert found == {
      "head_weights": (5 + 2, 32),
      "tail_0_weights": (7, 8),
      "tail_0_projection": (8, 32),
      "tail_1_weights": (17, 2),
      "tail_1_projection": (2, 32),
  }


@pytest.mark.parametrize("size", [8, 16])
@pytest.mark.parametrize("function", ["log_probs", "cross_entropy"])
def test_logits_never_exist_at_once(function, size):
  """Memory of forward and backward does not grow with the steps."""
  vocab, batch, features = 2000, 4, 8
  outputs = jnp.zeros([size, batch, features], jnp.float32)
  weights = jnp.zeros([vocab, features], jnp.float32)
  bias = jnp.zeros([vocab], jnp.float32)
  targets = jnp.zeros([size, batch], jnp.int32)

  def loss(outputs, weights, bias):
    call = getattr(softmax, function)
    return jnp.sum(call(outputs, weights, bias, targets, 1))

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
@pytest.mark.parametrize("loss", [False, True])
@pytest.mark.parametrize("kind", ["full", "adaptive"])
def test_chunks_are_as_large_as_allowed(
    monkeypatch, kind, loss, max_logits, steps
):
  """Unless their size is given."""
  monkeypatch.setattr(softmax, "_MAX_LOGITS", max_logits)
  params, tokens = draw_params(kind), draw_targets()
  name = "softmax" if kind == "full" else "adaptive_softmax"
  jaxpr = jax.make_jaxpr(both(kind, loss).apply)(
      {name: params}, draw(STEPS, BATCH, SIZE), tokens
  )
  chunks = {int(x) for x in re.findall(r" length=(\d+)", str(jaxpr))}
  assert chunks == ({-(-STEPS // steps)} if steps < STEPS else set())


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
    kind(**{"vocab_size": VOCAB, "embedding_size": SIZE} | arguments)

  with pytest.raises(ValueError, match=f"{name} must be at least 1, .*{value}"):
    hk.transform(fn).init(None)


@pytest.mark.parametrize("function", ["log_probs", "cross_entropy"])
def test_wrong_size_of_a_chunk(function):
  arrays = (jnp.zeros([2, SIZE]), jnp.zeros([VOCAB, SIZE]), jnp.zeros(VOCAB))
  with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
    getattr(softmax, function)(*arrays, jnp.zeros(2, int), 0)


@pytest.mark.parametrize("loss", [False, True])
@pytest.mark.parametrize("kind", ["full", "adaptive"])
def test_bytes(kind, loss):
  """Of uint8 are all 256 words, but not their number."""

  def fn(outputs, tokens):
    module = (
        rmc.Softmax(256, SIZE)
        if kind == "full"
        else rmc.AdaptiveSoftmax(256, SIZE, (10, 250))
    )
    call = module.cross_entropy if loss else module.log_probs
    return call(outputs + module.embed(tokens), tokens)

  transformed = hk.without_apply_rng(hk.transform(fn))
  outputs, tokens = draw(5, SIZE), jnp.array([0, 9, 11, 252, 255])
  params = transformed.init(jax.random.key(0), outputs, tokens)
  expected = jax.jit(transformed.apply)(params, outputs, tokens)
  assert not np.any(np.isnan(expected))
  small = tokens.astype(jnp.uint8)
  for tokens in (small, np.asarray(small)):
    actual = jax.jit(transformed.apply)(params, outputs, tokens)
    np.testing.assert_array_equal(actual, expected)
  with pytest.raises(ValueError, match="must be of an integer type, got float"):
    transformed.apply(params, outputs, small.astype(float))


@pytest.mark.parametrize("loss", [False, True])
def test_wrong_weights(loss):
  """They would be broadcast in silence."""
  call = softmax.cross_entropy if loss else softmax.log_probs
  outputs, targets = draw(STEPS, BATCH, SIZE), draw_targets()
  for weights, bias in (
      (draw(VOCAB, SIZE), draw(1)),
      (draw(VOCAB, SIZE), draw()),
      (draw(VOCAB, SIZE + 1), draw(VOCAB)),
  ):
    with pytest.raises(ValueError, match=r"weights \[V, D\] and bias \[V\]"):
      call(outputs, weights, bias, targets)


def test_sums_of_16_bits_do_not_stall():
  """With one step a chunk as with all at once."""
  steps = 512
  arrays = draw(steps, 1, 4), draw(9, 4, seed=1), jnp.zeros(9)
  arrays = [x.astype(jnp.bfloat16) for x in arrays]
  targets = jnp.zeros([steps, 1], int)

  def gradient(chunk_size):
    def loss(bias):
      return softmax.cross_entropy(*arrays[:2], bias, targets, chunk_size)

    return jax.jit(jax.value_and_grad(loss))(arrays[2])

  for chunked, whole in zip(gradient(1), gradient(None), strict=True):
    assert chunked.dtype == whole.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        chunked.astype(float), whole.astype(float), rtol=0.02, atol=0.005
    )


def test_products_obey_a_policy():
  policy = jmp.get_policy("params=float32,compute=bfloat16,output=float32")
  for module in (rmc.Softmax, rmc.AdaptiveSoftmax):
    hk.mixed_precision.set_policy(module, policy)
  try:
    for kind in ("full", "adaptive"):
      transformed = both(kind, True)
      with jax.enable_x64(False):
        arguments = draw(STEPS, BATCH, SIZE), draw_targets()
        params = transformed.init(jax.random.key(0), *arguments)
        jaxpr = jax.make_jaxpr(transformed.apply)(params, *arguments)
      products = re.findall(r"(\w+)\[[\d,]*\] = dot_general\[", str(jaxpr))
      assert set(products) == {"bf16"}
  finally:
    for module in (rmc.Softmax, rmc.AdaptiveSoftmax):
      hk.mixed_precision.clear_policy(module)


@pytest.mark.parametrize("shapes", [([5, 1], [5]), ([5], [5, 1]), ([], [])])
@pytest.mark.parametrize("kind", ["full", "adaptive"])
@pytest.mark.parametrize("call", ["log_probs", "cross_entropy"])
def test_wrong_targets(call, kind, shapes):
  """They would be broadcast in silence."""
  rows, targets = shapes

  def fn():
    outputs = jnp.zeros([*rows, SIZE])
    return getattr(make(kind), call)(outputs, jnp.zeros(targets, int))

  got = re.escape(f"got {targets} and {[*rows, SIZE]}.")
  with jax.numpy_rank_promotion("allow"):
    with pytest.raises(ValueError, match=f"targets must be .*{got}"):
      hk.transform(fn).init(jax.random.key(0))
    if kind == "full":
      with pytest.raises(ValueError, match=f"targets must be .*{got}"):
        getattr(softmax, call)(
            jnp.zeros([*rows, SIZE]),
            jnp.zeros([VOCAB, SIZE]),
            jnp.zeros(VOCAB),
            jnp.zeros(targets, int),
        )


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_no_steps(chunk_size):
  values = softmax.log_probs(
      jnp.zeros([0, 2, SIZE]),
      jnp.zeros([VOCAB, SIZE]),
      jnp.zeros(VOCAB),
      jnp.zeros([0, 2], int),
      chunk_size,
  )
  assert values.shape == (0, 2)


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("kind", ["full", "adaptive"])
def test_what_is_no_word_has_no_probability(kind, chunk_size):
  def fn(outputs, targets):
    module = make(kind, chunk_size=chunk_size)
    losses = [
        module.cross_entropy(outputs[:n], targets[:n])
        for n in range(1, 1 + len(targets))
    ]
    return module.log_probs(outputs, targets), jnp.stack(losses)

  transformed = hk.without_apply_rng(hk.transform(fn))
  arguments = jnp.zeros([4, SIZE]), jnp.array([0, VOCAB - 1, VOCAB, -1])
  params = transformed.init(jax.random.key(0), *arguments)
  with jax.debug_nans(False):
    values, losses = transformed.apply(params, *arguments)
    alone, _ = transformed.apply(params, arguments[0], -arguments[1])
  assert np.isnan(values).tolist() == [False, False, True, True]
  assert np.isnan(losses).tolist() == [False, False, True, True]
  assert np.isnan(alone).tolist() == [False, True, True, False]


def test_adaptive_starts_even():
  """Without features every word is as likely, wherever it is."""

  def fn(outputs):
    return make("adaptive").all_log_probs(outputs)

  transformed = hk.without_apply_rng(hk.transform(fn))
  outputs = jnp.zeros([SIZE])
  params = transformed.init(jax.random.key(0), outputs)
  table = transformed.apply(params, outputs)
  np.testing.assert_allclose(table, np.full(VOCAB, -np.log(VOCAB)))
