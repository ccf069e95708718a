"""Moved to `tasks.environments.adapters`; the name stays for one release."""

from tasks._deprecation import warn_moved
from tasks.environments.adapters import (
    DmEnvironment,
    GymnasiumEnv,
    GymnasiumVectorEnv,
    make,
    to_dm_env,
    to_gymnasium,
)

__all__ = [
    "DmEnvironment",
    "GymnasiumEnv",
    "GymnasiumVectorEnv",
    "make",
    "to_dm_env",
    "to_gymnasium",
]

warn_moved("tasks.adapters", "tasks.environments.adapters")
