"""Wrong rewrites made by rule: nearly the query, and another need.

They teach the tag what a shopper's words mean: a negation, a number, a brand, a size, an audience
or a colour changed makes another need, however alike the texts are.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from service.engine.spelling import WordIndex
from training.data.curated_pairs import CuratedQuery, Rewrite
from training.data.folds import compact
from training.data.search import stems


def _listed(text: str) -> list[str]:
    return text.split("|")


_CLASSES: tuple[tuple[str, str], ...] = tuple(
    (kind, member)
    for kind, lines in {
        "audience": (
            "men|women|boys|girls|kids|toddler|baby|adults|teens|seniors",
            "mens|womens|boys|girls|kids|toddler|baby",
            "men's|women's|boy's|girl's|kids'|children's",
            "dog|cat|horse|bird|rabbit|fish",
            "dogs|cats|horses|birds|rabbits",
            "puppy|kitten",
        ),
        "attribute": (
            "black|white|red|blue|green|pink|grey|purple|yellow|orange|brown|beige|navy|gold|silver",
            "wood|metal|plastic|glass|leather|steel|bamboo|ceramic|stone|fabric|aluminum|brass",
            "cotton|silk|wool|linen|polyester|fleece|denim|velvet|satin",
            "gas|electric|charcoal|propane|solar|manual",
            "chocolate|vanilla|strawberry|lemon|mint|cherry|coconut|peanut butter",
            "round|square|rectangular|oval",
            "indoor|outdoor",
            "hot|cold",
            "matte|glossy|satin",
            "left|right",
            "spicy|mild|sweet",
            "wet|dry",
            "thick|thin",
            "short|long",
            "soft|firm|hard",
            "light|dark",
            "brushed nickel|chrome|oil rubbed bronze|polished brass|matte black",
            "new|used|refurbished",
            "front|rear",
            "ground|whole bean",
            "usb c|lightning|micro usb|hdmi|vga|displayport",
            "ps4|ps5|xbox one|nintendo switch|pc",
            "android|iphone|ipad",
        ),
        "number": (
            "small|medium|large|xl|xxl|2xl|3xl",
            "twin|full|queen|king|cal king|twin xl",
            "aa|aaa|c cell|d cell|9v|cr2032",
            "single|double|triple",
            "mini|full size",
            "half|quarter|whole",
            "travel size|family size",
            "newborn|infant",
            "one|two|three|four|five|six",
        ),
        "negation": (
            "wireless|wired",
            "cordless|corded",
            "scented|unscented|fragrance free",
            "sweetened|unsweetened",
            "salted|unsalted",
            "flavored|unflavored",
            "finished|unfinished",
            "locked|unlocked",
            "lined|unlined",
            "framed|frameless",
            "sleeveless|long sleeve",
            "seamless|seamed",
            "backless|high back",
            "armless|with arms",
            "strapless|with straps",
            "bagless|bagged",
            "tankless|tank",
            "tubeless|tube",
            "boneless|bone in",
            "skinless|skin on",
            "seedless|seeded",
            "caffeinated|decaf|caffeine free",
            "alcoholic|non alcoholic|alcohol free",
            "dairy|dairy free|non dairy",
            "prescription|non prescription",
            "stick|non stick|nonstick",
            "slip|non slip|anti slip",
            "drowsy|non drowsy",
            "insulated|uninsulated",
            "assembled|unassembled",
            "treated|untreated",
            "washable|non washable",
            "rechargeable|non rechargeable|disposable",
            "waterproof|not waterproof",
            "smart|non smart",
            "reusable|disposable",
            "bleached|unbleached",
            "pitted|unpitted",
        ),
    }.items()
    for member in lines
)
"""Words of which one in the place of another makes another need."""

_ATTRIBUTES = _listed(
    "in white|in black|in bulk|for kids|for women|for men|for dogs|for cats|for beginners|kit|set|"
    "with lights|with remote|with wheels|with lid|with handle|with case|with storage|wireless|"
    "waterproof|stainless steel|wooden|plastic|led|portable|mini|large|small|vintage|heavy duty|"
    "organic|personalized|2 pack|6 pack|12 inch|outdoor|wall mounted|adjustable|rechargeable|red|"
    "pink|blue|black|white|gold|under 20 dollars"
)
_ACCESSORIES = _listed(
    "case|cover|parts|replacement parts|refill|storage box|holder|stand|cleaner|bag|batteries|"
    "charger|rack|repair kit|organizer|poster|book|sticker|costume|toy"
)
_FEATURES = _listed(
    "handle|lid|sugar|sleeves|hood|zipper|wheels|arms|legs|lights|light|battery|cord|wires|drill|"
    "drilling|glue|batteries|remote|screen|bluetooth|wifi|gluten|dairy|caffeine|salt|nuts|soy|"
    "alcohol|fragrance|dye|sulfate|bpa|latex|bleach|ammonia|chicken|grain|pockets|logo|frame|"
    "stand|subscription|contract|camera|microphone|buttons|laces|straps|underwire|padding|heel|"
    "collar|filter|bag|cap|lock|hole|holes|backing|border|lines|sprayer|side burner|installation|"
    "tools|nickel|lead|chemicals|preservatives|artificial colors|pulp|seeds|bones|skin|shell|"
    "blades|fan|speaker|headboard|drawers|cushion|armrest|pedals|bars|valve|hose|base|shade|mirror"
)
"""What a product may be wanted with, and without."""

_UNITS = (
    "inch|ft|cm|mm|yard", "oz|lb|g|kg|gallon|quart|ml|liter", "gb|tb|mb", "watt|volt|amp",
    "pack|count|piece", "hour|minute|day", "month|year",
)  # fmt: skip
_UNIT_OF = {unit: group.split("|") for group in _UNITS for unit in group.split("|")} | {
    "in": ["ft", "cm", "mm"], '"': ["'", " cm", " mm"], "pk": ["ct", "oz"], "ct": ["pk", "oz"],
    "inches": ["feet", "cm"], "feet": ["inches", "yards"], "foot": ["inch", "yard"],
    "ounce": ["pound", "gallon"], "pound": ["ounce"], "v": ["w", "a"], "w": ["v"],
}  # fmt: skip
_NUMBER = re.compile(r"(?<![\w./])(\d+(?:\.\d+)?)(?=$|[^\w./])|(?<![\w./])(\d+)(?=[a-z\"'%])")
_QUANTITY = re.compile(r"(\d+(?:[./]\d+)?[ -]?)([a-z]+|\")(?![\w])")
_CODE = re.compile(r"(?<!\S)(?=\S*\d)(?=\S*[a-z])[\w-]{3,}(?!\S)")
_WITHOUT = re.compile(r"\b(without|with no|no|not|non|minus|except|excluding)\b[ -]?")
_FREE = re.compile(r"\b([a-z]+)[ -]free\b")
_WITH = re.compile(r"\b(with|w/)\s")
_NO_NEGATION = re.compile(r"\b(no|non)\.? \d")
"""``olaplex no 3`` negates nothing."""
_NO_WORD = re.compile(r"\b(without|with no|no) ([a-z]+)$")
_NEGATED = 0.15
"""Share of queries without a negation that get one."""


class NearWords:
    """Real words that are easily taken for another word.

    Args:
        counts: the words there are, in lower case, and how often they come.
        same: pairs of words that may stand for each other (a slip and what was meant).
    """

    def __init__(
        self, counts: Mapping[str, int], same: Collection[tuple[str, str]] = frozenset()
    ) -> None:
        self._counts = {w: n for w, n in counts.items() if w.isalpha() and w.isascii()}
        self._same = same
        self._index = WordIndex(self._counts)
        self._near: dict[str, list[str]] = {}

    def __contains__(self, word: str) -> bool:
        return word in self._counts

    def near(self, word: str, count: int = 6) -> list[str]:
        """The words nearest to ``word``, fewest edits first and then commonest.

        None of them is of the same stem, or known as another spelling of it.
        """
        if word not in self._near:
            edits = 2 if len(word) > 4 else 1
            own = stems(word)
            found = sorted(
                (n, -self._counts[other], other) for other, n in self._index.near(word, edits)
            )
            self._near[word] = [
                other
                for _, _, other in found
                if len(other) >= 3
                and stems(other) != own
                and (word, other) not in self._same
                and (other, word) not in self._same
            ][:16]
        return self._near[word][:count]


def brand_rivals(queries: Iterable[CuratedQuery]) -> dict[str, list[str]]:
    """Brand -> brands of the same kind of product, out of wrong rewrites of the kind ``brand``.

    A pair is learnt where query and rewrite differ in one place by at most two words on each side.
    """
    rivals: dict[str, set[str]] = defaultdict(set)
    for query in queries:
        for wrong in query.wrong:
            if wrong.kind != "brand":
                continue
            typed, other = _difference(query.corrected.split(), wrong.text.split())
            if 1 <= len(typed) <= 2 and 1 <= len(other) <= 2 and len(query.query.split()) > 1:
                mine, theirs = " ".join(typed), " ".join(other)
                rivals[mine].add(theirs)
                rivals[theirs].add(mine)
    return {brand: sorted(others) for brand, others in sorted(rivals.items())}


def _difference(left: Sequence[str], right: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """What is left of both without their common beginning and end."""
    start = 0
    while start < min(len(left), len(right)) and left[start] == right[start]:
        start += 1
    end = 0
    while end < min(len(left), len(right)) - start and left[-1 - end] == right[-1 - end]:
        end += 1
    return left[start : len(left) - end], right[start : len(right) - end]


class HardNegatives:
    """Makes wrong rewrites of a query, each by a rule of its kind.

    Args:
        near: real words, for confusions.
        rivals: of each brand (:func:`brand_rivals`).
    """

    def __init__(self, near: NearWords, rivals: Mapping[str, Sequence[str]]) -> None:
        self._near = near
        self._rivals = rivals
        self._classes: dict[str, list[tuple[str, list[str]]]] = defaultdict(list)
        for kind, line in _CLASSES:
            members = _listed(line)
            for member in members:
                self._classes[member].append((kind, [m for m in members if m != member]))
        self._rules: tuple[Callable[[str, random.Random], Iterator[Rewrite]], ...] = (
            self._confused, _numbers, _numbers, self._swapped_members, self._brands, _negations,
            _negations, _codes, self._added, self._lost,
        )  # fmt: skip

    def of(
        self, query: str, count: int, rng: random.Random, right: Iterable[str] = ()
    ) -> list[Rewrite]:
        """Up to ``count`` wrong rewrites of a query in correct spelling, of different rules.

        Args:
            query: normalised.
            count: at most.
            rng: decides which rules and words.
            right: texts that are right, which none of the others may be.
        """
        good = {compact(text) for text in (query, *right)}
        pools = [list(rule(query, rng)) for rule in self._rules]
        for pool in pools:
            rng.shuffle(pool)
        rng.shuffle(pools)
        # A rule that has something to say about this query goes before those for any query.
        pools.sort(key=lambda pool: bool(pool) and pool[0].kind in _ANY_QUERY)
        found: dict[str, Rewrite] = {}
        while len(found) < count and any(pools):
            for pool in pools:
                if pool and len(found) < count:
                    one = pool.pop()
                    form = compact(one.text)
                    if one.text != query and one.text and form not in good:
                        good.add(form)
                        found[one.text] = one
        return list(found.values())

    def confused(self, query: str, rng: random.Random) -> list[str]:
        """The query with one real word in the place of another that looks like it."""
        found = [one.text for one in self._confused(query, rng)]
        rng.shuffle(found)
        return found

    @staticmethod
    def turned(query: str, rng: random.Random) -> list[str]:
        """The query with its negation turned round or dropped, or with one that it has not."""
        found = list(dict.fromkeys(one.text for one in _negations(query, rng)))
        rng.shuffle(found)
        return found

    def _confused(self, query: str, rng: random.Random) -> Iterator[Rewrite]:
        words = query.split()
        for at, word in enumerate(words):
            if len(word) >= 3 and word.isalpha() and (near := self._near.near(word)):
                yield Rewrite(_put(words, at, rng.choice(near)), "confusable")

    def _swapped_members(self, query: str, rng: random.Random) -> Iterator[Rewrite]:
        words = query.split()
        for size in (1, 2, 3):
            for at in range(len(words) - size + 1):
                for kind, others in self._classes.get(" ".join(words[at : at + size]), ()):
                    yield Rewrite(_put(words, at, rng.choice(others), size), kind)

    def _brands(self, query: str, rng: random.Random) -> Iterator[Rewrite]:
        words = query.split()
        for size in (2, 1):
            for at in range(len(words) - size + 1):
                others = self._rivals.get(" ".join(words[at : at + size]))
                if others:
                    yield Rewrite(_put(words, at, rng.choice(others), size), "brand")
                    if len(words) > size:
                        yield Rewrite(_put(words, at, "", size), "brand")

    def _added(self, query: str, rng: random.Random) -> Iterator[Rewrite]:
        asked = set(query.split())
        attribute, accessory = rng.choice(_ATTRIBUTES), rng.choice(_ACCESSORIES)
        if not asked.intersection(attribute.split()):
            before = " " not in attribute and rng.random() < 0.5
            yield Rewrite(f"{attribute} {query}" if before else f"{query} {attribute}", "attribute")
        if rng.random() < 0.3 and not asked.intersection(accessory.split()):
            yield Rewrite(f"{query} {accessory}", "accessory")

    def _lost(self, query: str, rng: random.Random) -> Iterator[Rewrite]:
        words = query.split()
        # The last word mostly names the thing.
        if 2 <= len(words) <= 3 and words[-1].isalpha() and rng.random() < 0.4:
            yield Rewrite(" ".join(words[:-1]), "lost_need")


_ANY_QUERY = frozenset({"confusable", "attribute", "accessory", "lost_need"})


def _put(words: Sequence[str], at: int, new: str, size: int = 1) -> str:
    return " ".join(w for w in (*words[:at], new, *words[at + size :]) if w)


def _numbers(query: str, rng: random.Random) -> Iterator[Rewrite]:
    for match in _NUMBER.finditer(query):
        start, end = match.span()
        yield Rewrite(query[:start] + _other_number(match[0], rng) + query[end:], "number")
    for match in _QUANTITY.finditer(query):
        if others := [u for u in _UNIT_OF.get(match[2], ()) if u != match[2]]:
            changed = query[: match.start(2)] + rng.choice(others) + query[match.end(2) :]
            yield Rewrite(changed, "number")
            if rng.random() < 0.4:
                yield Rewrite(_cut(query, match), "number")


def _other_number(text: str, rng: random.Random) -> str:
    value = float(text)
    step = 1 if value < 12 else 10 if value % 10 == 0 else 2
    if 1900 <= value <= 2100:
        step = 1
    choices = [value + step, value - step, value * 2, value / 2, value + 2 * step]
    good = [c for c in choices if c > 0 and c != value and (c == int(c) or "." in text)]
    other = rng.choice(good)
    return str(int(other)) if other == int(other) else f"{other:.2f}".rstrip("0")


def _codes(query: str, rng: random.Random) -> Iterator[Rewrite]:
    for match in _CODE.finditer(query):
        if _QUANTITY.fullmatch(match[0]):
            continue
        code = match[0]
        at = rng.randrange(len(code))
        letter = rng.choice("0123456789" if code[at].isdigit() else "abcdefghkmnprstvx")
        changed = rng.choice([code[:at] + letter + code[at + 1 :], code[:-1], code + letter])
        yield Rewrite(query[: match.start()] + changed + query[match.end() :], "number")


def _negations(query: str, rng: random.Random) -> Iterator[Rewrite]:
    if not _NO_NEGATION.search(query):
        texts = [*_without_turned(query), *_free_turned(query), *_negated_words(query, rng)]
        yield from (Rewrite(text, "negation") for text in texts)


def _without_turned(query: str) -> Iterator[str]:
    """``x without y`` made ``x with y``, ``x`` and the like, and the other way round."""
    for match in _WITHOUT.finditer(query):
        before, after = query[: match.start()].strip(), query[match.end() :].strip()
        if after:
            yield f"{before} {after}".strip()
        if before and after:
            yield from (f"{before} with {after}", before, f"{after} {before}")
    for match in _WITH.finditer(query):
        before, after = query[: match.start()].strip(), query[match.end() :].strip()
        if before and after and not after.startswith("no "):
            yield from (f"{before} without {after}", f"{before} no {after}")


def _free_turned(query: str) -> Iterator[str]:
    """``y free x`` made ``x with y``, ``x`` and the like."""
    for match in _FREE.finditer(query):
        yield query.replace(match[0], match[1])
        if rest := _cut(query, match):
            yield from (rest, f"{rest} with {match[1]}", f"extra {match[1]} {rest}")


def _negated_words(query: str, rng: random.Random) -> Iterator[str]:
    """A word negated of a query that negates nothing, now and then."""
    words = query.split()
    if len(words) < 2 or _WITHOUT.search(query) or rng.random() > _NEGATED:
        return
    at = rng.randrange(len(words) - 1)
    if words[at].isalpha() and len(words[at]) > 3:
        yield _put(words, at, f"{rng.choice(('non', 'not', 'no'))} {words[at]}")
        yield _put(words, at, f"{words[at]} free")


def _cut(query: str, match: re.Match[str]) -> str:
    return " ".join((query[: match.start()] + query[match.end() :]).split())


def same_negation(query: str) -> list[str]:
    """The query with its negation said in another way, which is right."""
    if match := _NO_WORD.search(query):
        before, said, what = query[: match.start()].strip(), match[1], match[2]
        others = [other for other in ("without", "no", "with no") if other != said]
        forms = [*(f"{before} {other} {what}" for other in others), f"{what} free {before}",
                 f"{before} {what} free"]  # fmt: skip
        return forms if before else []
    match = _FREE.search(query)
    if match and (rest := _cut(query, match)):
        moved = f"{rest} {match[0]}" if query.startswith(match[0]) else f"{match[0]} {rest}"
        return [f"{rest} without {match[1]}", f"{rest} no {match[1]}", moved]
    return []


def negated(product: str, rng: random.Random) -> tuple[str, str]:
    """A product wanted without a feature that it may have: the query, and the feature."""
    feature = rng.choice(_FEATURES)
    form = rng.choice(("{p} without {f}", "{p} no {f}", "{p} with no {f}", "{f} free {p}"))
    return form.format(p=product, f=feature), feature
