"""The curated pairs: queries of all departments with right and hard wrong rewrites.

They are this project's own (``curated/README.md`` has the rules that they were written by): files
of tab-separated lines ``query, rewrite, label, kind`` with a header and no quoting, one file a
department. ``label`` is 1 for right and 0 for wrong; right rewrites come best first.
"""

from __future__ import annotations

import csv
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from model_store.text import normalise
from training.data.folds import DEVELOPMENT, HELD_OUT, compact, fold_of, variants
from training.data.search import stems
from training.errors import DataError

CURATED = Path(__file__).parent / "curated"
"""Where the project keeps them."""
READ = "read.tsv"
"""What a version wrote for queries of the other files, labelled by reading."""
COLUMNS = ["query", "rewrite", "label", "kind"]


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A rewrite, and what kind of right or wrong it is (looser than the label)."""

    text: str
    kind: str


@dataclass(frozen=True, slots=True)
class CuratedQuery:
    """A query with its rewrites, all normalised.

    Attributes:
        query: as typed; a quarter of them is misspelled.
        department: the name of the file that it is in.
        right: best first; of a misspelled query the first is the correction.
        wrong: hard ones.
    """

    query: str
    department: str
    right: tuple[Rewrite, ...]
    wrong: tuple[Rewrite, ...]

    @property
    def corrected(self) -> str:
        """The query in correct spelling, as far as it was curated as misspelled."""
        if self.right and self.right[0].kind == "spelling":
            return self.right[0].text
        return self.query


def read_curated(folder: Path) -> list[CuratedQuery]:
    """All curated queries, each once (in the first file that has it), in the order of the files.

    The pairs of :data:`READ` are added to those of their queries.

    Raises:
        DataError: there are no files, or one is not in the form described above.
    """
    paths = sorted(folder.glob("*.tsv"))
    if not paths:
        raise DataError(f"{folder} holds no curated pairs (*.tsv)")
    found: dict[str, CuratedQuery] = {}
    for path in sorted(paths, key=lambda path: path.name == READ):
        for query, rows in _rows(path).items():
            known = found.get(query, CuratedQuery(query, path.stem, (), ()))
            if query in found and path.name != READ:
                continue
            taken = {rewrite.text for rewrite in (*known.right, *known.wrong)}
            right, wrong = (
                tuple(
                    Rewrite(t, kind)
                    for t, label, kind in rows
                    if label == wanted and t not in taken
                )
                for wanted in ("1", "0")
            )
            found[query] = replace(
                known, right=(*known.right, *right), wrong=(*known.wrong, *wrong)
            )
    return list(found.values())


def _rows(path: Path) -> dict[str, list[tuple[str, str, str]]]:
    """Query -> (rewrite, label, kind) of each line."""
    rows: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        if next(reader, None) != COLUMNS:
            raise DataError(f"{path}: the header is not {', '.join(COLUMNS)}")
        for number, row in enumerate(reader, start=2):
            if len(row) != len(COLUMNS) or row[2] not in ("0", "1"):
                raise DataError(f"{path}: line {number} is not query, rewrite, 0 or 1, kind")
            query, rewrite = (normalise(text, fold_case=True) for text in row[:2])
            if not query or not rewrite:
                raise DataError(f"{path}: line {number} has an empty query or rewrite")
            if rewrite != query:
                rows[query].append((rewrite, row[2], row[3]))
    return rows


@dataclass(frozen=True, slots=True)
class CuratedSplit:
    """Curated queries by use; no training query is a spelling variant of another part's.

    ``protected`` has the compact forms (:func:`training.data.folds.compact`) of what is kept out.
    """

    train: tuple[CuratedQuery, ...]
    development: tuple[CuratedQuery, ...]
    protected: frozenset[str]


def split_curated(
    queries: Sequence[CuratedQuery], also_protected: Iterable[str] = ()
) -> CuratedSplit:
    """Deal queries into folds by their typed form, as :mod:`training.data.folds` says.

    Args:
        queries: of all folds.
        also_protected: other queries that no training query may be a variant of.
    """
    kept_out = [q for q in queries if fold_of(q.query) in (HELD_OUT, DEVELOPMENT)]
    development = tuple(q for q in queries if fold_of(q.query) == DEVELOPMENT)
    protected = {form for q in kept_out for form in (q.query, q.corrected)} | set(also_protected)
    rest = [q for q in queries if fold_of(q.query) not in (HELD_OUT, DEVELOPMENT)]
    close = variants(list({f for q in rest for f in (q.query, q.corrected)}), protected)
    train = tuple(q for q in rest if q.query not in close and q.corrected not in close)
    return CuratedSplit(train, development, frozenset(compact(p) for p in protected))


def swapped(
    queries: Sequence[CuratedQuery], count: int, seed: int, *, near: bool = False
) -> Mapping[str, list[str]]:
    """For each query, right rewrites of other queries of its department: wrong for this one.

    Nothing about a text by itself then says whether it is right. A query lends nothing to one that
    has a rewrite or wording in common with it.

    Args:
        queries: borrow from each other.
        count: for each query, at most.
        seed: decides which.
        near: borrow from queries that share a word, which is harder; of some there are none.
    """
    rng = random.Random(seed)
    forms = {q.query: {compact(t) for t in (q.query, *(r.text for r in q.right))} for q in queries}
    words = {q.query: set(stems(q.corrected)) for q in queries}
    departments: dict[str, list[CuratedQuery]] = defaultdict(list)
    holding: dict[tuple[str, str], list[CuratedQuery]] = defaultdict(list)
    for query in queries:
        if query.right:
            departments[query.department].append(query)
            for word in words[query.query]:
                holding[query.department, word].append(query)
    found: dict[str, list[str]] = {}
    for query in queries:
        mine = words[query.query]
        if near:
            pool = [q for word in sorted(mine) for q in holding[query.department, word]]
        else:
            pool = departments[query.department]
        texts: list[str] = []
        for lender in rng.sample(pool, min(len(pool), 6 * count)):
            theirs = words[lender.query]
            # The one may be only a looser wording of the other.
            related = forms[query.query] & forms[lender.query] or mine <= theirs or theirs <= mine
            if len(texts) < count and not related:
                texts.append(rng.choice(lender.right).text)
        found[query.query] = texts
    return found


def summarise_curated(queries: Iterable[CuratedQuery]) -> dict[str, int]:
    """Counts for the run's record."""
    counts: Counter[str] = Counter()
    for query in queries:
        counts.update(queries=1, right=len(query.right), wrong=len(query.wrong))
    return dict(counts)
