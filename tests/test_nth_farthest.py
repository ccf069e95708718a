"""The Nth Farthest sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tasks.nth_farthest import NthFarthest
from tests import golden_vectors


def draw(task, count, seed=0):
  """Returns many sequences and their answers, as NumPy arrays."""
  keys = jax.random.split(jax.random.key(seed), count)
  return jax.device_get(jax.jit(jax.vmap(task.sample))(keys))


def parts(task, inputs):
  """Returns points, labels, m and n of one sequence, found one by one."""
  k, d = task.num_objects, task.num_features
  points = inputs[:, :d]
  labels = [int(np.flatnonzero(row)[0]) for row in inputs[:, d : d + k]]
  m = int(np.flatnonzero(inputs[0, d + k : d + 2 * k])[0])
  n = int(np.flatnonzero(inputs[0, d + 2 * k :])[0])
  return points, labels, m, n


@pytest.mark.parametrize("k, d", [(8, 16), (4, 4)])
def test_recorded_labels(k, d):
  with np.load(golden_vectors.DIRECTORY / "data_nth_farthest.npz") as file:
    inputs = file[f"inputs_n{k}_f{d}"].astype(np.float32)
    labels = file[f"labels_n{k}_f{d}"]
  task = NthFarthest(k, d, order="nearest")
  assert inputs.shape[1:] == (k, task.step_size)
  np.testing.assert_array_equal(jax.vmap(task.answer)(inputs), labels)
  # Counted from the other end, rank n is rank k - 1 - n.
  flipped = inputs.copy()
  flipped[..., d + 2 * k :] = inputs[..., d + 2 * k :][..., ::-1]
  farthest = NthFarthest(k, d, order="farthest")
  np.testing.assert_array_equal(jax.vmap(farthest.answer)(flipped), labels)


@pytest.mark.parametrize("order", ["farthest", "nearest"])
@pytest.mark.parametrize("k, d", [(2, 1), (5, 3), (8, 16)])
def test_answers_by_sorting(k, d, order):
  task = NthFarthest(k, d, order)
  inputs, answers = draw(task, 50)
  for sequence, answer in zip(inputs, answers, strict=True):
    points, labels, m, n = parts(task, sequence)
    origin = points[labels.index(m)]
    ranked = sorted(
        labels,
        key=lambda label: np.linalg.norm(
            points[labels.index(label)].astype(np.float64) - origin
        ),
        reverse=order == "farthest",
    )
    assert ranked[n] == answer
    assert ranked[-1 if order == "farthest" else 0] == m


def test_layout():
  task = NthFarthest(5, 3)
  inputs, answers = draw(task, 200)
  assert inputs.shape == (200, 5, task.step_size)
  assert inputs.dtype == np.float32
  assert answers.dtype == np.int32
  points, one_hot = inputs[..., :3], inputs[..., 3:].reshape(200, 5, 3, 5)
  assert np.all(np.abs(points) <= 1)
  assert set(np.unique(one_hot)) == {0.0, 1.0}
  np.testing.assert_array_equal(one_hot.sum(axis=-1), 1)
  # Each label once in a sequence; one and the same question at every step.
  np.testing.assert_array_equal(one_hot[:, :, 0].sum(axis=1), 1)
  np.testing.assert_array_equal(
      one_hot[:, :, 1:], np.broadcast_to(one_hot[:, :1, 1:], (200, 5, 2, 5))
  )


def test_distribution():
  count = 20_000
  task = NthFarthest(4, 2)
  inputs, answers = draw(task, count)
  # All uniform: within 5 standard errors.
  one_hot = inputs[..., 2:].reshape(count, 4, 3, 4)
  error = 5 * np.sqrt(0.25 * 0.75 / count)
  np.testing.assert_allclose(one_hot.mean(axis=0), 0.25, atol=error)
  np.testing.assert_allclose(
      np.bincount(answers, minlength=4) / count, 0.25, atol=error
  )
  points = inputs[..., :2]
  np.testing.assert_allclose(
      points.mean(axis=0), 0, atol=5 * np.sqrt(1 / 3 / count)
  )
  np.testing.assert_allclose(points.var(axis=0), 1 / 3, atol=0.02)


@pytest.mark.parametrize("k", [3, 8])
def test_plateau_is_what_the_shortcut_reaches(k):
  count = 20_000
  task = NthFarthest(k, 2)
  inputs, answers = draw(task, count)
  random = np.random.default_rng(0)
  correct = 0
  for sequence, answer in zip(inputs, answers, strict=True):
    _, _, m, n = parts(task, sequence)
    guess = m
    if n != k - 1:  # Any label but m.
      guess = (m + random.integers(1, k)) % k
    correct += guess == answer
  error = np.sqrt(task.plateau * (1 - task.plateau) / count)
  assert abs(correct / count - task.plateau) < 4 * error


def test_sample_depends_on_its_key_alone():
  task = NthFarthest(4, 3)
  keys = jax.random.split(jax.random.key(7), 6)
  inputs, answers = jax.vmap(task.sample)(keys)
  alone, answer = task.sample(keys[4])
  np.testing.assert_array_equal(inputs[4], alone)
  assert answers[4] == answer
  assert not np.array_equal(inputs[4], inputs[5])


def test_compose_asks_what_it_is_told():
  task = NthFarthest(3, 1)
  points = jnp.array([[0.0], [0.2], [1.0]])
  labels = jnp.array([2, 0, 1], jnp.int32)
  for rank, expected in enumerate([1, 0, 2]):
    _, answer = task.compose(points, labels, jnp.int32(2), jnp.int32(rank))
    assert answer == expected


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_objects": 1}, "num_objects must be at least 2, got 1"),
        ({"num_features": 0}, "num_features must be at least 1, got 0"),
        ({"order": "middle"}, "order must be one of .*farthest.* 'middle'"),
    ],
)
def test_errors(arguments, message):
  with pytest.raises(ValueError, match=message):
    NthFarthest(**arguments)
