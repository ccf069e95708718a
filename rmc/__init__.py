"""The Relational Memory Core of Santoro et al. (2018) for Haiku."""

from rmc import baselines, sonnet
from rmc.networks import (
    ActorCritic,
    LanguageModel,
    Seq2Seq,
    SequenceClassifier,
)
from rmc.relational_memory import PrecomputedInputs, RelationalMemory, StepInfo
from rmc.softmax import AdaptiveSoftmax, Softmax
from rmc.unroll import unroll
from rmc.vtrace import VTrace, vtrace

__version__ = "0.1.0"
__all__ = [
    "ActorCritic",
    "AdaptiveSoftmax",
    "LanguageModel",
    "PrecomputedInputs",
    "RelationalMemory",
    "Seq2Seq",
    "SequenceClassifier",
    "Softmax",
    "StepInfo",
    "VTrace",
    "baselines",
    "sonnet",
    "unroll",
    "vtrace",
]
