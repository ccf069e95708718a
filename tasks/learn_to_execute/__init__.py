"""Learning to Execute: what does this short program print?"""

from typing import Any

from tasks import _deprecation
from tasks.learn_to_execute.curriculum import CURRICULA, Level, LevelCurriculum
from tasks.learn_to_execute.encoding import PAD, START, UNKNOWN, Batch
from tasks.learn_to_execute.grammar import OPERATIONS, TASKS
from tasks.learn_to_execute.scoring import evaluate, score
from tasks.learn_to_execute.splits import SPLITS, split_of
from tasks.learn_to_execute.task import LearnToExecute

__all__ = [
    "CURRICULA",
    "OPERATIONS",
    "PAD",
    "SPLITS",
    "START",
    "TASKS",
    "UNKNOWN",
    "Batch",
    "LearnToExecute",
    "Level",
    "LevelCurriculum",
    "evaluate",
    "score",
    "split_of",
]


def __getattr__(name: str) -> Any:
  """Returns what an old name stands for, with a warning."""
  renamed = {"Curriculum": LevelCurriculum}
  return _deprecation.renamed(__name__, renamed, name)
