"""Environments: the interface, Mini Pacman and BoxWorld.

`tasks.environments.adapters` wraps them for dm_env and Gymnasium. It needs the
extra `envs`, so this package does not import it.
"""

from tasks.environments.box_world import BoxWorld
from tasks.environments.interface import (
    Environment,
    StepType,
    TimeStep,
    sample_where,
    windows,
)
from tasks.environments.mini_pacman import RULES, MiniPacman, Rules

__all__ = [
    "RULES",
    "BoxWorld",
    "Environment",
    "MiniPacman",
    "Rules",
    "StepType",
    "TimeStep",
    "sample_where",
    "windows",
]
