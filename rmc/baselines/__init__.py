"""Baseline cores that Haiku does not have."""
