"""The optimiser that the flags ask for, in every program that trains."""

import jax
import numpy as np
import optax
import pytest

from scripts import (
  train_box_world,
  train_language_model,
  train_learn_to_execute,
  train_mini_pacman,
  train_nth_farthest,
)
from scripts.lib import optimizer_flags
from tests.helpers.programs import ROOT, parsed

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
