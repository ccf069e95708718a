"""One device against many.

Glossary of shapes:
  - T: steps of a sequence.
  - B: examples of an update.
"""

import functools
import re

import haiku as hk
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np
import optax
import pytest

import rmc
from rmc import training
from tests.helpers import golden_vectors, tiny_training
from tests.helpers.golden_vectors import assert_near

B, T = 16, 3
STEPS = 10
CORE = {"mem_slots": 2, "head_size": 3, "num_heads": 2, "key_size": 2}
OPTIMIZERS = {
    "adam": lambda: optax.adam(1e-2),
    "sgd": lambda: optax.sgd(1e-2),
    "momentum": lambda: optax.sgd(1e-2, momentum=0.9),
}


@functools.cache
def network():
  def apply(inputs, state):
    core = rmc.RelationalMemory(**CORE)
    outputs, state = rmc.unroll(core, inputs, state)
    return hk.Linear(1)(outputs[-1])[:, 0], state

  return hk.without_apply_rng(hk.transform(apply))


def loss_fn(params, indices, carry, key):
  """Sums numbers; the memory goes on from update to update.

  The sums are around 3, so that the output's bias, an array of one entry, is
  not what is left when terms cancel.
  """
  dtype = jax.tree.leaves(params)[0].dtype
  keys = training.example_keys(key, indices)
  draw = functools.partial(jax.random.normal, shape=(T, 2), dtype=dtype)
  inputs = jnp.swapaxes(jax.vmap(draw)(keys), 0, 1)  # [T, B, 2]
  predictions, carry = network().apply(params, inputs, carry)
  errors = predictions - jnp.sum(inputs, axis=(0, 2)) - 3
  metrics = {"error": jnp.mean(jnp.abs(errors))}
  return jnp.mean(errors**2), (metrics, jax.lax.stop_gradient(carry))


def init(optimizer, dtype):
  """Returns a state whose memories differ from example to example."""
  inputs = jnp.zeros((T, B, 2), dtype)
  width = CORE["head_size"] * CORE["num_heads"]
  memory = jax.random.normal(
      jax.random.key(2), (B, CORE["mem_slots"], width), dtype
  )
  params = network().init(jax.random.key(0), inputs, memory)
  return training.to_numpy(
      training.init_state(params, optimizer, jax.random.key(1), memory)
  )


def run(mode, num_devices, optimizer, dtype, steps=STEPS):
  """Trains; returns losses, figures, the placed state and the fetched one."""
  optimizer = OPTIMIZERS[optimizer]()
  parallel = training.DataParallel(mode, jax.devices()[:num_devices])
  update = parallel.make_update(loss_fn, optimizer)
  placed = parallel.place_state(init(optimizer, dtype))
  indices = parallel.place_batch(parallel.local_indices(B))
  figures = []
  for _ in range(steps):
    placed, metrics = update(placed, indices)
    figures.append(jax.device_get(metrics))
  return figures, placed, parallel.fetch_state(placed)


def shards_that_differ(state):
  """Returns the names of arrays that are not the same on each device."""
  names = []
  for path, x in jax.tree.leaves_with_path(state._replace(carry=None)):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      x = jax.random.key_data(x)
    shards = [np.asarray(shard.data) for shard in x.addressable_shards]
    if any(not np.array_equal(shards[0], shard) for shard in shards):
      names.append(jax.tree_util.keystr(path))
  return names


@functools.cache
def one_device(optimizer, dtype):
  return run("auto", 1, optimizer, dtype)


@pytest.mark.parametrize("mode", ["pmap", "jit"])
def test_eight_devices_equal_one_float64(mode):
  # optax multiplies a count by a float, which strict promotion forbids.
  with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
    expected, _, expected_state = one_device("adam", jnp.float64)
    actual, placed, state = run(mode, 8, "adam", jnp.float64)
  assert shards_that_differ(placed) == []
  for figures, other in zip(actual, expected, strict=True):
    for name in ("loss", "error", "grad_norm"):
      assert figures[name].dtype == np.float64
      np.testing.assert_allclose(
          figures[name], other[name], rtol=1e-9, atol=0, err_msg=name
      )
  assert len({float(f["loss"]) for f in actual}) == STEPS
  assert int(state.step) == STEPS
  for module, bundle in expected_state.params.items():
    for name, value in bundle.items():
      other = state.params[module][name]
      if module.endswith("qkv_norm_0") and name == "offset":
        # As golden_vectors.without_noise, by Sonnet's name.
        value, other = (
            golden_vectors.without_noise("layer_norm/beta", x, CORE)
            for x in (value, other)
        )
      assert_near(other, value, 1e-8, f"{module}/{name}")
  for value, other in zip(
      jax.tree.leaves((expected_state.opt_state, expected_state.carry)),
      jax.tree.leaves((state.opt_state, state.carry)),
      strict=True,
  ):
    assert value.dtype == other.dtype
    assert_near(other, value, 1e-8, "optimiser and carry")


@pytest.mark.parametrize("mode", ["pmap", "jit"])
def test_eight_devices_equal_one_float32(mode):
  expected, _, expected_state = one_device("sgd", jnp.float32)
  actual, placed, state = run(mode, 8, "sgd", jnp.float32)
  assert shards_that_differ(placed) == []
  for figures, other in zip(actual, expected, strict=True):
    for name in ("loss", "error", "grad_norm"):
      np.testing.assert_allclose(figures[name], other[name], rtol=1e-6)
  # Plain SGD: momentum adds up rounding too, to some 2e-6 of the largest entry.
  for (path, value), other in zip(
      jax.tree.leaves_with_path((expected_state.params, expected_state.carry)),
      jax.tree.leaves((state.params, state.carry)),
      strict=True,
  ):
    assert value.dtype == other.dtype == np.float32
    largest = np.max(np.abs(value))
    assert_near(other, value, 1e-6 * largest, jax.tree_util.keystr(path))


def agent(images, memory, resets):
  def core():
    return rmc.RelationalMemory(2, 8, 2, treat_input_as_matrix=True)

  return rmc.ActorCritic(core, 3)(images, memory, resets)


def lstm(inputs, state, resets):
  core = hk.LSTM(256)  # Its weights' gradients are made after the loop.
  return rmc.unroll(core, inputs, state, should_reset=resets)


def words(inputs, state, resets):
  del resets
  softmax = rmc.softmax.Softmax(300, 4, chunk_size=1)
  targets = jnp.zeros(inputs.shape[:2], jnp.int32) + 7
  return softmax.cross_entropy(inputs, targets), state


BATCH = 16
NETWORKS = {
    "agent": (agent, (5, 5, 3), np.zeros((BATCH, 2, 16), np.float32)),
    "words": (words, (4,), np.zeros(BATCH, np.float32)),
    "lstm": (lstm, (4,), (np.zeros((BATCH, 256), np.float32),) * 2),
}


def loss_and_arguments(name):
  function, features, state = NETWORKS[name]
  transformed = hk.without_apply_rng(hk.transform(function))
  if name == "lstm":
    state = hk.LSTMState(*state)
  inputs = np.ones((T, BATCH, *features), np.float32)
  arguments = inputs, state, np.zeros((T, BATCH), bool)
  params = transformed.init(jax.random.key(0), *arguments)

  def loss(params, *arguments):
    outputs, _ = transformed.apply(params, *arguments)
    return sum(jnp.mean(x**2) for x in jax.tree.leaves(outputs))

  return loss, (params, *arguments)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_compiler_that_splits_the_batch_splits_the_work(name):
  """No device gathers the examples of others, or works on them."""
  loss, arguments = loss_and_arguments(name)
  mesh = Mesh(np.array(jax.devices()), ("devices",))
  whole, split, split_steps = (
      NamedSharding(mesh, PartitionSpec(*spec))
      for spec in ((), ("devices",), (None, "devices"))
  )
  update = jax.jit(
      jax.grad(loss),
      in_shardings=(whole, split_steps, split, split_steps),
      out_shardings=whole,
  )
  text = update.lower(*arguments).compile().as_text()
  assert "all-reduce(" in text  # Of the gradients.
  assert not re.search(r"(all-gather|all-to-all|permute)(-start)?\(", text)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_mesh_whose_axes_are_in_the_types(name):
  """As `jax.make_mesh` makes it; a gradient has the type of its weights."""
  loss, (params, inputs, state, resets) = loss_and_arguments(name)
  mesh = jax.make_mesh((8,), ("devices",), (AxisType.Explicit,))

  def place(nest, *spec):
    return jax.device_put(nest, NamedSharding(mesh, PartitionSpec(*spec)))

  arguments = (
      place(params),
      place(inputs, None, "devices"),
      place(state, "devices"),
      place(resets, None, "devices"),
  )
  grads = jax.eval_shape(jax.jit(jax.grad(loss)), *arguments)
  assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, params)


def test_a_forgotten_mean_is_seen(monkeypatch):
  """The check of the shards can fail: without pmean each device goes alone."""
  monkeypatch.setattr(jax.lax, "pmean", lambda x, axis_name: x)
  _, placed, _ = run("pmap", 8, "momentum", jnp.float32, steps=2)
  names = shards_that_differ(placed)
  for part in (".params", ".opt_state"):
    assert any(part in name for name in names), names


def test_auto_is_jit_on_one_device_and_pmap_on_several():
  devices = jax.devices()
  assert training.DataParallel("auto", devices[:1]).mode == "jit"
  assert training.DataParallel("auto", devices[:2]).mode == "pmap"
  assert training.DataParallel("jit", devices[:2]).mode == "jit"
  assert training.DataParallel("pmap", devices[:1]).mode == "pmap"
  assert training.DataParallel().devices == devices


def test_an_unknown_mode_is_an_error():
  with pytest.raises(ValueError, match="mode must be .*'auto'.* got 'foo'"):
    training.DataParallel("foo")


@pytest.mark.parametrize("mode", ["jit", "pmap"])
@pytest.mark.parametrize("batch_size", [0, 7, 12, 17])
def test_a_batch_that_devices_do_not_divide_is_an_error(mode, batch_size):
  parallel = training.DataParallel(mode)
  with pytest.raises(ValueError, match=f"multiple of the 8 .*got {batch_size}"):
    parallel.local_indices(batch_size)


@pytest.mark.parametrize("num_devices", [1, 4, 8])
@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_placing_and_fetching_give_back_the_state(mode, num_devices):
  parallel = training.DataParallel(mode, jax.devices()[:num_devices])
  state = init(OPTIMIZERS["adam"](), jnp.float32)
  state = state._replace(
      step=np.int32(3),
      carry={"memory": state.carry, "done": np.arange(B) % 3 == 0},
  )
  placed = parallel.place_state(state)
  assert jnp.issubdtype(placed.key.dtype, jax.dtypes.prng_key)
  tiny_training.assert_same_bits(parallel.fetch_state(placed), state)
  np.testing.assert_array_equal(parallel.local_indices(B), np.arange(B))


@pytest.mark.parametrize(
    "num_devices,mode", [(1, "jit"), (8, "pmap"), (8, "jit")]
)
def test_buffers_are_donated_and_fetched_states_stay(num_devices, mode):
  parallel = tiny_training.parallel(num_devices, mode)
  update = tiny_training.update(num_devices, mode)
  old = parallel.place_state(training.to_numpy(tiny_training.init()))
  batch = parallel.place_batch({
      "indices": parallel.local_indices(tiny_training.BATCH_SIZE),
      "scale": np.ones([tiny_training.BATCH_SIZE], np.float32),
  })
  old, _ = update(old, batch)
  w = old.params["linear"]["w"]
  new, _ = update(old, batch)
  assert w.is_deleted()
  assert not new.params["linear"]["w"].is_deleted()
  # What was fetched is a copy, or keeps its memory from being used again.
  fetched = parallel.fetch_state(new)
  kept = jax.tree.map(np.copy, fetched)
  for _ in range(3):
    new, _ = update(new, batch)
  tiny_training.assert_same_bits(fetched, kept)


@pytest.mark.parametrize(
    "num_devices,mode", [(1, "jit"), (1, "pmap"), (8, "pmap"), (8, "jit")]
)
def test_an_update_is_compiled_once(num_devices, mode, caplog):
  """What it returns, the carry too, lies as what `place_state` makes."""
  parallel = tiny_training.parallel(num_devices, mode)
  update = parallel.make_update(
      functools.partial(tiny_training.loss_fn), tiny_training.optimizer()
  )
  state = parallel.place_state(training.to_numpy(tiny_training.init()))
  batch = parallel.place_batch({
      "indices": parallel.local_indices(tiny_training.BATCH_SIZE),
      "scale": np.ones([tiny_training.BATCH_SIZE], np.float32),
  })
  with jax.log_compiles(), caplog.at_level("WARNING"):
    state, _ = update(state, batch)
    assert "Finished XLA compilation" in caplog.text
    caplog.clear()
    for _ in range(2):
      state, _ = update(state, batch)
  assert "Finished XLA compilation" not in caplog.text


@pytest.mark.parametrize(
    "num_devices,mode", [(1, "jit"), (8, "pmap"), (8, "jit")]
)
def test_a_step_asks_nothing_of_the_host(num_devices, mode):
  """The check for what is not finite does not wait for the device."""
  parallel = tiny_training.parallel(num_devices, mode)
  update = tiny_training.update(num_devices, mode)
  state = parallel.place_state(training.to_numpy(tiny_training.init()))
  batch = parallel.place_batch({
      "indices": parallel.local_indices(tiny_training.BATCH_SIZE),
      "scale": np.ones([tiny_training.BATCH_SIZE], np.float32),
  })
  with jax.transfer_guard_device_to_host("disallow"):
    for _ in range(3):
      state, metrics = update(state, batch)
  assert float(metrics["finite"]) == 1.0
