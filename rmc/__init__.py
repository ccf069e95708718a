"""The Relational Memory Core of Santoro et al. (2018) for Haiku."""

from rmc import sonnet
from rmc.networks import Seq2Seq, SequenceClassifier
from rmc.relational_memory import PrecomputedInputs, RelationalMemory, StepInfo
from rmc.softmax import AdaptiveSoftmax, Softmax, log_probs
from rmc.unroll import unroll

__version__ = "0.1.0"
__all__ = [
    "AdaptiveSoftmax",
    "PrecomputedInputs",
    "RelationalMemory",
    "Seq2Seq",
    "SequenceClassifier",
    "Softmax",
    "StepInfo",
    "log_probs",
    "sonnet",
    "unroll",
]
