"""The Relational Memory Core of Santoro et al. (2018) for Haiku."""

__version__ = "0.1.0"
