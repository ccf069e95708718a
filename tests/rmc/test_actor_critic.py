"""The network of an agent: torso, core with resets, heads."""

import json

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rmc
from tests.helpers import make_param_tree
from tests.helpers.small_cores import apply, assert_close, draw_params

T, B, A = 4, 2, 3


class Echo(hk.RNNCore):
  """Puts out what it is given."""

  def initial_state(self, batch_size):
    return jnp.zeros([] if batch_size is None else [batch_size])

  def __call__(self, inputs, state):
    return jnp.reshape(inputs, (len(inputs), -1)), state


CORES = {
    "rmc": (
        lambda: rmc.RelationalMemory(2, 3, 2, treat_input_as_matrix=True),
        "rows",
    ),
    "lstm": (lambda: hk.LSTM(5), "flat"),
    "conv_lstm": (lambda: hk.Conv2DLSTM((3, 4), 2, 2), "image"),
}


def make(core, core_input, **options):
  options = {"channels": (2, 3), "strides": (1, 1)} | options
  return rmc.ActorCritic(core, A, core_input, **options)


def images(*leading, shape=(3, 4, 2)):
  rng = np.random.default_rng(0)
  return rng.normal(size=(*leading, *shape)).astype(np.float32)


def convolve(image, params, stride):
  """Returns a padded convolution with a ReLU, of `[H, W, C]`."""
  height, width, _ = image.shape
  side = params["w"].shape[0]
  rows, cols = -(-height // stride), -(-width // stride)
  # Where one cell more is needed than there are on both sides, it is after.
  before = [
      max((n - 1) * stride + side - size, 0) // 2
      for n, size in ((rows, height), (cols, width))
  ]
  padded = np.zeros([height + 2 * side, width + 2 * side, image.shape[2]])
  padded[side : side + height, side : side + width] = image
  out = np.zeros([rows, cols, params["w"].shape[-1]])
  for r in range(rows):
    for c in range(cols):
      top = side + r * stride - before[0]
      left = side + c * stride - before[1]
      patch = padded[top : top + side, left : left + side]
      out[r, c] = np.tensordot(patch, params["w"], 3) + params["b"]
  return np.maximum(out, 0)


@pytest.mark.parametrize("core_input", ["rows", "flat", "image"])
@pytest.mark.parametrize(
    "shape, strides, side", [((3, 4, 2), (1, 1), 2), ((7, 9, 1), (2, 2), 3)]
)
def test_torso(core_input, shape, strides, side):
  """Two convolutions, and where a cell is, in the form that is asked for."""

  def torso(observations):
    model = make(Echo, core_input, strides=strides, kernel_shape=side)
    model(observations[None], jnp.zeros([B]), jnp.zeros([1, B], bool))
    return model._torso(observations)

  observations = images(B, shape=shape)
  params = draw_params(torso, observations)
  found = apply(torso, params, observations)
  for image, x in zip(observations, found, strict=True):
    for i, stride in enumerate(strides):
      image = convolve(
          image, params[f"actor_critic/~/convolution_{i}"], stride
      )
    rows, cols, _ = image.shape
    y, x_place = np.meshgrid(
        np.linspace(-1, 1, rows), np.linspace(-1, 1, cols), indexing="ij"
    )
    expected = np.concatenate(
        [image, x_place[..., None], y[..., None]], axis=-1
    )
    size = {
        "rows": (rows * cols, 5), "flat": (-1,), "image": (rows, cols, 5)
    }  # fmt: skip
    np.testing.assert_allclose(
        x, expected.reshape(size[core_input]), atol=1e-5
    )


@pytest.mark.parametrize("core", CORES)
def test_unroll_is_steps_with_resets(core):
  """And `inspect` is a step, of an RMC."""
  observations = images(T, B)
  should_reset = np.array([[1, 0], [0, 0], [0, 1], [1, 0]], bool)

  def whole(observations, should_reset):
    model = make(*CORES[core])
    return model(observations, model.initial_state(B), should_reset)

  def by_steps(observations, should_reset):
    model = make(*CORES[core])
    # Resets done by hand, one example at a time.
    examples = []
    for b in range(B):
      heads = []
      state = model.initial_state(1)
      for t in range(T):
        if should_reset[t, b]:
          state = model.initial_state(1)
        never = jnp.zeros([1], bool)
        head, state = model.step(observations[t, b][None], state, never)
        if core == "rmc" and t + 1 < T and not should_reset[t + 1, b]:
          inspected = model.inspect(observations[t + 1, b][None], state)
          ahead, _, info = inspected
          assert info.attention_weights[0].shape == (1, 2, 2, 2 + 12)
          assert_close(
              ahead,
              model.step(observations[t + 1, b][None], state, never)[0],
              atol=1e-5,
          )
        heads.append(head)
      examples.append(
          (jax.tree.map(lambda *x: jnp.stack(x), *heads), state)
      )
    heads, states = zip(*examples, strict=True)
    return (
        jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *heads),
        jax.tree.map(lambda *x: jnp.concatenate(x), *states),
    )

  params = draw_params(whole, observations, should_reset)
  actual = apply(whole, params, observations, should_reset)
  assert actual[0][0].shape == (T, B, A)
  assert actual[0][1].shape == (T, B)
  expected = hk.without_apply_rng(hk.transform(by_steps)).apply(
      params, observations, should_reset
  )
  assert_close(actual, expected, atol=1e-5)


def test_images_of_integers():
  """Pixels are to be scaled, not embedded."""
  pixels = images(T, B).astype(np.uint8)

  def act(pixels):
    network = make(*CORES["lstm"])
    state = network.initial_state(B)
    return network(pixels, state, jnp.zeros((T, B), bool))

  with pytest.raises(ValueError, match="observations .* got uint8; scale"):
    hk.transform(act).init(jax.random.key(0), pixels)


def test_parameters():
  golden = json.loads(make_param_tree.PATH.read_text())
  assert make_param_tree.of_actor_critic() == golden["actor_critic"]


def test_papers_sizes():
  """25 rows of 26, 4 slots of 256; a ConvLSTM of 92,672 parameters."""

  def shapes(core, core_input):
    def network(observations):
      model = rmc.ActorCritic(core, 4, core_input)
      state = model.initial_state(1)
      return model(observations, state, jnp.zeros([1, 1], bool))

    return jax.eval_shape(
        hk.transform(network).init,
        jax.random.key(0),
        images(1, 1, shape=(5, 5, 6)),
    )

  params = shapes(
      lambda: rmc.RelationalMemory(
          4, 64, 4, gate_style="memory", treat_input_as_matrix=True
      ),
      "rows",
  )
  core = "actor_critic/~/relational_memory/~/"
  assert params[core + "input_projection"]["w"].shape == (26, 256)
  assert params["actor_critic/~/policy"]["w"].shape == (1024, 4)
  assert params["actor_critic/~/value"]["w"].shape == (1024, 1)
  params = shapes(lambda: hk.Conv2DLSTM((5, 5), 64, 2, name="core"), "image")
  size = sum(
      x.size
      for name, bundle in params.items()
      if name.startswith("actor_critic/~/core")
      for x in bundle.values()
  )
  assert size == 92_672


def test_default_torso():
  """Convolutions of 12 and 24 kernels of 2 x 2, as in the paper."""

  def network(observations):
    model = rmc.ActorCritic(Echo, A, "flat")
    return model(observations, jnp.zeros([1]), jnp.zeros([1, 1], bool))

  params = jax.eval_shape(
      hk.transform(network).init,
      jax.random.key(0),
      images(1, 1, shape=(5, 5, 6)),
  )
  for i, shape in enumerate([(2, 2, 6, 12), (2, 2, 12, 24)]):
    assert params[f"actor_critic/~/convolution_{i}"]["w"].shape == shape
  assert params["actor_critic/~/policy"]["w"].shape == (5 * 5 * 26, A)


@pytest.mark.parametrize("shape", [(T, 5, 5, 3), (T, 1, 1, 5, 5, 3)])
def test_observations_of_other_axes(shape):
  """Without a batch, and with one axis too many."""
  def network(observations):
    model = make(Echo, core_input="flat")
    resets = jnp.zeros(shape[:2], bool)
    return model(observations, model.initial_state(shape[1]), resets)

  with pytest.raises(ValueError, match="observations must have shape .T, B,"):
    hk.transform(network).init(None, jnp.ones(shape))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"core_input": "cells"}, "'rows', 'flat' or 'image', got 'cells'"),
        ({"strides": (1,)}, r"equally many.*\(2, 3\) and \(1,\)"),
        ({"channels": (), "strides": ()}, "at least one"),
        ({"channels": (0, 3)}, "channels must be at least 1, got 0"),
        ({"strides": (1, 0)}, "strides must be at least 1, got 0"),
        ({"kernel_shape": 0}, "kernel_shape must be at least 1, got 0"),
    ],
)
def test_wrong_arguments(options, message):
  options = {"core_input": "flat"} | options
  with pytest.raises(ValueError, match=message):
    hk.transform(lambda: make(Echo, **options)).init(None)
