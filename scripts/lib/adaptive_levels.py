"""The levels of Learning to Execute, across an interruption of the run."""

from collections.abc import Callable
import functools

from absl import flags
import haiku as hk
import jax
import numpy as np

from rmc import training
from rmc.training import multihost
from tasks.learn_to_execute import LearnToExecute, Level, LevelCurriculum

FLAGS = flags.FLAGS

# The same validation and test programs, whatever the seed of the run.
EVAL_SEED = 0
_VALID_PROGRAMS = 1280


class AdaptiveLevels:
  """A curriculum that recalls where a run was interrupted.

  Its level changes with the loss on validation programs, which the run's
  reports hold.
  """

  def __init__(
      self,
      curriculum: LevelCurriculum,
      task: LearnToExecute,
      score: Callable[..., tuple[jax.Array, ...]],
  ):
    """Constructs a AdaptiveLevels.

    Args:
      curriculum: at its first level.
      task: draws the validation programs.
      score: `(params, batch)` to the loss and more.
    """
    self._curriculum = curriculum
    self._task = task
    self._score = score

  @functools.cached_property
  def _recalled(self) -> LevelCurriculum:
    """The curriculum, brought to where the run was interrupted."""
    if self._curriculum.adapts:
      for record in multihost.on_leader(
          lambda: training.read_metrics(FLAGS.workdir)
      ):
        if "valid_loss" in record:
          self._curriculum.update(record["valid_loss"])
    return self._curriculum

  @property
  def level(self) -> Level:
    """The level of the next programs."""
    return self._recalled.level

  def validate(self, params: hk.Params) -> dict[str, float]:
    """Evaluates on the present level and tells the curriculum.

    Args:
      params: the network's parameters.

    Returns:
      The loss, and the level that it is of.
    """
    level = self.level
    numbers = np.arange(_VALID_PROGRAMS)
    valid = self._task.sample(EVAL_SEED, numbers, level, "valid")
    loss = float(self._score(params, valid)[0])  # On all processes.
    loss = multihost.on_leader(lambda: loss)  # To the last bit the same.
    self._recalled.update(loss)
    return {
        "valid_loss": loss,
        "level_length": level.length,
        "level_nesting": level.nesting,
    }
