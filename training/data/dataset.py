"""Training data of a recipe: the split, the mined pairs, the domain text."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from model_store.prompt import PromptFormat
from model_store.text import normalise
from service.filtering.guards import adds_numbers, keeps_numbers
from training.data.catalogue_pairs import CatalogueMiner
from training.data.curated_pairs import CURATED, read_curated, split_curated
from training.data.folds import DEVELOPMENT, HELD_OUT, compact, fold_of, variants
from training.data.general import General, general_files
from training.data.misspellings import Lookalikes, clean_texts, noisy_pairs, real_slips
from training.data.noise import corrupt
from training.data.packing import Row, Tree, pack, tree_of
from training.data.pairs import PairMiner, QueryPairs, Scored, World, is_echo
from training.data.picking import pick_queries
from training.data.readers import best_buy, home_depot
from training.data.schema import Tables
from training.errors import DataError
from training.recipe import GrpoStage, Recipe, SftStage

DATA_ENV = "REQUERY_DATA"
"""Environment variable that names the folder with the sources' folders."""

_DEFAULT_PLACES = (Path("data"), Path("../shared/data"))


def data_folder(explicit: Path | None = None) -> Path:
    """The folder that holds ``home_depot/`` and the like.

    Raises:
        DataError: none was named and none of the usual places exists.
    """
    named = explicit or (Path(os.environ[DATA_ENV]) if os.environ.get(DATA_ENV) else None)
    places = (named,) if named else _DEFAULT_PLACES
    for place in places:
        if place.is_dir():
            return place
    raise DataError(
        f"no data folder at {' or '.join(str(p) for p in places)}; pass --data or set {DATA_ENV} "
        "to the folder that holds home_depot/ and best_buy/ (docs/training.md says where from)"
    )


def read_source(source: str, folder: Path) -> Tables:
    """Tables of a named source under the data folder; ``tables`` reads our schema as it is."""
    if source in ("home_depot", "general"):
        return home_depot.read(folder / "home_depot")
    if source == "best_buy":
        return best_buy.read(folder / "best_buy")
    return Tables.load(folder)


def read_general(world: World, folder: Path) -> General:
    """The pairs of all departments; none of them is a variant of what ``world`` keeps out.

    Raises:
        DataError: a file is missing.
    """
    parts = split(world)
    curated = split_curated(read_curated(CURATED), [*parts.held_out, *parts.development])
    slips = [(q, world.corrections[q]) for q in parts.train if q in world.corrections]
    return General.read(folder, curated, slips)


def data_digests(source: str, folder: Path) -> dict[str, str]:
    """SHA-256 of each input file, for the record."""
    if source == "tables":
        paths = [path for path in folder.iterdir() if path.is_file()]
    elif source == "general":
        paths = [*(folder / "home_depot").iterdir(), *general_files(folder)]
    else:
        paths = [path for path in (folder / source).iterdir() if path.is_file()]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(paths)
    }


@dataclass(frozen=True, slots=True)
class Split:
    """Queries by use, in normal form. ``train`` holds no spelling variant of the others.

    ``protected`` has the compact forms of the other two: no text of those forms is learnt.
    """

    train: tuple[str, ...]
    development: tuple[str, ...]
    held_out: tuple[str, ...]
    protected: frozenset[str]


def split(world: World) -> Split:
    """Fold 0 held out, fold 1 for development, the rest for training less their variants.

    Raises:
        DataError: a part is empty.
    """
    folds = {query: fold_of(canonical) for query, canonical in world.canonical.items()}
    held = [q for q, f in folds.items() if f == HELD_OUT]
    development = [q for q, f in folds.items() if f == DEVELOPMENT]
    rest = [q for q, f in folds.items() if f not in (HELD_OUT, DEVELOPMENT)]
    protected = {
        form
        for q in held + development
        for form in (q, normalise(world.canonical[q], fold_case=True))
    }
    spellings = {q: normalise(world.canonical[q], fold_case=True) for q in rest}
    close = variants([*rest, *spellings.values()], protected)
    train = [q for q in rest if q not in close and spellings[q] not in close]
    for name, part in (("training", train), ("development", development), ("held-out", held)):
        if not world.with_relevant(part):
            raise DataError(f"the {name} fold has no query with a relevant product")
    forms = frozenset(compact(form) for form in protected)
    return Split(tuple(train), tuple(development), tuple(held), forms)


def mine_all(world: World, parts: Split, recipe: Recipe) -> dict[str, QueryPairs]:
    """Pairs of training queries that have a relevant product: of all, or as the recipe says."""
    count = recipe.data.queries
    queries = (
        world.with_relevant(parts.train)
        if count is None
        else pick_queries(world, parts.train, count, recipe.seed)
    )
    miner = PairMiner(world, parts.train, recipe.seed, parts.protected)
    return {
        query: miner.mine(query, recipe.data.max_write, recipe.data.max_judge)
        for query in tqdm(queries, desc="mining pairs", unit="query")
    }


def sft_rows(
    mined: Mapping[str, QueryPairs],
    sampled: Mapping[str, QueryPairs],
    world: World,
    parts: Split,
    recipe: Recipe,
    prompts: PromptFormat,
    *,
    stage: SftStage,
    seed: int,
) -> list[Row]:
    """Packed rows for a stage: mined, sampled, noisy and catalogue pairs, shuffled together.

    Beside samples of the model, mined and noisy pairs come in equal and half number, so that the
    model does not drift away from what people wrote (unless the stage says otherwise).
    """
    rng = random.Random(seed)
    noisy = _noisy(world, parts, recipe, seed)
    if stage.noisy_pairs is not None:
        noisy = noisy[: stage.noisy_pairs]
    people = list(mined.values())
    misspelt = [p for p in people if p.query in world.corrections]
    people += misspelt * (recipe.data.spelling_repeats - 1)
    if sampled and stage.match_samples:
        people = rng.sample(people, min(len(people), len(sampled)))
        noisy = noisy[: len(sampled) // 2]
    catalogue = CatalogueMiner(world, parts.train, seed, parts.protected)
    from_catalogue = catalogue.mine(stage.catalogue_pairs) if stage.catalogue_pairs else ()
    pool = [*people, *sampled.values(), *noisy, *from_catalogue]
    if stage.tasks == "write":
        pool = [QueryPairs(p.query, write=p.write) for p in pool]
    limit = recipe.decoding.max_tokens
    trees = [t for p in pool if (t := tree_of(p, prompts, limit)).branches]
    packed = _budget(trees, stage.tokens, rng)
    return pack(packed, stage.optimiser.row_tokens, prompts.labels.relevant)


def general_rows(
    general: General,
    mined: Mapping[str, QueryPairs],
    recipe: Recipe,
    prompts: PromptFormat,
    *,
    stage: SftStage,
    seed: int,
) -> list[Row]:
    """Packed rows of the source ``general``: as many passes as fit, with Home Depot's pairs."""
    rng = random.Random(seed)
    limit = recipe.decoding.max_tokens

    def trees(pool: Iterable[QueryPairs]) -> list[Tree]:
        return [t for p in pool if (t := tree_of(p, prompts, limit)).branches]

    home = [same_need(p) for q, p in mined.items() if compact(q) not in general.protected]
    home += [p for p in home if any(s.source == "spelling" for s in p.write)]
    chosen = list(_budget(trees(home), round(stage.home_share * stage.tokens), rng))
    spent = sum(map(len, chosen))
    for number in itertools.count():
        fresh = trees(general.one_pass(1000 * seed + number))
        for tree in fresh:
            if spent >= stage.tokens:
                rng.shuffle(chosen)
                return pack(chosen, stage.optimiser.row_tokens, prompts.labels.relevant)
            chosen.append(tree)
            spent += len(tree)
        if not fresh:
            raise DataError("the source 'general' has no pairs to learn from")
    raise AssertionError


def same_need(pairs: QueryPairs) -> QueryPairs:
    """Mined pairs without what only a search engine takes for right.

    A rewrite with another number is none, and phrases of titles and edits are not written.
    """

    def kept(items: Iterable[Scored]) -> list[Scored]:
        query = pairs.query
        return [
            s for s in items if keeps_numbers(query, s.text) and not adds_numbers(query, s.text)
        ]

    good = kept(pairs.write)
    write = [s for s in good if s.source in ("spelling", "co-relevant")][:2]
    rest = [s for s in good if s not in write]
    return QueryPairs(pairs.query, write, [*rest, *kept(pairs.accept)], pairs.reject)


def tag_rows(
    mined: Mapping[str, QueryPairs],
    world: World,
    parts: Split,
    recipe: Recipe,
    prompts: PromptFormat,
    *,
    stage: GrpoStage,
    seed: int,
) -> list[Row]:
    """Packed pairs to judge beside a GRPO stage, as many rows as it uses, none to write."""
    catalogue = CatalogueMiner(world, parts.train, seed, parts.protected)
    from_catalogue = catalogue.mine(stage.catalogue_pairs) if stage.catalogue_pairs else ()
    judged = [to_judge(p) for p in (*mined.values(), *from_catalogue)]
    trees = [t for p in judged if (t := tree_of(p, prompts, recipe.decoding.max_tokens)).branches]
    tokens = stage.steps * stage.tag_rows * stage.row_tokens
    packed = _budget(trees, tokens, random.Random(seed))
    return pack(packed, stage.row_tokens, prompts.labels.relevant)


def to_judge(pairs: QueryPairs) -> QueryPairs:
    """The same pairs, none of them to write."""
    return QueryPairs(pairs.query, [], pairs.write + pairs.accept, pairs.reject)


def training_pairs_to_judge(
    world: World, parts: Split, count: int, seed: int
) -> Iterator[QueryPairs]:
    """Pairs of ``count`` training queries, both sides free of what is held out.

    About as many are relevant as not, as in the pairs that tags are measured on.
    """
    miner = PairMiner(world, parts.train, seed, parts.protected)
    for query in pick_queries(world, parts.train, count, seed):
        yield to_judge(miner.mine(query))


def development_pairs_to_judge(world: World, parts: Split, seed: int) -> Iterator[QueryPairs]:
    """Pairs of all development queries; no text is that of a held-out query."""
    protected = frozenset(compact(query) for query in parts.held_out)
    miner = PairMiner(world, [*parts.train, *parts.development], seed, protected)
    for query in world.with_relevant(parts.development):
        yield to_judge(miner.mine(query))


def misspell_some(
    world: World, parts: Split, queries: Sequence[str], share: float, seed: int
) -> list[str]:
    """``queries`` in their order, about ``share`` of them misspelt as people misspell.

    Those that people misspelt themselves stay as they are. The world learns what is meant.
    """
    rng = random.Random(seed)
    slips = real_slips(world.corrections, parts.train)
    found = []
    for query in queries:
        form = query
        if rng.random() < share and query not in world.corrections:
            form = normalise(corrupt(query, rng, slips), fold_case=True)
        known = form in world.relevant or compact(form) in parts.protected
        if form and not known and not is_echo(query, form):
            world.misspelt(form, query)
            found.append(form)
        else:
            found.append(query)
    return found


def _noisy(world: World, parts: Split, recipe: Recipe, seed: int) -> list[QueryPairs]:
    count = recipe.data.noisy_pairs
    texts = [*world.titles.values(), *(q for q in parts.train if q not in world.corrections)]
    return list(
        noisy_pairs(
            clean_texts(world, parts.train, seed, count, parts.protected),
            count,
            seed,
            slips=real_slips(world.corrections, parts.train),
            lookalikes=Lookalikes(texts),
            protected=parts.protected,
        )
    )


def domain_rows(
    world: World,
    train: Iterable[str],
    prompts: PromptFormat,
    *,
    tokens: int,
    row_tokens: int,
    seed: int,
) -> list[Row]:
    """Packed rows of titles and training queries."""
    rng = random.Random(seed)
    texts = [normalise(t, fold_case=True) for t in world.titles.values()]
    queries = list(train)
    rng.shuffle(texts)
    rng.shuffle(queries)
    chosen: list[str] = []
    # Two titles for each query: titles hold the words to learn, queries how they are asked for.
    for index, title in enumerate(texts):
        chosen.append(title)
        if index % 2 == 0 and index // 2 < len(queries):
            chosen.append(queries[index // 2])
    trees = (Tree(tuple(ids)) for ids in prompts.encode_batch(chosen) if ids)
    return pack(_budget(trees, tokens, None), row_tokens, prompts.labels.relevant)


def _budget(trees: Iterable[Tree], tokens: int, rng: random.Random | None) -> Iterable[Tree]:
    """Trees up to a number of tokens; with ``rng`` shuffled, and repeated if too few."""
    pool = list(trees)
    spent = 0
    while pool and spent < tokens:
        if rng is not None:
            rng.shuffle(pool)
        for tree in pool:
            if spent >= tokens:
                return
            spent += len(tree)
            yield tree
        if rng is None:
            return
