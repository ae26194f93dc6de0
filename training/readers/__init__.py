"""Readers: public data sets into the schema of :mod:`training.schema`."""
