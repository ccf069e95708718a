"""Nth Farthest: which object is the n-th farthest from object m?

Glossary of shapes:
  - k: number of objects, which is also the number of steps and of classes.
  - d: number of coordinates of an object.
"""

from collections.abc import Sequence
import dataclasses
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tasks import _deprecation

ORDERS = ("farthest", "nearest")
# Of the running mean of a stage's accuracy; about 20 updates long.
_DECAY = 0.95


class Stage(NamedTuple):
  """A part of the task: fewer objects, coordinates or labels than it has.

  Attributes:
    num_objects: how many objects are shown, before steps of zeros.
    num_features: how many coordinates are not zero.
    num_labels: how many labels the objects draw theirs from.
    threshold: accuracy at which a curriculum goes on; None for its own.
  """

  num_objects: int | jax.Array
  num_features: int | jax.Array
  num_labels: int | jax.Array
  threshold: float | None = None

  def __str__(self) -> str:
    """Returns what `parse_stages` reads."""
    labels = f"x{self.num_labels}" * (self.num_labels != self.num_objects)
    threshold = "" if self.threshold is None else f"@{self.threshold:g}"
    return f"{self.num_objects}x{self.num_features}{labels}{threshold}"


@dataclasses.dataclass(frozen=True)
class NthFarthest:
  """The task of section 4.1 of Santoro et al. (2018).

  A sequence shows k objects. Each is a point, uniform in [-1, 1]^d, with a
  label of its own; the labels are a permutation, so they tell nothing about
  the position in the sequence. Every step also repeats the question, the
  label m of a reference object and the rank n. The answer is the label of the
  object at rank n when all objects, the reference included at distance 0, are
  ordered by their Euclidean distance to the reference.

  A step is laid out as in `dataset_nth_farthest.py` of Sonnet v1: d
  coordinates, then label, m and n one-hot; `step_size` numbers in all. (The
  paper names n before m.)

  Attributes:
    num_objects: k, at least 2; 8 in the paper.
    num_features: d, at least 1; 16 in the paper.
    order: `'farthest'` if n = 0 asks for the farthest object, as in the paper;
      `'nearest'` if it asks for the nearest, as in the released Sonnet code.
      The reference itself is at rank k - 1, or 0.
  """

  num_objects: int = 8
  num_features: int = 16
  order: str = "farthest"

  def __post_init__(self):
    """Raises a ValueError for a setting out of its range."""
    if self.num_objects < 2:
      raise ValueError(
          f"num_objects must be at least 2, got {self.num_objects}."
      )
    if self.num_features < 1:
      raise ValueError(
          f"num_features must be at least 1, got {self.num_features}."
      )
    if self.order not in ORDERS:
      raise ValueError(f"order must be one of {ORDERS}, got {self.order!r}.")

  @property
  def step_size(self) -> int:
    """Width of a step, d + 3k."""
    return self.num_features + 3 * self.num_objects

  @property
  def plateau(self) -> float:
    """The accuracy, 2 / k, of a network that compares no distances.

    With probability 1 / k the answer is the reference itself, which n alone
    tells; otherwise a guess among the others is right once in k - 1 times.
    """
    return 2 / self.num_objects

  @property
  def whole(self) -> Stage:
    """The stage that is the task itself."""
    return Stage(self.num_objects, self.num_features, self.num_objects)

  def check_stage(self, stage: Stage):
    """Raises a ValueError if a stage, of plain numbers, is no part of it."""
    if not (
        2 <= stage.num_objects <= stage.num_labels <= self.num_objects
        and 1 <= stage.num_features <= self.num_features
    ):
      raise ValueError(
          "a stage must have 2 objects or more, no more of them than labels, "
          f"1 feature or more, and no more of each than the task, {self}, got "
          f"{stage}."
      )

  def sample(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draws one sequence; use `jax.vmap` over keys for a batch.

    Args:
      key: a PRNG key; the sequence is a pure function of it.

    Returns:
      Inputs `[k, d + 3k]`, float32, and the label of the answer, from 0,
      int32.
    """
    k = self.num_objects
    keys = jax.random.split(key, 4)
    points = jax.random.uniform(
        keys[0], (k, self.num_features), minval=-1.0, maxval=1.0
    )
    labels = jax.random.permutation(keys[1], k)
    reference = jax.random.randint(keys[2], (), 0, k)
    rank = jax.random.randint(keys[3], (), 0, k)
    return self.compose(points, labels, reference, rank)

  def sample_stage(
      self, key: jax.Array, stage: Stage
  ) -> tuple[jax.Array, jax.Array]:
    """Draws one sequence of a part of the task, in the shapes of the whole.

    Args:
      key: a PRNG key; the sequence is a pure function of it and the stage.
      stage: which part. Its numbers may be traced, so that one compiled
        function serves all stages.

    Returns:
      Inputs `[k, d + 3k]`, float32, whose steps after the last object are
      zero, and the label of the answer, from 0, int32.

    Raises:
      ValueError: if the stage, where it is not traced, is no part of the task.
    """
    if not any(isinstance(x, jax.core.Tracer) for x in stage):
      self.check_stage(stage)
    k = self.num_objects
    keys = jax.random.split(key, 4)
    points = jax.random.uniform(
        keys[0], (k, self.num_features), minval=-1.0, maxval=1.0
    )
    in_use = jnp.arange(self.num_features) < stage.num_features  # [d]
    points = jnp.where(in_use[None], points, 0.0)
    labels = jax.random.permutation(keys[1], k)
    # The labels in use come first, in random order.
    labels = labels[jnp.argsort(labels >= stage.num_labels, stable=True)]
    reference = labels[jax.random.randint(keys[2], (), 0, stage.num_objects)]
    rank = jax.random.randint(keys[3], (), 0, stage.num_objects)
    inputs = self._lay_out(points, labels, reference, rank)
    shown = jnp.arange(k) < stage.num_objects
    inputs = jnp.where(shown[:, None], inputs, 0.0)
    return inputs, self.answer(inputs)

  def compose(
      self,
      points: jax.Array,
      labels: jax.Array,
      reference: jax.Array,
      rank: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    """Lays out given objects and a question.

    Args:
      points: one object a step, `[k, d]`.
      labels: the label of each, `[k]`, from 0.
      reference: m, the label of the reference, from 0.
      rank: n, from 0.

    Returns:
      Inputs `[k, d + 3k]`, float32, and the label of the answer, from 0,
      int32.

    Raises:
      ValueError: if points or labels have a wrong shape or, where they are not
        traced, the labels are not each of the k, or m or n is none of them.
    """
    k = self.num_objects
    expected = {"points": (k, self.num_features), "labels": (k,)}
    for name, x in (("points", points), ("labels", labels)):
      if jnp.shape(x) != expected[name]:
        raise ValueError(
            f"{name} must have shape {list(expected[name])}, got "
            f"{list(jnp.shape(x))}."
        )
    if not isinstance(labels, jax.core.Tracer) and sorted(
        np.asarray(labels).tolist()
    ) != list(range(k)):
      raise ValueError(
          f"labels must be the numbers from 0 to {k - 1} in some order, got "
          f"{np.asarray(labels).tolist()}."
      )
    for name, x in (("reference", reference), ("rank", rank)):
      if not isinstance(x, jax.core.Tracer) and (
          np.asarray(x).tolist() not in range(k)
      ):
        raise ValueError(f"{name} must be from 0 to {k - 1}, got {x}.")
    inputs = self._lay_out(points, labels, reference, rank)
    return inputs, self.answer(inputs)

  def _lay_out(self, points, labels, reference, rank) -> jax.Array:
    k = self.num_objects
    question = jnp.concatenate(
        [jax.nn.one_hot(reference, k), jax.nn.one_hot(rank, k)]
    )
    return jnp.concatenate(
        [
            points.astype(jnp.float32),
            jax.nn.one_hot(labels, k),
            jnp.broadcast_to(question, (k, 2 * k)),
        ],
        axis=1,
    )

  def answer(self, inputs: jax.Array) -> jax.Array:
    """Returns the label of the answer, from 0, for inputs `[k, d + 3k]`.

    Steps of zeros, after the objects of a stage, are not among the answers.
    """
    points = inputs[:, : self.num_features]  # [k, d]
    one_hot = inputs[:, self.num_features :]
    shown = jnp.any(one_hot > 0, axis=1)  # [k]
    labels, reference, rank = (
        jnp.argmax(x, axis=1) for x in jnp.split(one_hot, 3, axis=1)
    )  # [k] each
    origin = points[jnp.argmax(labels == reference)]
    distances = jnp.sum((points - origin[None]) ** 2, axis=1)  # [k]
    if self.order == "farthest":
      distances = -distances
    distances = jnp.where(shown, distances, jnp.inf)
    return labels[jnp.argsort(distances)[rank[0]]].astype(jnp.int32)


class Progress(NamedTuple):
  """How far a curriculum has come; the same number for each example.

  A carry is split over devices by example, hence the copies.

  Attributes:
    stage: number of the stage, from 0, int32, `[B]`.
    accuracy: running mean of the accuracy on it, from 0, `[B]`.
  """

  stage: jax.Array
  accuracy: jax.Array


class StageCurriculum:
  """Stages that end with the whole task, each begun when the last is learnt.

  The next stage begins once a running mean of the accuracy on fresh examples
  of the present one is at the threshold.

  Attributes:
    stages: all stages; the last is the whole task.
  """

  def __init__(
      self,
      task: NthFarthest,
      stages: Sequence[Stage] = (),
      threshold: float = 0.9,
      review: float = 0.0,
  ):
    """Constructs a StageCurriculum.

    Args:
      task: the whole task.
      stages: what comes before it; none for no curriculum.
      threshold: accuracy, above 0 and below 1, at which a stage ends that has
        no threshold of its own.
      review: share of examples, from 0 to below 1, that are drawn from the
        stages before the present one, each as likely.

    Raises:
      ValueError: if a setting is out of its range.
    """
    for stage in stages:
      task.check_stage(stage)
    if any(stage[:3] == task.whole[:3] for stage in stages[:-1]):
      raise ValueError(
          "the whole task must be the last stage, which it is anyway, got "
          f"{', '.join(map(str, stages))}."
      )
    own = [stage.threshold for stage in stages if stage.threshold is not None]
    for value in (threshold, *own):
      if not 0 < value < 1:  # A running mean never gets to 1.
        raise ValueError(
            f"threshold must be above 0 and below 1, got {value}."
        )
    if not 0 <= review < 1:
      raise ValueError(f"review must be from 0 to below 1, got {review}.")
    self.stages = [stage for stage in stages if stage[:3] != task.whole[:3]]
    self.stages.append(task.whole)
    self._task = task
    self._numbers = np.array([stage[:3] for stage in self.stages])
    self._thresholds = np.array(
        [
            threshold if stage.threshold is None else stage.threshold
            for stage in self.stages
        ],
        np.float32,
    )
    self._review = review

  def initial(self, batch_size: int) -> Progress:
    """Returns the progress before the first update."""
    return Progress(
        jnp.zeros(batch_size, jnp.int32), jnp.zeros(batch_size, jnp.float32)
    )

  def sample(
      self, key: jax.Array, stage: jax.Array
  ) -> tuple[jax.Array, jax.Array, Stage, jax.Array]:
    """Draws one sequence, of the present stage or of one before it.

    Args:
      key: a PRNG key.
      stage: number of the present stage, int32.

    Returns:
      Inputs and the answer, as `NthFarthest.sample_stage` returns them, the
      stage that they are of, and whether that is the present one.
    """
    keys = jax.random.split(key, 3)
    before = jax.random.randint(keys[0], (), 0, jnp.maximum(stage, 1))
    reviews = jax.random.uniform(keys[1]) < self._review
    number = jnp.where(reviews, before, stage)
    drawn = Stage(*jnp.asarray(self._numbers)[number])
    inputs, answer = self._task.sample_stage(keys[2], drawn)
    return inputs, answer, drawn, number == stage

  def advance(
      self, progress: Progress, correct: jax.Array, count: jax.Array
  ) -> Progress:
    """Returns the progress after an update.

    Args:
      progress: that before it.
      correct: share of the batch, over all devices, that was of the present
        stage and answered rightly.
      count: share of the batch that was of the present stage.
    """
    accuracy = correct / jnp.maximum(count, 1e-6)
    step = jnp.where(count > 0, 1 - _DECAY, 0.0)
    accuracy = progress.accuracy + step * (accuracy - progress.accuracy)
    learnt = accuracy >= jnp.asarray(self._thresholds)[progress.stage]
    learnt &= progress.stage < len(self.stages) - 1
    return Progress(
        progress.stage + learnt.astype(jnp.int32),
        jnp.where(learnt, 0.0, accuracy),
    )


def parse_stages(names: Sequence[str]) -> list[Stage]:
  """Reads stages as a person writes them.

  Args:
    names: for each stage its objects, features and, if there are more of them
      than objects, labels, as in `3x2` or `3x2x8`; then, if it has one of its
      own, its threshold, as in `3x2x8@0.8`.

  Returns:
    The stages.

  Raises:
    ValueError: if one is not of that form.
  """
  stages = []
  for name in names:
    match = re.fullmatch(r"(\d+)x(\d+)(?:x(\d+))?(?:@(\d*\.?\d+))?", name)
    if match is None:
      raise ValueError(
          "a stage must be OBJECTSxFEATURES[xLABELS][@THRESHOLD], as in 3x2 or "
          f"3x2x8@0.8, got {name!r}."
      )
    objects, features, labels, threshold = match.groups()
    stages.append(
        Stage(
            int(objects),
            int(features),
            int(labels or objects),
            threshold and float(threshold),
        )
    )
  return stages


def __getattr__(name: str) -> Any:
  """Returns what an old name stands for, with a warning."""
  renamed = {"Curriculum": StageCurriculum}
  return _deprecation.renamed(__name__, renamed, name)
