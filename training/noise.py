"""How shoppers mistype: noise that turns catalogue language into plausible queries.

Used to make (noisy, clean) rewrite pairs from text that is known to be clean. The kinds and their
shares follow what the correction table of the Home Depot data shows: mostly one letter dropped,
doubled, swapped or replaced; then words split or joined; then units written in another way.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

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


def misspell(text: str, rng: random.Random) -> str:
    """One letter of one longer word goes wrong."""
    words = text.split()
    places = [i for i, word in enumerate(words) if len(word) >= 4 and word.isalpha()]
    if places:
        at = rng.choice(places)
        words[at] = _letter(words[at], rng)
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
    (0.55, misspell),
    (0.15, join_words),
    (0.15, split_word),
    (0.15, rewrite_units),
)


def corrupt(text: str, rng: random.Random) -> str:
    """``text`` with one kind of noise, sometimes two; may come back unchanged."""
    weights = [weight for weight, _ in _KINDS]
    rounds = 2 if rng.random() < 0.2 else 1
    for _, kind in rng.choices(_KINDS, weights, k=rounds):
        text = kind(text, rng)
    return text
