"""Errors of the model store. Each message says what is wrong and what to do about it."""

from __future__ import annotations


class ModelStoreError(Exception):
    """Base of everything that the model store raises on purpose."""


class UnknownVersion(ModelStoreError):
    """No source holds a version of that name."""


class InvalidVersion(ModelStoreError):
    """A version's manifest, files or base cannot be used."""


class DigestMismatch(InvalidVersion):
    """A file's bytes are not the ones that the manifest promises."""


class BaseNotFound(ModelStoreError):
    """The base model that a version builds on is not on this machine."""


class CannotWrite(ModelStoreError):
    """A store or cache folder cannot be written: the disk is full, or the folder is read-only."""
