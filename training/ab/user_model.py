"""The simulated shopper in front of a page of results: what is looked at, clicked and bought.

The dynamic Bayesian network model of clicks (Chapelle and Zhang, "A dynamic Bayesian network click
model for web search ranking", WWW 2009), with a purchase at its end. The shopper reads the page
from the top. At the product of rank ``r`` and grade ``g`` (1 bad .. 3 perfect):

* it attracts a click with probability ``a(g) = bad + (perfect - bad) (g - 1) / 2``;
* a clicked product satisfies with probability ``s(g) = (2^(2 (g - 1)) - 1) / 16``, the gain that
  expected reciprocal rank gives to grades 0 .. 4 (Chapelle et al., "Expected reciprocal rank for
  graded relevance", CIKM 2009), our grades being stretched to that scale;
* a satisfied shopper buys it with probability ``buys``, and either way reads no further;
* anyone else goes on to the next product with probability ``perseverance``.

So a place is looked at the less the lower it is, and the less the better the products above it
are: the cascade that Craswell et al. ("An experimental comparison of click position-bias models",
WSDM 2008) found to explain clicks best, without its limit of one click. The four parameters are
our assumptions, fitted to no shop.

:func:`browse` draws one shopper; :func:`chances` gives the exact probabilities that it draws from.
With e(r) the probability that rank r is looked at and n(r) that it is looked at before any click::

    e(1) = n(1) = 1
    e(r + 1) = perseverance e(r) (1 - a(r) s(r))
    n(r + 1) = perseverance n(r) (1 - a(r))
    P(a click) = sum of n(r) a(r)        P(a purchase) = buys * sum of e(r) a(r) s(r)
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class UserModel:
    """Parameters, all probabilities.

    Attributes:
        bad: that a product of grade 1 attracts a click once it is looked at.
        perfect: the same of a product of grade 3.
        perseverance: that a shopper who is not satisfied looks at the next product.
        buys: that a satisfied shopper buys.

    Raises:
        ValueError: a parameter is no probability.
    """

    bad: float = 0.05
    perfect: float = 0.6
    perseverance: float = 0.9
    buys: float = 0.2

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value <= 1:
                raise ValueError(f"{field.name} is a probability, from 0 to 1, not {value}")

    def attractiveness(self, grade: float) -> float:
        """a(g), for a grade from 1 to 3."""
        return self.bad + (self.perfect - self.bad) * (grade - 1) / 2

    def satisfaction(self, grade: float) -> float:
        """s(g), for a grade from 1 to 3."""
        return float((2 ** (2 * (grade - 1)) - 1) / 16)


@dataclass(frozen=True, slots=True)
class Browsed:
    """Actions of one shopper on one page; ranks start at 1."""

    clicks: tuple[int, ...] = ()
    bought: int | None = None


@dataclass(frozen=True, slots=True)
class Chances:
    """Probabilities of at least one click, and of a purchase, on a page or in a visit."""

    click: float = 0.0
    purchase: float = 0.0


def browse(grades: Sequence[float], model: UserModel, rng: random.Random) -> Browsed:
    """One shopper on a page whose products have these grades, from the top."""
    clicks: list[int] = []
    for rank, grade in enumerate(grades, start=1):
        if rng.random() < model.attractiveness(grade):
            clicks.append(rank)
            if rng.random() < model.satisfaction(grade):
                return Browsed(tuple(clicks), rank if rng.random() < model.buys else None)
        if rng.random() >= model.perseverance:
            break
    return Browsed(tuple(clicks))


def chances(grades: Sequence[float], model: UserModel) -> Chances:
    """The probabilities that :func:`browse` has of a click and of a purchase on this page."""
    looked = unclicked = 1.0
    click = satisfied = 0.0
    for grade in grades:
        attracts = model.attractiveness(grade)
        pleases = attracts * model.satisfaction(grade)
        click += unclicked * attracts
        satisfied += looked * pleases
        unclicked *= model.perseverance * (1 - attracts)
        looked *= model.perseverance * (1 - pleases)
    return Chances(click, model.buys * satisfied)


def together(pages: Sequence[Chances]) -> Chances:
    """Of a visit, whose searches are independent: at least one page with a click, a purchase."""
    no_click = no_purchase = 1.0
    for page in pages:
        no_click *= 1 - page.click
        no_purchase *= 1 - page.purchase
    return Chances(1 - no_click, 1 - no_purchase)
