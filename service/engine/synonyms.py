"""Other words for the terms of a query, as a shop has them: one more source of candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Self

from model_store.errors import InvalidVersion

MAX_PROPOSALS = 3
"""Most proposals for a query: each costs a tag."""
_MAX_BYTES = 2**20
"""Largest file of synonyms."""


class Synonyms:
    """Puts other terms in the place of a query's own.

    Args:
        terms: term in normal form -> other terms for it, the best first.
    """

    def __init__(self, terms: Mapping[str, Sequence[str]]) -> None:
        self._terms = terms
        self._longest = max((term.count(" ") + 1 for term in terms), default=0)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Those of a version's file: a term and other terms in each line, with tabs between.

        Raises:
            InvalidVersion: the file cannot be read, or a line is of another form.
        """
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise InvalidVersion(f"{path}: holds more than 1 MiB of synonyms; leave some out")
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise InvalidVersion(f"{path}: {error}") from error
        terms: dict[str, Sequence[str]] = {}
        for number, line in enumerate(lines, start=1):
            term, *others = line.split("\t")
            if not others or not all((term, *others)):
                raise InvalidVersion(f"{path}: line {number} is not a term and others for it")
            terms[term] = others
        return cls(terms)

    def __call__(self, query: str) -> list[str]:
        """Up to :data:`MAX_PROPOSALS` queries with another term, for the longest terms first."""
        words = query.split()
        found: dict[str, None] = {}
        for length in range(min(self._longest, len(words)), 0, -1):
            for start in range(len(words) - length + 1):
                end = start + length
                for other in self._terms.get(" ".join(words[start:end]), ()):
                    found[" ".join([*words[:start], other, *words[end:]])] = None
            # Parts of a term that has synonyms of its own mean something else.
            if found:
                break
        return list(islice(found, MAX_PROPOSALS))


def write_synonyms(terms: Mapping[str, Sequence[str]], path: Path) -> None:
    """Write the file that :meth:`Synonyms.read` reads, as many lines as it may hold."""
    room, lines = _MAX_BYTES, []
    for term, others in terms.items():
        line = "\t".join([term, *others]) + "\n"
        room -= len(line.encode())
        if room < 0:
            break
        lines.append(line)
    path.write_text("".join(lines), encoding="utf-8")
