"""Networks around a core, one file for each."""

from rmc.networks.actor_critic import ActorCritic
from rmc.networks.language_model import LanguageModel
from rmc.networks.seq2seq import Seq2Seq
from rmc.networks.sequence_classifier import SequenceClassifier

__all__ = [
    "ActorCritic",
    "LanguageModel",
    "Seq2Seq",
    "SequenceClassifier",
]
