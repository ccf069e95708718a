"""Moved to `tasks.environments.box_world`; the name stays for one release."""

from tasks._deprecation import warn_moved
from tasks.environments.box_world import (
    ACTIONS,
    DISTRACTOR,
    LOCK,
    NUM_COLOURS,
    BoxWorld,
    State,
)

__all__ = [
    "ACTIONS",
    "DISTRACTOR",
    "LOCK",
    "NUM_COLOURS",
    "BoxWorld",
    "State",
]

warn_moved("tasks.box_world", "tasks.environments.box_world")
