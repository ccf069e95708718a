"""Moved to `tasks.environments.mini_pacman`; the name stays for one release."""

from tasks._deprecation import warn_moved
from tasks.environments.mini_pacman import (
    ACTIONS,
    MAZE,
    RULES,
    Level,
    MiniPacman,
    Rules,
    State,
)

__all__ = [
    "ACTIONS",
    "MAZE",
    "RULES",
    "Level",
    "MiniPacman",
    "Rules",
    "State",
]

warn_moved("tasks.mini_pacman", "tasks.environments.mini_pacman")
