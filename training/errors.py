"""Errors of the training side. Each message says what is wrong and what to do about it."""

from __future__ import annotations


class TrainingError(Exception):
    """Base of everything that training raises on purpose."""


class DataError(TrainingError):
    """Input data is missing, or not in the documented shape."""


class RecipeError(TrainingError):
    """A recipe cannot be read, or asks for something impossible."""


class RunError(TrainingError):
    """A run's folder cannot be used or continued."""
