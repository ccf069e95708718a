"""Nth Farthest: which object is the n-th farthest from object m?

Glossary of shapes:
  - k: number of objects, which is also the number of steps and of classes.
  - d: number of coordinates of an object.
"""

import dataclasses

import jax
import jax.numpy as jnp

ORDERS = ("farthest", "nearest")


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
  coordinates, then label, m and n one-hot; `features` numbers in all. (The
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
    """
    k = self.num_objects
    question = jnp.concatenate(
        [jax.nn.one_hot(reference, k), jax.nn.one_hot(rank, k)]
    )
    inputs = jnp.concatenate(
        [
            points.astype(jnp.float32),
            jax.nn.one_hot(labels, k),
            jnp.broadcast_to(question, (k, 2 * k)),
        ],
        axis=1,
    )
    return inputs, self.answer(inputs)

  def answer(self, inputs: jax.Array) -> jax.Array:
    """Returns the label of the answer, from 0, for inputs `[k, d + 3k]`."""
    points = inputs[:, : self.num_features]  # [k, d]
    one_hot = inputs[:, self.num_features :]
    labels, reference, rank = (
        jnp.argmax(x, axis=1) for x in jnp.split(one_hot, 3, axis=1)
    )  # [k] each
    origin = points[jnp.argmax(labels == reference)]
    distances = jnp.sum((points - origin[None]) ** 2, axis=1)  # [k]
    if self.order == "farthest":
      distances = -distances
    return labels[jnp.argsort(distances)[rank[0]]].astype(jnp.int32)
