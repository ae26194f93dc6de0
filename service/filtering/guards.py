"""Guards: what the shopper asked for to the letter must survive: numbers, sizes, codes, brands.

Negations have a guard in ``polarity.py``, those for whom a product is in ``audience.py``.

Numbers that nobody asked for are a guard's business too: they make another need of the query.

Numbers are compared by value (``3/4``, ``0.75`` and ``.75`` are one), units by dimension
(``12 in`` is ``1 ft``, ``12v`` is ``12 volt``). A unit that the query leaves out may be added; one
that it names may not be lost, except words that only count (pack, piece).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from model_store.english import is_common
from service.filtering.words import words

_SHORTEST_BRAND = 3


class Quantity(NamedTuple):
    """A number with its unit, if it has one."""

    value: Fraction
    dimension: str | None
    """What the unit measures (``length``), or ``None`` without a unit."""
    size: Fraction
    """``value`` in the base unit of the dimension."""


# dimension -> {factor to its base unit: spellings}
_UNIT_TABLE: dict[str, dict[str, str]] = {
    "length": {
        "254/10": "in inch inches inchs \" \u201c \u201d \u2033 \u2032\u2032 ''",
        "3048/10": "ft foot feet ' \u2018 \u2019 \u2032",
        "9144/10": "yd yds yard yards",
        "1": "mm millimeter millimeters millimetre millimetres",
        "10": "cm centimeter centimeters centimetre centimetres",
        "1000": "m meter meters metre metres",
        "1000000": "km kilometer kilometers kilometre kilometres",
        "1609344": "mi mile miles",
        "254/10000": "mil mils",
    },
    "area": {"1": "sqft sqfeet squarefeet squarefoot squareft sf", "9": "sqyd squareyard"},
    "volume (cubic)": {"1": "cuft cufeet cubicfeet cubicfoot cubicft", "27": "cuyd cubicyard"},
    "volume": {
        "1": "floz fluidounce fluidounces",
        "8": "cup cups",
        "16": "pint pints",
        "32": "qt qts quart quarts",
        "128": "gal gals gallon gallons",
    },
    "litres": {
        "1000": "l liter liters litre litres ltr",
        "100": "dl",
        "10": "cl",
        "1": "ml milliliter millilitre",
    },
    "spoons": {"3": "tbsp tablespoon tablespoons", "1": "tsp teaspoon teaspoons"},
    "mass": {"1": "oz ounce ounces", "16": "lb lbs pound pounds"},
    "mass (metric)": {
        "1000": "kg kgs kilo kilogram kilograms",
        "1": "g gram grams gm",
        "1/1000": "mg milligram milligrams",
        "1/1000000": "mcg ug microgram micrograms",
    },
    "dose": {"1": "iu"},
    "voltage": {"1": "v volt volts"},
    "power": {"1": "w watt watts", "1000": "kw kilowatt kilowatts", "1/1000": "mw"},
    "energy": {"1": "wh", "1000": "kwh"},
    "horsepower": {"1": "hp horsepower"},
    "current": {"1": "a amp amps ampere amperes"},
    "charge": {"1": "mah", "1000": "ah"},
    "storage": {"1": "mb", "1024": "gb gig gigs gigabyte gigabytes", "1048576": "tb terabyte"},
    "frequency": {"1": "hz hertz", "1000000": "mhz", "1000000000": "ghz"},
    "heat": {"1": "btu btus"},
    "light": {"1": "lumen lumens lm"},
    "pressure": {"1": "psi"},
    "pressure (metric)": {"1": "bar"},
    "speed": {"1": "rpm"},
    "resolution": {"1": "mp megapixel megapixels"},
    "flow": {"1": "gpm gpf"},
    "air flow": {"1": "cfm"},
    "gauge": {"1": "ga gauge awg"},
    "grit": {"1": "grit"},
    "angle": {"1": "deg degree degrees \u00b0"},
    "share": {"1": "% percent"},
    "count": {
        "1": "ct count cnt pk pack packs pc pcs piece pieces",
    },
}
_SOFT = {"count"}
"""Dimensions whose word may go as long as the number stays: "12 pack" is "pack of 12"."""

_UNITS: dict[str, tuple[str, Fraction]] = {
    spelling: (dimension, Fraction(factor))
    for dimension, factors in _UNIT_TABLE.items()
    for factor, spellings in factors.items()
    for spelling in spellings.split()
}
_OTHERWISE = re.compile(r"\s*(?:day|week|month|year|night|piece|side|time|dozen|pack|set)s?\b")
"""Behind a number and "a", it is no current: "20 a day"."""

_NUMBER = re.compile(
    r"(?P<mixed>(?P<whole>\d{1,3})(?:\s+|-)(?P<n>\d{1,2})\s?[/\u2044]\s?(?P<d>2|3|4|5|8|16|32|64)(?!\d))"
    r"|(?P<fraction>(?P<num>\d+)\s?[/\u2044]\s?(?P<den>\d+))"
    r"|(?P<thousands>\d{1,3}(?:,\d{3})+(?![\d,]))"
    r"|(?P<decimal>\d*\.\d+|\d+)"
)
_UNIT = re.compile(
    r"(?P<gap>[\s-]*)(?P<unit>(?:square|cubic|fluid|sq|cu|fl)\.?\s?[a-z]+"
    r"|[^\W\d_]+|''|\u2032\u2032|[\"'\u2018\u2019\u201c\u201d\u2032\u2033%\u00b0])(?P<after>.?)",
    re.DOTALL,
)
_TIMES = re.compile(r"\s*(?:x|\u00d7|\*|by)\s*(?=[\d.])")
_ONE_MORE = re.compile(r"[\s-]*1(?![\d./])")

_SPELLED = {
    name: str(value)
    for value, names in {
        1: "one first",
        2: "two second double dual",
        3: "three third triple",
        4: "four fourth",
        5: "five fifth",
        6: "six sixth",
        7: "seven seventh",
        8: "eight eighth",
        9: "nine ninth",
        10: "ten tenth",
        11: "eleven eleventh",
        12: "twelve twelfth dozen",
    }.items()
    for name in names.split()
} | {"half": "1/2", "quarter": "1/4"}
_SPELLED_WORD = re.compile(r"\b(?:" + "|".join(_SPELLED) + r")\b")

_SIZE_WORDS = {
    "xs": "xs",
    "xl": "xl",
    "xxl": "xxl",
    "xxxl": "xxxl",
    "king": "king",
    "queen": "queen",
    "twin": "twin",
    "aa": "aa",
    "aaa": "aaa",
    "aaaa": "aaaa",
}
_SOFT_SIZES = {
    name: size
    for size, names in {
        "small": "small s sm little mini",
        "medium": "medium m med md",
        "large": "large l lg big",
    }.items()
    for name in names.split()
}
"""Sizes in words: a rewrite may leave them to the tag, and may not change one for another."""
_SIZE_PHRASES = ((re.compile(r"\bdouble[\s-]a\b"), "aa"), (re.compile(r"\btriple[\s-]a\b"), "aaa"),
                 (re.compile(r"\b(?:extra|x)[\s-]?large\b"), "xl"),
                 (re.compile(r"\b(?:extra|x)[\s-]?small\b"), "xs"))  # fmt: skip
_LETTER_SIZE = re.compile(r"\bsize[\s:]+([sml])\b")
_CELL = re.compile(r"\b([cd])(?=[\s-]+(?:cell|batter))|(?<=batteries )([cd])\b")
_CODE = re.compile(r"(?=.*[a-z])(?=.*\d)[a-z0-9]{2,}")
_LETTERS = re.compile(r"[a-z]+")
_NOT_CODE = re.compile(r"\d+(?:st|nd|rd|th|s|x|in\d+)?|[\dx]+|\d+(?:x\d+)+[a-z]*|\d+by\d+")
_LONGEST_LETTERS = 4
"""In a row in a code: "5galon" is a misspelled unit."""
_SPELLED_OUT = {"ps": "playstation", "gta": "grandtheftauto", "vol": "volume"}
"""What the letters of a code stand for."""
_WORD = re.compile(r"[^\W\d_]+")


def keeps_numbers(query: str, rewrite: str) -> bool:
    """Whether every number of ``query``, with its unit, is also in ``rewrite``.

    Numbers in words satisfy ("three piece" for "3 piece") and are not asked for.
    """
    needed = _needed_quantities(query)
    if not needed:
        return True
    found = quantities(_in_digits(rewrite))
    # Those with a unit choose first: they are the harder ones to satisfy.
    for quantity in sorted(needed, key=lambda q: q.dimension is None):
        match = next((other for other in found if _same(quantity, other)), None)
        if match is None:
            return False
        found.remove(match)
    return True


def adds_numbers(query: str, rewrite: str) -> bool:
    """Whether ``rewrite`` has a number that ``query`` has not, in digits or in words.

    A number of the query may come twice, and with a unit that the query leaves out.
    """
    said = quantities(rewrite)
    if not said:
        return False
    asked = _asked_quantities(query)
    return not all(any(_same(one, other) for one in asked) for other in said)


def keeps_sizes(query: str, rewrite: str) -> bool:
    """Whether every size word of ``query`` (XL, queen, AA, size M) is also in ``rewrite``.

    Small, medium and large may be left out, but not changed for each other.
    """
    needed = _needed_sizes(query)
    if needed and not needed <= sizes(rewrite):
        return False
    asked = _soft_sizes(query)
    return not asked or _soft_sizes(rewrite) <= asked


def adds_sizes(query: str, rewrite: str) -> bool:
    """Whether ``rewrite`` has a size word that ``query`` has not."""
    return not sizes(rewrite) <= _needed_sizes(query)


def keeps_codes(query: str, rewrite: str) -> bool:
    """Whether every code of ``query`` (DCD771C2, WD-40, E26) is in ``rewrite`` to the letter.

    Spaces and punctuation do not count. A number with its unit is no code, nor are dimensions.
    """
    needed = codes(query)
    if not needed:
        return True
    there = "".join(c for c in rewrite.casefold() if c.isalnum())
    return all(code in there or _spelled_out(code) in there for code in needed)


class Brands:
    """Brand names of a version, found in text however they are spaced or punctuated.

    Of a name of several words the first stands for the brand too if it is no English word:
    shoppers say "behr" where titles say "Behr Premium".

    Args:
        names: one brand each, such as ``black & decker``.
    """

    def __init__(self, names: Iterable[str]) -> None:
        phrases = [_brand_words(name) for name in names]
        self._keys = {"".join(p) for p in phrases if p}
        short = (p[0] for p in phrases if len(p) > 1 and len(p[0]) >= _SHORTEST_BRAND)
        self._keys |= {word for word in short if word.isalpha() and not is_common(word)}
        # One word more than the longest: "dewalt" may be written "de walt".
        self._longest = 1 + max((len(p) for p in phrases), default=0)

    def found(self, text: str) -> set[str]:
        """Keys of the brands that ``text`` names."""
        if not self._keys:
            return set()
        parts = _brand_words(text)
        return {
            key
            for start in range(len(parts))
            for end in range(start + 1, min(start + self._longest, len(parts)) + 1)
            if (key := "".join(parts[start:end])) in self._keys
        }

    def keeps(self, query: str, rewrite: str) -> bool:
        """Whether every brand of ``query`` is also in ``rewrite``."""
        needed = self.found(query)
        return not needed or needed <= self.found(rewrite)


def quantities(text: str) -> list[Quantity]:
    """Numbers of ``text`` with their units, in order; ``2 x 4 ft`` gives both the unit."""
    text = text.casefold()
    found: list[Quantity] = []
    position = open_from = 0
    while match := _NUMBER.search(text, position):
        values = _values(match)
        dimension, factor, position = _unit_at(text, match.end())
        times = _TIMES.match(text, position)
        if times is None or not _NUMBER.match(text, times.end()):
            times = None
        found += [Quantity(v, dimension, v * factor) for v in values]
        if times is not None and dimension is None:
            position = times.end()
            continue
        if dimension is not None:
            # "2 x 4 ft": the numbers before it in the row take its unit.
            for i in range(open_from, len(found)):
                if found[i].dimension is None:
                    found[i] = Quantity(found[i].value, dimension, found[i].value * factor)
        if times is not None:
            position = times.end()
        else:
            open_from = len(found)
    return found


def sizes(text: str) -> set[str]:
    """Size words of ``text`` in one spelling."""
    text = text.casefold()
    found = {_SIZE_WORDS[w] for w in _WORD.findall(text) if w in _SIZE_WORDS}
    found |= {name for pattern, name in _SIZE_PHRASES if pattern.search(text)}
    found |= {before or behind for before, behind in _CELL.findall(text)}
    return found | set(_LETTER_SIZE.findall(text))


@lru_cache(maxsize=64)
def codes(text: str) -> frozenset[str]:
    """Codes of ``text`` (letters and digits in one word), without punctuation."""
    found = set()
    for token in text.casefold().split():
        key = "".join(c for c in token if c.isalnum())
        if not _CODE.fullmatch(key) or _NOT_CODE.fullmatch(key):
            continue
        if max(map(len, _LETTERS.findall(key))) > _LONGEST_LETTERS:
            continue
        parts = quantities(token)
        letters = _LETTERS.findall(key)
        if len(letters) == 1 and parts and parts[-1].dimension is not None:
            continue
        found.add(key)
    return frozenset(found)


def _spelled_out(code: str) -> str:
    return _LETTERS.sub(lambda m: _SPELLED_OUT.get(m[0], m[0]), code)


@lru_cache(maxsize=64)
def _soft_sizes(text: str) -> frozenset[str]:
    return frozenset(_SOFT_SIZES[w] for w in _WORD.findall(text.casefold()) if w in _SOFT_SIZES)


@lru_cache(maxsize=1)
def _needed_quantities(query: str) -> tuple[Quantity, ...]:
    """Of the query whose candidates are being judged, one after the other."""
    return tuple(quantities(query))


@lru_cache(maxsize=1)
def _asked_quantities(query: str) -> tuple[Quantity, ...]:
    """The same, and those in words: "1 half" may mean 1 and 1/2, or 1 1/2."""
    return (*quantities(query), *quantities(_in_digits(query)))


@lru_cache(maxsize=1)
def _needed_sizes(query: str) -> frozenset[str]:
    """The same."""
    return frozenset(sizes(query))


def _in_digits(text: str) -> str:
    return _SPELLED_WORD.sub(lambda m: _SPELLED[m[0]], text.casefold())


def _values(match: re.Match[str]) -> list[Fraction]:
    if match["mixed"]:
        whole, part = int(match["whole"]), _fraction(match["n"], match["d"])
        # "100 3/2" is two numbers, "2 1/2" is one.
        return [whole + part[0]] if len(part) == 1 and part[0] < 1 else [Fraction(whole), *part]
    if match["fraction"]:
        return _fraction(match["num"], match["den"])
    return [Fraction((match["thousands"] or match["decimal"]).replace(",", ""))]


def _fraction(numerator: str, denominator: str) -> list[Fraction]:
    top, bottom = int(numerator), int(denominator)
    return [Fraction(top, bottom)] if bottom else [Fraction(top), Fraction(bottom)]


def _unit_at(text: str, position: int) -> tuple[str | None, Fraction, int]:
    """Dimension, factor and end of the unit at ``position``; without one ``None, 1, position``."""
    nothing = (None, Fraction(1), position)
    match = _UNIT.match(text, position)
    if match is None:
        return nothing
    name = match["unit"].replace(".", "").replace(" ", "")
    if name not in _UNITS:
        return nothing
    if name == "a" and match["gap"] and _OTHERWISE.match(text, match.end("unit")):
        return nothing
    if name in ("'", "\u2018", "\u2019", "\u2032") and match["after"].isalpha():
        return nothing  # the 90's
    end = match.end("unit")
    if name == "in" and _ONE_MORE.match(text, end):
        return nothing  # 2 in 1
    dimension, factor = _UNITS[name]
    return dimension, factor, end


def _same(needed: Quantity, other: Quantity) -> bool:
    if needed.dimension is None or other.dimension is None:
        loose = needed.dimension is None or needed.dimension in _SOFT
        return loose and needed.value == other.value
    return needed.dimension == other.dimension and needed.size == other.size


def _brand_words(text: str) -> list[str]:
    return [w for w in words(text) if w != "and"]
