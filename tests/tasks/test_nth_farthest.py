"""The Nth Farthest sampler."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tasks.nth_farthest import (
    ORDERS,
    NthFarthest,
    Progress,
    Stage,
    StageCurriculum,
    parse_stages,
)
from tests.helpers import golden_vectors


# A sampler takes seconds to compile, so tests share what is drawn.
@functools.cache
def draw(k, d, count):
  """Returns many sequences and their answers, by order, as NumPy arrays."""

  @jax.jit
  def sample(keys):
    return {
        order: jax.vmap(NthFarthest(k, d, order).sample)(keys)
        for order in ORDERS
    }

  return jax.device_get(sample(jax.random.split(jax.random.key(0), count)))


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
  nearest = NthFarthest(k, d, order="nearest")
  assert inputs.shape[1:] == (k, nearest.step_size)
  # Counted from the other end, rank n is rank k - 1 - n.
  flipped = inputs.copy()
  flipped[..., d + 2 * k :] = inputs[..., d + 2 * k :][..., ::-1]
  farthest = NthFarthest(k, d, order="farthest")

  @jax.jit
  def answers(inputs, flipped):
    return (
        jax.vmap(nearest.answer)(inputs),
        jax.vmap(farthest.answer)(flipped),
    )

  for found in answers(inputs, flipped):
    np.testing.assert_array_equal(found, labels)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("k, d", [(2, 1), (5, 3), (8, 16)])
def test_answers_by_sorting(k, d, order):
  task = NthFarthest(k, d, order)
  inputs, answers = draw(k, d, 200)[order]
  for sequence, answer in zip(inputs[:50], answers[:50], strict=True):
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
  inputs, answers = draw(5, 3, 200)["farthest"]
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


def assert_uniform(inputs, answers, k, d):
  """Asserts that all is uniform, to 5 standard errors."""
  count = len(inputs)
  one_hot = inputs[..., d:].reshape(count, k, 3, k)
  error = 5 * np.sqrt(1 / k * (1 - 1 / k) / count)
  np.testing.assert_allclose(one_hot.mean(axis=0), 1 / k, atol=error)
  np.testing.assert_allclose(
      np.bincount(answers, minlength=k) / count, 1 / k, atol=error
  )
  points = inputs[..., :d]
  np.testing.assert_allclose(
      points.mean(axis=0), 0, atol=5 * np.sqrt(1 / 3 / count)
  )
  np.testing.assert_allclose(points.var(axis=0), 1 / 3, atol=0.02)


@pytest.mark.parametrize("k", [3, 8])
def test_distribution(k):
  assert_uniform(*draw(k, 2, 20_000)["farthest"], k, 2)


@pytest.mark.parametrize("k", [3, 8])
def test_plateau_is_what_the_shortcut_reaches(k):
  task = NthFarthest(k, 2)
  inputs, answers = draw(k, 2, 20_000)["farthest"]
  m, n = (inputs[:, 0, 2 + i * k :][:, :k].argmax(axis=1) for i in (1, 2))
  other = np.random.default_rng(0).integers(1, k, size=answers.size)
  guesses = np.where(n == k - 1, m, (m + other) % k)  # Any label but m.
  error = np.sqrt(task.plateau * (1 - task.plateau) / answers.size)
  assert abs(np.mean(guesses == answers) - task.plateau) < 4 * error


def test_sample_depends_on_its_key_alone():
  inputs, answers = draw(5, 3, 200)["farthest"]
  keys = jax.random.split(jax.random.key(0), 200)
  alone, answer = jax.jit(NthFarthest(5, 3).sample)(keys[4])
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


@pytest.mark.parametrize(
    "points, labels, message",
    [
        ([2, 2], [0, 1, 2], r"points must have shape \[3, 2\], got \[2, 2\]"),
        ([3, 1], [0, 1, 2], r"points must have shape .*got \[3, 1\]"),
        ([3, 2], [0, 1], r"labels must have shape \[3\], got \[2\]"),
        ([3, 2], [1, 2, 3], r"labels must be .* 0 to 2 .*\[1, 2, 3\]"),
        ([3, 2], [0, 0, 2], r"labels must be .* 0 to 2 .*\[0, 0, 2\]"),
    ],
)
def test_compose_errors(points, labels, message):
  labels = jnp.array(labels, jnp.int32)
  with pytest.raises(ValueError, match=message):
    NthFarthest(3, 2).compose(jnp.zeros(points), labels, labels[0], labels[0])


@pytest.mark.parametrize("value", [-1, 4, 1.7, [2]])
@pytest.mark.parametrize("name", ["reference", "rank"])
def test_compose_question_errors(name, value):
  """The paper counts from 1, so that it has a fourth of four."""
  question = {"reference": 0, "rank": 0, name: value}
  with pytest.raises(ValueError, match=f"{name} must be from 0 to 3, got "):
    NthFarthest(4, 2).compose(jnp.zeros([4, 2]), jnp.arange(4), **question)


# Stages and curricula.


@pytest.mark.parametrize(
    "stage",
    [Stage(1, 1, 4), Stage(4, 2, 2), Stage(5, 2, 5), Stage(4, 3, 4)],
)
def test_stage_errors(stage):
  with pytest.raises(ValueError, match=f"a stage must .*, got {stage}"):
    NthFarthest(4, 2).sample_stage(jax.random.key(0), stage)


@functools.cache
def stage_sampler(order):
  """Returns the compiled sampler of the stages of 5 objects in 4 dimensions."""
  task = NthFarthest(5, 4, order)
  return jax.jit(jax.vmap(task.sample_stage, in_axes=(0, None)))


def draw_stage(order, stage):
  """Returns 20,000 sequences of a stage, whose numbers are traced."""
  keys = jax.random.split(jax.random.key(1), 20_000)
  stage = jax.tree.map(jnp.int32, stage)
  return jax.device_get(stage_sampler(order)(keys, stage))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "stage", [Stage(2, 1, 2), Stage(3, 4, 3), Stage(3, 2, 5), Stage(5, 4, 5)]
)
def test_a_stage_is_a_smaller_task_in_the_same_shapes(stage, order):
  """Zeros around fewer objects, coordinates and labels; answers by sorting."""
  objects, features, labels = stage[:3]
  inputs, answers = (x[:200] for x in draw_stage(order, stage))
  assert inputs.shape == (200, 5, NthFarthest(5, 4).step_size)
  assert np.all(inputs[:, objects:] == 0)
  shown = inputs[:, :objects]
  assert np.all(shown[..., features:4] == 0)
  assert np.all(shown[..., :features] != 0)
  one_hot = shown[..., 4:].reshape(200, objects, 3, 5)
  np.testing.assert_array_equal(one_hot.sum(axis=3), 1)
  assert np.all(one_hot[:, :, 0].sum(axis=1) <= 1)  # No label twice.
  assert np.all(one_hot[:, :, 0, labels:] == 0)
  assert np.all(one_hot[:, :, 0, :labels].any(axis=(0, 1)))
  # The question is about an object that is shown, at a rank that there is.
  m = one_hot[:, 0, 1].argmax(axis=1)
  assert np.all(one_hot[np.arange(200), :, 0, m].any(axis=1))
  assert set(one_hot[:, 0, 2].argmax(axis=1)) == set(range(objects))

  for points, names, question, answer in zip(
      shown[..., :4], one_hot[:, :, 0], one_hot[:, 0, 1:], answers, strict=True
  ):
    names = names.argmax(axis=1).tolist()
    reference, rank = question.argmax(axis=1).tolist()
    origin = points[names.index(reference)].astype(np.float64)
    distances = np.linalg.norm(points - origin, axis=1)
    ranked = np.argsort(-distances if order == "farthest" else distances)
    assert names[ranked[rank]] == answer


def test_the_whole_task_is_a_stage():
  whole = NthFarthest(5, 4).whole
  assert_uniform(*draw_stage("farthest", whole), 5, 4)


def test_stages_are_read_and_end_with_the_whole_task():
  task = NthFarthest(8, 16)
  names = ["3x2", "3x4x8", "3x5@0.75", "4x5x8@0.5"]
  stages = parse_stages(names)
  assert stages == [
      Stage(3, 2, 3),
      Stage(3, 4, 8),
      Stage(3, 5, 3, 0.75),
      Stage(4, 5, 8, 0.5),
  ]
  assert [str(stage) for stage in stages] == names
  whole = Stage(8, 16, 8)
  assert StageCurriculum(task, stages).stages == [*stages, whole]
  assert StageCurriculum(task, [*stages, whole]).stages == [*stages, whole]
  assert StageCurriculum(task).stages == [whole]


@pytest.mark.parametrize(
    "name", ["3", "3x", "3xa", "3x2x3x4", "-3x2", "", "3x2@", "3x2@a"]
)
def test_a_stage_that_cannot_be_read_is_an_error(name):
  with pytest.raises(ValueError, match=f"as in 3x2 or 3x2x8@0.8, got '{name}'"):
    parse_stages([name])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"stages": [Stage(1, 1, 1)]}, "2 objects or more.*got 1x1"),
        ({"stages": [Stage(3, 1, 2)]}, "no more of them than labels"),
        ({"stages": [Stage(3, 1, 5)]}, "than the task.*got 3x1x5"),
        ({"stages": [Stage(3, 0, 3)]}, "1 feature or more"),
        ({"stages": [Stage(3, 3, 3)]}, "than the task.*got 3x3"),
        (
            {"stages": [Stage(3, 1, 3), Stage(4, 2, 4), Stage(2, 1, 2)]},
            "whole task must be the last stage.*got 3x1, 4x2, 2x1",
        ),
        ({"threshold": 0}, "threshold must be above 0 .* got 0"),
        ({"threshold": 1}, "threshold .* below 1, got 1"),
        ({"stages": [Stage(3, 1, 3, 1.5)]}, "threshold .* got 1.5"),
        ({"review": -0.1}, "review must be from 0 to below 1, got -0.1"),
        ({"review": 1}, "review .* got 1"),
    ],
)
def test_curriculum_errors(arguments, message):
  with pytest.raises(ValueError, match=message):
    StageCurriculum(NthFarthest(4, 2), **arguments)


def test_a_curriculum_goes_on_when_a_stage_is_learnt():
  """Against the running mean by hand; the last stage never ends."""
  curriculum = StageCurriculum(
      NthFarthest(4, 2), parse_stages(["3x1", "3x2"]), threshold=0.5
  )
  advance = jax.jit(curriculum.advance)
  progress = curriculum.initial(2)
  mean, stage, seen = 0.0, 0, []
  for correct in [0.25] * 10 + [0.5] * 80:
    progress = advance(progress, jnp.float32(correct), jnp.float32(0.5))
    mean = 0.95 * mean + 0.05 * (correct / 0.5)
    if mean >= 0.5 and stage < 2:
      mean, stage = 0.0, stage + 1
    assert progress.stage.tolist() == [stage] * 2
    np.testing.assert_allclose(progress.accuracy, [mean] * 2, rtol=1e-5)
    seen.append(stage)
  assert set(seen) == {0, 1, 2}
  # With no example of the present stage nothing is learnt about it.
  same = advance(progress, jnp.float32(0), jnp.float32(0))
  assert jax.tree.all(jax.tree.map(np.array_equal, same, progress))
  assert isinstance(same, Progress)


def test_a_stage_may_have_a_threshold_of_its_own():
  """Always right, the running mean is at 0.5 after 14 updates, at 0.9 in 45."""
  curriculum = StageCurriculum(
      NthFarthest(4, 2), parse_stages(["3x1@0.5", "3x2"]), threshold=0.9
  )

  def advance(progress, _):
    following = curriculum.advance(progress, jnp.float32(1), jnp.float32(1))
    return following, following.stage != progress.stage

  _, rises = jax.lax.scan(advance, curriculum.initial(1), length=79)
  assert (1 + np.flatnonzero(rises)).tolist() == [14, 14 + 45]


def test_review_draws_from_the_stages_before():
  stages = parse_stages(["2x1", "3x1", "4x1"])
  curriculum = StageCurriculum(NthFarthest(4, 2), stages, review=0.4)
  keys = jax.random.split(jax.random.key(3), 8000)
  sample = jax.jit(jax.vmap(curriculum.sample, in_axes=(0, None)))
  inputs, answers, drawn, present = sample(keys, jnp.int32(2))
  shown = np.any(inputs != 0, axis=2).sum(axis=1)
  np.testing.assert_array_equal(drawn.num_objects, shown)
  np.testing.assert_array_equal(present, shown == 4)
  error = 5 * np.sqrt(0.4 * 0.6 / 8000)
  np.testing.assert_allclose(
      [np.mean(shown == n) for n in (2, 3, 4)], [0.2, 0.2, 0.6], atol=error
  )
  assert np.all(answers < shown)  # As many labels as objects.
  _, _, drawn, present = sample(keys, jnp.int32(0))
  assert np.all(drawn.num_objects == 2) and np.all(present)
