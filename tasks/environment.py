"""Moved to `tasks.environments.interface`; the name stays for one release."""

from tasks._deprecation import warn_moved
from tasks.environments.interface import (
    Environment,
    StepType,
    TimeStep,
    sample_where,
    windows,
)

__all__ = [
    "Environment",
    "StepType",
    "TimeStep",
    "sample_where",
    "windows",
]

warn_moved("tasks.environment", "tasks.environments.interface")
