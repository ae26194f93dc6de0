"""Who uses a product: a rewrite of a query for one audience must not be for another.

A rewrite may leave the audience out, or name one that the query leaves out: of the curated pairs
written by people's rules that is right more often than wrong ("crib shoes", "infant booties"), so
it is for the tag to judge.
"""

from __future__ import annotations

from functools import lru_cache

from service.filtering.words import words

_AUDIENCES = {
    "men": "man men male males gentleman gentlemen guy",
    "women": "woman women lady ladies female females",
    "boys": "boy",
    "girls": "girl",
    "kids": "kid child children childrens youth junior juvenile",
    "teens": "teen teenager teenage tween",
    "babies": "baby infant newborn",
    "toddlers": "toddler",
    "adults": "adult grownup",
    "dogs": "dog puppy pup canine k9",
    "cats": "cat kitten kitty feline",
}
_OF = {name: audience for audience, names in _AUDIENCES.items() for name in names.split()}
_WIDER = {
    "boys": {"kids", "toddlers"},
    "girls": {"kids", "toddlers"},
    "toddlers": {"kids", "babies"},
    "babies": {"toddlers", "kids"},
    "kids": {"boys", "girls"},
    "teens": {"kids", "boys", "girls"},
}
"""Audiences that another may be called by."""


def keeps_audience(query: str, rewrite: str) -> bool:
    """Whether ``rewrite`` names no audience that ``query`` does not, where ``query`` names one."""
    asked, said = audiences(query), audiences(rewrite)
    if not asked or not said:
        return True
    return all(_close(one, asked) for one in said)


@lru_cache(maxsize=64)
def audiences(text: str) -> frozenset[str]:
    """The audiences that ``text`` names, each by one name."""
    return frozenset(_OF[word] for word in words(text) if word in _OF)


def _close(one: str, others: frozenset[str]) -> bool:
    return one in others or bool(_WIDER.get(one, set()) & others)
