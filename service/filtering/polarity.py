"""Polarity: what a query excludes ("without sprayer", "sugar free", "unscented") stays excluded.

A rewrite that turns a negation round finds just the products that the shopper does not want, and a
tag learnt from pairs of words is weak on it: both texts have nearly the same words. So the rule is
made of words, and errs on the safe side: a rewrite must exclude what the query excludes, in the
same or an equivalent form, and exclude nothing else.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)?")
_WITHOUT = re.compile(r"\bw\s?/\s?o\b|\bwith\s?out\b|\bwitout\b")
_SCOPED = {"without", "except", "excluding", "minus", "lacking"}
"""Exclude all words up to the next preposition."""
_NEAR = {"no", "not", "non", "never", "zero", "nor"}
"""Exclude the next word or two."""
_STOPS = {
    "for", "with", "in", "on", "under", "from", "to", "by", "at", "size", "that", "which",
    "plus", "but", "or", "free", "of",
} | _SCOPED | _NEAR  # fmt: skip
_SKIPPED = {"a", "an", "any", "the", "added", "and", "built", "need", "needed", "required"}
_SCOPE = 3
_FREE_IS_OTHER = {
    "standing", "weight", "weights", "range", "style", "shipping", "gift", "gifts", "motion",
    "people", "spirit", "delivery", "sample", "samples", "stuff", "arm", "time",
}  # fmt: skip
"""Words behind which "free" says something else ("free weights")."""
_FREE_AFTER = {"hands", "care", "tax", "royalty", "buy", "worry", "duty"}
"""Words before "free" that exclude nothing of a product."""
_LESS_IS_OTHER = {"stainless", "unless", "clipless", "priceless", "countless", "regardless"}
_UN_IS_OTHER = {"united", "understated", "underrated", "undefeated", "underused"}
_UN = re.compile(r"un(?P<stem>[a-z]{3,}(?:ed|en|cut|dyed))$")
_UN_WORDS = {"unwired": "wire", "uncut": "cut", "unlit": "lit", "unframed": "frame"}
_NON_IS_OTHER = {"none", "nonna", "nonetheless", "nonstop"}
_ALIKE = (
    {"sugar", "sweet", "sweeten", "sweetener"},
    {"scent", "fragrance", "fragranced", "perfume", "odor", "smell"},
    {"salt", "sodium"},
    {"cord", "wire", "cable", "plug"},
    {"dairy", "lactose", "milk"},
    {"caffeine", "caffeinate"},
    {"alcohol", "alcoholic"},
    {"slip", "skid", "slide"},
    {"gluten", "wheat"},
    {"light", "lit", "lights"},
    {"animal", "meat"},
    {"bpa", "bisphenol"},
    {"calorie", "cal", "calories"},
    {"dye", "color", "colour", "coloring"},
    {"metal", "metallic"},
    {"frame", "rim"},
    {"damage", "drill", "nail", "hole"},
)
"""Words that exclude the same."""
_SAID_OTHERWISE = {
    "decaf": {"caffeine"},
    "decaffeinated": {"caffeine"},
    "diet": {"sugar"},
    "vegan": {"dairy", "animal", "egg"},
    "bluetooth": {"wire"},
    "rechargeable": {"cord"},
    "raw": {"finish"},
    "anhydrous": {"water"},
}
"""Words that exclude something without a negation."""
_SOFT_SUFFIXES = {"proof", "resistant", "resistance", "repellent", "repelling"}
"""Words that exclude what stands before them, where a query does: "slip resistant"."""


class _Negation(NamedTuple):
    keys: tuple[str, ...]
    """What is excluded; one of them must be excluded in the other text too."""
    lexical: bool
    """One word by itself ("cordless"): it names a kind of product and may be added."""


def keeps_polarity(query: str, rewrite: str) -> bool:
    """Whether ``rewrite`` excludes what ``query`` excludes, and nothing that it does not."""
    asked, said = _negations(query), _negations(rewrite)
    if not asked and not said:
        return True
    excluded = _excluded(rewrite)
    if not all(_any_alike(negation.keys, excluded) for negation in asked):
        return False
    allowed = _excluded(query)
    wanted = _stated(query)
    for negation in said:
        if _any_alike(negation.keys, allowed):
            continue
        if not negation.lexical or _any_alike(negation.keys, wanted):
            return False
    return True


@lru_cache(maxsize=64)
def _negations(text: str) -> tuple[_Negation, ...]:
    """The negations of ``text``, in order."""
    words = _words(text)
    found: list[_Negation] = []
    for i, word in enumerate(words):
        if word in _SCOPED:
            keys = _scope(words[i + 1 :], _SCOPE)
        elif word in _NEAR:
            following = words[i + 1 : i + 2]
            numbered = following and following[0][0].isdigit()
            keys = () if numbered else _scope(words[i + 1 :], 2)
            if word == "zero" and "sugar" not in keys and "calorie" not in keys:
                continue
        elif word == "free":
            keys = _of_free(words, i)
        else:
            stem = _stem_excluded(word)
            if stem is not None:
                found.append(_Negation((stem, word), lexical=True))
            continue
        if keys:
            found.append(_Negation(keys, lexical=False))
    return tuple(found)


def _of_free(words: list[str], i: int) -> tuple[str, ...]:
    """What "free" at ``i`` excludes."""
    following = words[i + 1] if i + 1 < len(words) else ""
    if following in ("of", "from"):
        return _scope(words[i + 2 :], 2)
    if i == 0 or following in _FREE_IS_OTHER or words[i - 1] in _FREE_AFTER:
        return ()
    before = words[i - 1]
    return () if before in _STOPS or before.isdigit() else (before,)


def _stem_excluded(word: str) -> str | None:
    """What one word excludes by its form ("cordless", "nonslip", "unscented")."""
    if word.endswith("less") and len(word) > 6 and word not in _LESS_IS_OTHER:
        return word[:-4]
    if word.startswith("non") and len(word) > 6 and word not in _NON_IS_OTHER:
        return word[3:]
    if word in _UN_WORDS:
        return _UN_WORDS[word]
    match = _UN.match(word)
    if match is not None and word not in _UN_IS_OTHER:
        return match["stem"]
    return None


@lru_cache(maxsize=64)
def _excluded(text: str) -> frozenset[str]:
    """All that ``text`` excludes, in any form."""
    words = _words(text)
    found = {key for negation in _negations(text) for key in negation.keys}
    for i, word in enumerate(words):
        found |= _SAID_OTHERWISE.get(word, set())
        if word == "zero":  # "coke zero"
            found |= {"sugar", "calorie"}
        if word in _SOFT_SUFFIXES and i:
            found.add(words[i - 1])
        for suffix in _SOFT_SUFFIXES:
            if word.endswith(suffix) and len(word) > len(suffix) + 2:
                found.add(word.removesuffix(suffix))
        if word == "anti" and i + 1 < len(words):
            found.add(words[i + 1])
        elif word.startswith("anti") and len(word) > 7:
            found.add(word[4:])
    return frozenset(found)


@lru_cache(maxsize=64)
def _stated(text: str) -> frozenset[str]:
    """The words of ``text`` that it does not exclude."""
    return frozenset(_words(text)) - _excluded(text)


def _scope(words: list[str], most: int) -> tuple[str, ...]:
    keys: list[str] = []
    for word in words:
        if word in _STOPS or len(keys) == most:
            break
        if word not in _SKIPPED:
            keys.append(word)
    return (*keys, "".join(keys)) if len(keys) > 1 else tuple(keys)  # "box spring", "boxspring"


@lru_cache(maxsize=64)
def _words(text: str) -> list[str]:
    folded = _WITHOUT.sub(" without ", text.casefold())
    return [w.replace("\u2019", "'") for w in _WORD.findall(folded)]


def _any_alike(keys: tuple[str, ...], others: frozenset[str]) -> bool:
    return any(_alike(key, other) for key in keys for other in others)


@lru_cache(maxsize=4096)
def _alike(one: str, other: str) -> bool:
    """Whether two words exclude the same: one stem, or words of one group."""
    if _one_stem(one, other):
        return True
    return any(
        any(_one_stem(one, word) for word in group)
        and any(_one_stem(other, word) for word in group)
        for group in _ALIKE
    )


def _one_stem(one: str, other: str) -> bool:
    """Equal but for an ending ("zip" and "zipper", "padded" and "padding")."""
    short, long = sorted((one, other), key=len)
    if long.startswith(short) and (len(short) >= 3 or long == short + "s"):
        return len(long) - len(short) <= 4
    same = next(
        (i for i, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short)
    )
    return same >= 4 and len(long) - same <= 4
