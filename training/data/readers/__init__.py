"""Readers: public data sets into the schema of :mod:`training.data.schema`."""
