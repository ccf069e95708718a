"""Baseline cores of the paper that Haiku does not have."""

from rmc.baselines.dnc import DNC, DNCState
from rmc.baselines.entnet import EntNet

__all__ = ["DNC", "DNCState", "EntNet"]
