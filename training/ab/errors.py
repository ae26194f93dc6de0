"""Errors of the simulated experiment."""

from __future__ import annotations

from training.errors import TrainingError


class ExperimentError(TrainingError):
    """The experiment cannot be run, or tells nothing; the message says what to change."""
