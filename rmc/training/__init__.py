"""Training: update step, loop, checkpoints and metrics."""

from rmc.training.checkpoint import (
    Checkpointer,
    CheckpointError,
    latest_step,
    load_params,
    recorded_config,
)
from rmc.training.loop import Interrupted, NonFiniteError, Schedule, train
from rmc.training.metrics import MetricsLog, read_metrics
from rmc.training.multihost import MultihostError, initialize
from rmc.training.parallel import DataParallel
from rmc.training.update import (
    LossFn,
    TrainState,
    example_keys,
    init_state,
    make_update,
    to_numpy,
)
from rmc.training.weights import WeightsError, load_weights, save_weights

__all__ = [
    "CheckpointError",
    "Checkpointer",
    "DataParallel",
    "Interrupted",
    "LossFn",
    "MetricsLog",
    "MultihostError",
    "NonFiniteError",
    "Schedule",
    "TrainState",
    "WeightsError",
    "example_keys",
    "init_state",
    "initialize",
    "latest_step",
    "load_params",
    "load_weights",
    "make_update",
    "read_metrics",
    "recorded_config",
    "save_weights",
    "to_numpy",
    "train",
]
