"""How shoppers mistype: noise that turns catalogue language into plausible queries.

Used to make (noisy, clean) rewrite pairs from text that is known to be clean. The kinds and their
shares follow what the correction table of the Home Depot data shows: mostly one letter dropped,
doubled, swapped or replaced; then words split or joined; then units written in another way.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

from rapidfuzz.distance import Levenshtein

_NEIGHBOURS = {
    "a": "se", "b": "vn", "c": "kxs", "d": "sf", "e": "aiw", "f": "dg", "g": "fhj", "h": "gj",
    "i": "eoy", "j": "hg", "k": "cl", "l": "kr", "m": "n", "n": "m", "o": "aui", "p": "o",
    "q": "wk", "r": "et", "s": "cza", "t": "ry", "u": "oi", "v": "cb", "w": "qe", "x": "zs",
    "y": "ie", "z": "sx",
}  # fmt: skip
"""Letters that are next to each other on a keyboard, or that sound alike."""

_UNITS: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = (
    (re.compile(r"(?<=\d)[ -]in\b\.?"), ('"', "in", " inch", "inch", "''", " in")),
    (re.compile(r"(?<=\d)[ -]ft\b\.?"), ("'", "ft", " foot", "foot", " feet", " ft")),
    (re.compile(r"(?<=\d)[ -]gal\b\.?"), (" gallon", "gal", " gal", "gallon")),
    (re.compile(r"(?<=\d)[ -]volt\b"), ("v", " v", "volt", " volt")),
    (re.compile(r"(?<=\d)[ -]watt\b"), ("w", " w", "watt", " watt")),
    (re.compile(r"(?<=\d)[ -]lb\b\.?"), ("lb", " lbs", " pound", "#")),
    (re.compile(r"(?<=\d)[ -]oz\b\.?"), ("oz", " oz", " ounce")),
    (re.compile(r"(?<=\d)[ -]amp\b"), ("a", " amp", "amp")),
    (re.compile(r"(?<=\d) x (?=\d)"), ("x", "X", " by ", "*")),
)


_MAX_SLIP = 3
"""Longest piece of a word, in letters, that one slip replaces or puts."""
_REAL = 0.7
"""Share of slips taken from real ones where a word has a place for one."""


class Slips:
    """What real shoppers typed for what they meant, with one letter on either side.

    A noisy channel in the manner of Brill and Moore (ACL 2000), without its probabilities of
    whole words: counts of (left letter, meant, right letter) -> typed, where ``^`` and ``$`` are
    the ends of a word. Only words that differ in one such place are learnt from.

    Args:
        pairs: (typed, meant) texts; those of unequal numbers of words are passed over.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        found: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
        for typed, meant in pairs:
            parts = typed.split(), meant.split()
            if len(parts[0]) != len(parts[1]):
                continue
            for slip, word in zip(*parts, strict=True):
                if slip != word and word.isalpha() and slip.isalpha():
                    key, put = _difference(word, slip)
                    if max(len(key[1]), len(put)) <= _MAX_SLIP:
                        found[key][put] += 1
        self._found = dict(found)

    def __len__(self) -> int:
        return len(self._found)

    def apply(self, word: str, rng: random.Random) -> str | None:
        """``word`` with one real slip in it; ``None`` if it has no place for any."""
        framed = f"^{word}$"
        places: list[tuple[int, int, str]] = []
        weights: list[int] = []
        for start in range(1, len(framed)):
            for end in range(start, min(start + _MAX_SLIP, len(framed) - 1) + 1):
                typed = self._found.get((framed[start - 1], framed[start:end], framed[end]))
                for put, count in (typed or {}).items():
                    places.append((start, end, put))
                    weights.append(count)
        if not places:
            return None
        start, end, put = rng.choices(places, weights)[0]
        return (framed[:start] + put + framed[end:])[1:-1]


def _difference(meant: str, typed: str) -> tuple[tuple[str, str, str], str]:
    """The shortest piece of ``meant`` that holds every difference, with its neighbours."""
    changes = [op for op in Levenshtein.opcodes(meant, typed) if op.tag != "equal"]
    start, end = changes[0].src_start, changes[-1].src_end
    put = typed[changes[0].dest_start : changes[-1].dest_end]
    framed = f"^{meant}$"
    return (framed[start], meant[start:end], framed[end + 1]), put


def _letter(word: str, rng: random.Random) -> str:
    at = rng.randrange(1, len(word))
    before, char, after = word[:at], word[at], word[at + 1 :]
    kind = rng.random()
    if kind < 0.35:
        return before + after
    if kind < 0.55:
        return before + char + char + after
    if kind < 0.75 and after:
        return before + after[0] + char + after[1:]
    return before + rng.choice(_NEIGHBOURS.get(char, char)) + after


def misspell(text: str, rng: random.Random, slips: Slips | None = None) -> str:
    """One longer word goes wrong by a real slip, or by a letter."""
    words = text.split()
    places = [i for i, word in enumerate(words) if len(word) >= 4 and word.isalpha()]
    if places:
        at = rng.choice(places)
        real = slips.apply(words[at], rng) if slips and rng.random() < _REAL else None
        words[at] = real or _letter(words[at], rng)
        if len(words[at]) >= 7 and rng.random() < 0.25:
            words[at] = _letter(words[at], rng)
    return " ".join(words)


def join_words(text: str, rng: random.Random) -> str:
    """Two neighbouring words lose the space between them."""
    words = text.split()
    places = [
        i
        for i in range(len(words) - 1)
        if words[i].isalpha()
        and words[i + 1].isalpha()
        and min(len(words[i]), len(words[i + 1])) > 1
    ]
    if places:
        at = rng.choice(places)
        words[at : at + 2] = [words[at] + words[at + 1]]
    return " ".join(words)


def split_word(text: str, rng: random.Random) -> str:
    """One long word, or a hyphenated one, falls into two."""
    words = text.split()
    hyphens = [i for i, word in enumerate(words) if "-" in word.strip("-")]
    if hyphens and rng.random() < 0.6:
        at = rng.choice(hyphens)
        words[at] = words[at].replace("-", rng.choice(("", " ")))
        return " ".join(words)
    places = [i for i, word in enumerate(words) if len(word) >= 7 and word.isalpha()]
    if places:
        at = rng.choice(places)
        cut = rng.randrange(3, len(words[at]) - 2)
        words[at] = f"{words[at][:cut]} {words[at][cut:]}"
    return " ".join(words)


def rewrite_units(text: str, rng: random.Random) -> str:
    """Sizes as shoppers type them: ``3/4 in.`` becomes ``3/4"`` or ``3/4 inch``."""
    for pattern, spellings in _UNITS:
        if pattern.search(text):
            text = pattern.sub(rng.choice(spellings).replace("\\", r"\\"), text)
    return text.strip()


_KINDS: tuple[tuple[float, Callable[[str, random.Random], str]], ...] = (
    (0.15, join_words),
    (0.1, split_word),
    (0.1, rewrite_units),
)
_MISSPELT = 1.0 - sum(share for share, _ in _KINDS)


def corrupt(text: str, rng: random.Random, slips: Slips | None = None) -> str:
    """``text`` with one kind of noise, sometimes two; may come back unchanged."""
    kinds = [lambda t, r: misspell(t, r, slips), *(kind for _, kind in _KINDS)]
    shares = [_MISSPELT, *(share for share, _ in _KINDS)]
    for kind in rng.choices(kinds, shares, k=2 if rng.random() < 0.2 else 1):
        text = kind(text, rng)
    return text
