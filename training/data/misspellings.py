"""Synthetic misspellings: clean text, mistyped as real shoppers mistype, with what to judge.

Each gives one rewrite to write (the clean text) and up to two negatives to judge: the clean text
with another word of the catalogue that looks like the mistyped one ("led blubs" is no "led
clubs"), and with another misspelling of it, which finds nothing new.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rapidfuzz import fuzz, process

from model_store.text import normalise
from training.data.folds import compact
from training.data.noise import Slips, corrupt
from training.data.pairs import QueryPairs, Scored, World, is_echo, phrases
from training.data.search import stems

_COMMON = 5
"""Titles and queries that hold a word before it counts as one of the catalogue's."""
_NEAREST = 4
_ALIKE = 60.0
"""Normalised indel similarity (0-100) from which two words look alike."""


class Lookalikes:
    """The words of a catalogue, and for each those that are easily taken for it."""

    def __init__(self, texts: Iterable[str]) -> None:
        counts = Counter(
            word for text in texts for word in set(normalise(text, fold_case=True).split())
        )
        self._words = sorted(
            w for w, n in counts.items() if n >= _COMMON and len(w) >= 4 and w.isalpha()
        )
        self._known = frozenset(self._words)
        self._near: dict[str, list[str]] = {}

    def __contains__(self, word: str) -> bool:
        return word in self._known

    def near(self, word: str) -> list[str]:
        """Other words of the catalogue that look most like ``word``, none of the same stem."""
        if word not in self._near:
            found = process.extract(
                word, self._words, scorer=fuzz.ratio, score_cutoff=_ALIKE, limit=_NEAREST + 4
            )
            own = stems(word)
            self._near[word] = [w for w, _, _ in found if stems(w) != own][:_NEAREST]
        return self._near[word]


def noisy_pairs(
    clean: Sequence[str],
    count: int,
    seed: int,
    *,
    slips: Slips | None = None,
    lookalikes: Lookalikes | None = None,
    protected: frozenset[str] = frozenset(),
) -> Iterator[QueryPairs]:
    """``count`` queries made by corrupting clean text, each with the clean text as its rewrite.

    Args:
        clean: what to corrupt.
        count: how many pairs; fewer if the text does not give as many.
        seed: decides the text and the noise.
        slips: real slips to imitate; without them letters go wrong at random.
        lookalikes: where negatives come from; without it there are none.
        protected: compact forms that no noisy query may have.
    """
    rng = random.Random(seed)
    made = 0
    for _ in range(count * 20):
        if made == count or not clean:
            return
        text = rng.choice(clean)
        noisy = normalise(corrupt(text, rng, slips), fold_case=True)
        # To the search engine some slips are none ("hoses" for "hose"): nothing to learn there.
        if not noisy or is_echo(noisy, text) or compact(noisy) in protected:
            continue
        made += 1
        reject = _wrong_corrections(text, noisy, rng, slips, lookalikes) if lookalikes else []
        yield QueryPairs(
            noisy,
            write=[Scored(text, "noise", 1.0, 1.0)],
            reject=[Scored(wrong, "noise", 0.0, 0.0) for wrong in reject],
        )


def _wrong_corrections(
    text: str, noisy: str, rng: random.Random, slips: Slips | None, lookalikes: Lookalikes
) -> list[str]:
    meant, typed = text.split(), noisy.split()
    changed = [i for i, pair in enumerate(zip(meant, typed, strict=False)) if pair[0] != pair[1]]
    if len(meant) != len(typed) or len(changed) != 1 or not meant[changed[0]].isalpha():
        return []
    at = changed[0]
    found = []
    if near := [w for w in lookalikes.near(meant[at]) if w != typed[at]]:
        found.append(rng.choice(near))
    other = corrupt(meant[at], rng, slips)
    if other not in (meant[at], typed[at], *found) and " " not in other and other not in lookalikes:
        found.append(other)
    wrong = [" ".join([*meant[:at], word, *meant[at + 1 :]]) for word in found]
    return [one for one in wrong if not is_echo(one, text)]


def clean_texts(
    world: World,
    allowed: Sequence[str],
    seed: int,
    count: int,
    protected: frozenset[str] = frozenset(),
) -> list[str]:
    """Text to corrupt: allowed queries without a correction, and catalogue phrases."""
    rng = random.Random(seed)
    queries = [q for q in allowed if q not in world.corrections and len(q) >= 5]
    titles = rng.sample(sorted(world.titles.values()), min(count, len(world.titles)))
    spans = [rng.choice(found) for title in titles if (found := list(phrases(title)))]
    return [text for text in queries + spans if compact(text) not in protected]


def real_slips(corrections: Mapping[str, str], allowed: Iterable[str]) -> Slips:
    """The slips in the corrections of ``allowed`` queries."""
    return Slips((q, corrections[q]) for q in allowed if q in corrections)
