"""The optimiser that the flags ask for, in every program that trains."""

import haiku as hk
import jax
import numpy as np
import optax
import pytest

from rmc import training
from scripts import (
  train_box_world,
  train_language_model,
  train_learn_to_execute,
  train_mini_pacman,
  train_nth_farthest,
)
from scripts.lib import cores, optimizer_flags
from tests.helpers.programs import ROOT, parsed
from tests.helpers.tiny_training import assert_same_bits

PRESETS = ROOT / "scripts" / "presets"
# Each program's preset, and how many terms its loss is summed over for RMSProp.
PROGRAMS = {
    train_nth_farthest: ("nth_farthest/demo", 1),
    train_learn_to_execute: ("learn_to_execute/smoke", 1),
    train_language_model: ("language_modeling/demo", 1),
    train_mini_pacman: ("mini_pacman/smoke", 8 * 5),
    train_box_world: ("box_world/smoke", 8 * 5),
}


def preset(name):
  return f"--flagfile={PRESETS / name}.flags"


@pytest.mark.parametrize(
    "program", PROGRAMS, ids=lambda program: program.__name__
)
def test_rmsprop_in_every_program(experiment_of, tmp_path, program):
  """Its first update, of a gradient of 1."""
  name, terms = PROGRAMS[program]
  with experiment_of(
      program,
      preset(name),
      "--optimizer=rmsprop",
      "--learning_rate=0.5",
      "--rmsprop_decay=0.75",
      "--rmsprop_epsilon=2",
      "--max_grad_norm=0",
      "--warmup_steps=0",
      *([f"--data_dir={tmp_path}"] if program is train_language_model else []),
  ) as made:
    grad = jax.numpy.ones(1)
    (update,), _ = made.optimizer.update(grad, made.optimizer.init(grad))
  mean_square = 0.75 + 0.25 * terms**2
  expected = -0.5 * terms / np.sqrt(mean_square + 2)
  np.testing.assert_allclose(update, expected, rtol=1e-6)


# Muon.


@pytest.mark.parametrize("core", cores.CORES)
def test_matrices_of_linear_layers(core):
  """They are told from all else by name and rank, in every core."""
  made = {}

  def note(next_creator, shape, dtype, init, context):
    made[context.full_name] = isinstance(context.module, hk.Linear)
    return next_creator(shape, dtype, init)

  image = core == "conv_lstm"
  given = cores.Input("image", (3, 3)) if image else cores.FLAT

  def step(inputs):
    with hk.custom_creator(note, state=False):
      made_core = cores.make_core(given)
      return made_core(inputs, made_core.initial_state(len(inputs)))

  with parsed(f"--core={core}"):
    params = jax.eval_shape(
        hk.transform(step).init,
        jax.random.key(0),
        jax.numpy.zeros([1, 3, 3, 1] if image else [1, 3]),
    )
  found = {
      f"{module}/{name}": is_matrix
      for module, bundle in optimizer_flags.linear_weights(params).items()
      for name, is_matrix in bundle.items()
  }
  expected = {
      name: is_linear and name.endswith("/w")
      for name, is_linear in made.items()
  }
  assert found == expected
  assert len({*found.values()}) == (1 if image else 2)


def test_muon_and_what_takes_adam():
  """A matrix's step has singular values of one size, and Adam's mean square."""
  key = jax.random.key(0)
  params = {
      "linear": {
          "w": jax.random.normal(key, (32, 48)),
          "b": jax.numpy.ones(48),
      },
      "embed": {"embeddings": jax.random.normal(key, (5, 4))},
      "conv": {"w": jax.random.normal(key, (2, 2, 3, 4))},
  }
  with (
      jax.numpy_dtype_promotion("standard"),
      parsed("--optimizer=muon", "--learning_rate=0.5"),
  ):
    optimizer = optimizer_flags.make_optimizer()
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    adam = optax.adam(0.5, nesterov=True)  # As Muon's own momentum.
    expected, _ = adam.update(params, adam.init(params))
  step = updates["linear"].pop("w")
  expected["linear"].pop("w")
  jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6),
      updates,
      expected,
  )
  sizes = np.linalg.svd(step, compute_uv=False)
  assert sizes.max() / sizes.min() < 2  # Newton's method is ended early.
  spread = np.linalg.svd(params["linear"]["w"], compute_uv=False)
  assert spread.max() / spread.min() > 5
  mean_square = np.mean(np.square(step)) ** 0.5
  assert mean_square == pytest.approx(0.2 * 0.5, rel=0.2)


TINY = (
    "--num_objects=3", "--num_features=2", "--mem_slots=2", "--num_heads=2",
    "--head_size=4", "--mlp_sizes=8", "--batch_size=16", "--log_every=2",
    "--eval_examples=8", "--optimizer=muon",
)  # fmt: skip


def test_muon_resumes_and_is_split_over_devices(train_here, tmp_path):
  """The same to the bit, and to rounding."""

  def train(name, *arguments, **options):
    records = train_here(
        train_nth_farthest, tmp_path / name, *TINY, *arguments, **options
    )
    return records, training.load_params(tmp_path / name)

  whole = train("whole", "--steps=8", "--parallel=jit")
  train("halves", "--steps=4", "--parallel=jit")
  halves = train("halves", "--steps=8", "--parallel=jit")
  assert halves[0] == whole[0]
  assert_same_bits(halves[1], whole[1])
  eight = train("eight", "--steps=8", "--parallel=pmap", num_devices=8)
  for a, b in zip(eight[0], whole[0], strict=True):
    assert a == pytest.approx(b, rel=1e-3)


def test_learning_rate_and_clipping():
  """It rises, falls by a factor and stays; all of a gradient is scaled."""
  with (
      jax.numpy_dtype_promotion("standard"),
      parsed(
          "--optimizer=rmsprop",
          "--rmsprop_decay=1",
          "--rmsprop_epsilon=0",
          "--learning_rate=0.5",
          "--warmup_steps=2",
          "--lr_decay_rate=0.25",
          "--lr_decay_steps=2",
          "--min_learning_rate=0.1",
          "--max_grad_norm=5",
      ),
  ):
    optimizer = optimizer_flags.make_optimizer()
    state, found = optimizer.init(jax.numpy.zeros(2)), []
    for _ in range(7):
      grad = jax.numpy.array([6.0, 8.0])
      updates, state = optimizer.update(grad, state)
      found.append(updates)
  rates = np.array([0, 0.25, 0.5, 0.25, 0.125, 0.1, 0.1])
  expected = -rates[:, None] * [3.0, 4.0]
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_rmsprop_is_tensorflows():
  """Of a sum over steps and environments, with epsilon inside the root."""
  grads = [np.array([0.5, -2.0], np.float32), np.array([1.0, 0.0], np.float32)]
  with (
      jax.numpy_dtype_promotion("standard"),
      parsed(
          "--optimizer=rmsprop",
          "--learning_rate=0.25",
          "--rmsprop_decay=0.75",
          "--rmsprop_epsilon=0.5",
      ),
  ):
    optimizer = optimizer_flags.make_optimizer(loss_terms=8 * 5)
    params = jax.numpy.zeros(2)
    state = optimizer.init(params)
    for grad in grads:
      updates, state = optimizer.update(jax.numpy.asarray(grad), state)
      params = optax.apply_updates(params, updates)
  mean_square, expected = np.ones(2), np.zeros(2)
  for grad in grads:
    grad = grad.astype(np.float64) * 8 * 5
    mean_square = 0.75 * mean_square + 0.25 * grad**2
    expected -= 0.25 * grad / np.sqrt(mean_square + 0.5)
  np.testing.assert_allclose(params, expected, rtol=1e-5)
