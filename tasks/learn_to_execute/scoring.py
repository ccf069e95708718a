"""How well a network answers.

Glossary of shapes:
  - n: programs.
  - T': tokens of a padded answer.
  - V: tokens of the vocabulary.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from tasks.learn_to_execute.encoding import Batch


def score(
    logits: jax.Array, targets: jax.Array, lengths: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Compares a decoder's logits with the answers.

  Args:
    logits: `[T', n, V]`.
    targets: tokens of the answers, `[T', n]`.
    lengths: their lengths, `[n]`; what is past them does not count.

  Returns:
    The loss, as normalised in the original: cross-entropy summed over the
    tokens of answers, divided by all T' n places, padding included. For each
    answer the number of tokens that are right, float32 `[n]`, and whether all
    are, 1.0 or 0.0.
  """
  steps = jnp.arange(targets.shape[0], dtype=lengths.dtype)
  counts = steps[:, None] < lengths[None]  # [T', n]
  log_probs = jax.nn.log_softmax(logits)
  picked = jnp.take_along_axis(log_probs, targets[..., None], axis=2)[..., 0]
  loss = -jnp.mean(jnp.where(counts, picked, jnp.zeros_like(picked)))
  guesses = jnp.argmax(logits, axis=2).astype(targets.dtype)
  correct = jnp.sum(counts & (guesses == targets), axis=0, dtype=lengths.dtype)
  solved = correct == lengths
  return loss, correct.astype(jnp.float32), solved.astype(jnp.float32)


def evaluate(
    score_batch: Callable[[Batch], tuple[jax.Array, jax.Array, jax.Array]],
    programs: Batch,
    batch_size: int,
) -> dict[str, float]:
  """Evaluates a network on programs, a batch at a time.

  Args:
    score_batch: compares the network's answers to a batch with the right ones;
      it returns what `score` does.
    programs: the programs, n of them, at least 2.
    batch_size: programs of a batch; the last batch may be smaller.

  Returns:
    Metrics: `eval_loss`; `eval_character_accuracy`, the ratio of right
    characters to all; and `eval_answer_accuracy`, the share of answers that
    are right as a whole. Both accuracies have a standard error,
    `..._standard_error`.
  """
  count = len(programs.inputs)
  losses, correct, solved = [], [], []
  for first in range(0, count, batch_size):
    part = Batch(*(x[first : first + batch_size] for x in programs))
    found = jax.device_get(score_batch(part))
    losses.append(found[0] * len(part.inputs))
    correct.append(found[1])
    solved.append(found[2])
  correct = np.concatenate(correct, dtype=np.float64)
  characters = programs.target_lengths.astype(np.float64)
  accuracy = correct.sum() / characters.sum()
  # A ratio of two sums over programs, whose answers differ in length.
  errors = correct - accuracy * characters
  solved = np.concatenate(solved, dtype=np.float64)
  return {
      "eval_loss": float(np.sum(losses)) / count,
      "eval_character_accuracy": float(accuracy),
      "eval_character_accuracy_standard_error": float(
          np.sqrt(np.sum(errors**2)) / characters.sum()
      ),
      "eval_answer_accuracy": float(solved.mean()),
      "eval_answer_accuracy_standard_error": float(
          solved.std() / np.sqrt(count)
      ),
  }
