"""``requery train``, ``evaluate``, ``compare``, ``judge`` and ``ab``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from model_store.errors import ModelStoreError
from model_store.store import FolderSource, Store, StoredVersion, open_store
from service.engine.errors import EngineUnavailable
from training.errors import TrainingError

if TYPE_CHECKING:
    from training.evaluation.measure import Bench

SOURCES = ("home_depot", "best_buy", "tables")
PRECISIONS = ("auto", "bfloat16", "float32")
FOLDS = ("held-out", "development")

DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Folder with home_depot/ and best_buy/; for the source 'tables', the folder of the "
        "tables (default: REQUERY_DATA).",
    ),
]

FoldOption = Annotated[
    str, typer.Option(help="held-out (for reports) or development (for choices).")
]
OnOption = Annotated[
    str | None,
    typer.Option(
        help="Another source (best_buy, home_depot, tables), whose queries are all unseen; or "
        "curated, the development fold of the project's own pairs."
    ),
]
SinceOption = Annotated[
    datetime | None,
    typer.Option(formats=["%Y-%m-%d"], help="Use only interactions of --on since this day."),
]
LimitOption = Annotated[
    int, typer.Option(min=1, help="Maximum number of queries of --on, drawn at random.")
]
DepthOption = Annotated[int, typer.Option(min=1, help="Number of products that a search returns.")]
JudgeOption = Annotated[
    Path | None,
    typer.Option("--judge", help="Folder of a judge that measures relevance.", file_okay=False),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON, the same as in the file, instead of text.")
]
DrawnOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder that keeps all candidates; existing ones are not drawn again.",
        file_okay=False,
    ),
]


def train(
    recipe: Annotated[Path, typer.Option(help="The recipe, a YAML file.", dir_okay=False)],
    run: Annotated[
        Path | None,
        typer.Option(help="Folder of the run; the same command resumes it (default: runs/<name>)."),
    ] = None,
    data: DataOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the finished version (default: in the run's folder)."),
    ] = None,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 50,
    precision: Annotated[
        str | None,
        typer.Option(
            help="bfloat16, float32 or auto (a timed step decides); default: the recipe's."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a version: run all stages of a recipe; a killed run resumes where it stopped."""
    with _errors("train"):
        from training.recipe import load_recipe

        loaded = load_recipe(recipe)
        if precision is not None:
            _one_of("--precision", precision, PRECISIONS)
            loaded = loaded.model_copy(update={"precision": precision})

        from training.artifacts import Language, write_artifacts
        from training.data.dataset import data_folder, read_source
        from training.run import train as run_recipe
        from training.trial import pack_adapter

        folder = run or Path("runs") / loaded.name
        adapter = run_recipe(loaded, folder, data, checkpoint_every=checkpoint_every)
        record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        target = (out or folder / "version") / loaded.name
        target.mkdir(parents=True, exist_ok=True)
        where, source = data_folder(data), loaded.data.source
        language = Language.read(where) if source == "general" else None
        write_artifacts(loaded, read_source(source, where), target, language)
        manifest = pack_adapter(adapter, loaded, target, spelling=loaded.spelling, training=record)
        if as_json:
            _print_json({"name": manifest.name, "digest": manifest.digest, "folder": str(target)})
            return
        typer.echo(f"trained {manifest.name} ({manifest.digest[:12]}) into {target}")
        typer.echo(f"measure it: requery evaluate {manifest.name} --source {target.parent}")


def evaluate(
    version: Annotated[str, typer.Argument(help="Name of the version.")],
    *,
    source: Annotated[
        Path | None,
        typer.Option(help="Folder of versions; it is searched before the packaged ones."),
    ] = None,
    data: DataOption = None,
    fold: FoldOption = "held-out",
    on: OnOption = None,
    since: SinceOption = None,
    limit: LimitOption = 1000,
    depth: DepthOption = 100,
    judge_folder: JudgeOption = None,
    against: Annotated[
        str | None,
        typer.Option(help="Another version: report differences to it on the same queries."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="JSON file for all figures.", dir_okay=False)
    ] = None,
    drawn: DrawnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a version's rewrites and tags on queries that no training stage has seen."""
    with _errors("evaluate"):
        folders = [] if source is None else [source]
        if on == "curated":
            _examine(_store(folders).get(version), out)
            return
        names = [version] if against is None else [version, against]
        found, bench = _bench(
            names, folders, data=data, fold=fold, on=on, since=since, limit=limit, depth=depth,
            drawn=drawn, judge_folder=judge_folder,
        )  # fmt: skip

        from training.evaluation.measure import differences
        from training.evaluation.report import as_differences, as_table
        from training.folder import write_json

        world, exam = bench.world, bench.exam
        mine = bench.measure(found[0])
        result = {"fold": exam.name, "depth": depth, **mine.record(world)}
        for other in found[1:]:
            theirs = bench.measure(other)
            result |= {"against": theirs.version, **differences(world, mine, theirs)}
        if out is not None:
            write_json(out, result)
        if as_json:
            _print_json(result)
            return
        typer.echo(as_table(result))
        if against is not None:
            typer.echo("\n" + as_differences(result))


def _examine(version: StoredVersion, out: Path | None) -> None:
    from training.evaluation.curated import examine
    from training.folder import write_json

    result = examine(version)
    if out is not None:
        write_json(out, result)
    typer.echo(json.dumps(result, indent=1))


def judge(
    *,
    source: Annotated[
        str, typer.Option(help="Training data: home_depot, best_buy or tables.")
    ] = "home_depot",
    data: DataOption = None,
    run: Annotated[
        Path, typer.Option(help="Folder of the run; the same command resumes it.")
    ] = Path("runs/judge"),
    out: Annotated[
        Path | None, typer.Option(help="Folder for the judge (default: <run>/judge).")
    ] = None,
    epochs: Annotated[float, typer.Option(min=0.01, help="Passes over the grades.")] = 1.0,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of graded pairs (default: all).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of all random choices.")] = 7,
    fold: Annotated[
        str,
        typer.Option(
            help="Fold to measure on: development (for choices) or held-out (for reports)."
        ),
    ] = "development",
    as_json: JsonOption = False,
) -> None:
    """Train the relevance judge on human grades, and measure it."""
    with _errors("judge"):
        _one_of("--fold", fold, FOLDS)
        _one_of("--source", source, SOURCES)

        from training.data.dataset import data_folder, read_source, split
        from training.data.pairs import World
        from training.folder import write_json
        from training.judge.measure import measure_judge
        from training.judge.train import JudgeSettings, train_judge

        world = World(read_source(source, data_folder(data)))
        parts = split(world)
        settings = JudgeSettings(epochs=epochs, seed=seed, limit=limit)
        made = train_judge(world, parts, settings, run=run)
        target = out or run / "judge"
        made.save(target)
        queries = parts.held_out if fold == "held-out" else parts.development
        figures = measure_judge(made, world, queries)
        write_json(run / f"measured-{fold}.json", figures)
        _print_json(figures)
        typer.echo(f"wrote the judge into {target}", err=as_json)


def compare(
    versions: Annotated[list[str], typer.Argument(help="Names of the versions.")],
    *,
    source: Annotated[
        list[Path] | None,
        typer.Option(help="Folders of versions; they are searched before the packaged ones."),
    ] = None,
    data: DataOption = None,
    fold: FoldOption = "held-out",
    on: OnOption = None,
    since: SinceOption = None,
    limit: LimitOption = 1000,
    depth: DepthOption = 100,
    judge_folder: JudgeOption = None,
    prompted: Annotated[
        bool,
        typer.Option(help="Also measure the base of the first version, prompted with examples."),
    ] = False,
    drawn: DrawnOption = None,
    out: Annotated[
        Path, typer.Option(help="Folder for the table, the figures and the plot.", file_okay=False)
    ] = Path("runs/compare"),
    as_json: JsonOption = False,
) -> None:
    """Compare versions with untrained baselines: spelling correction, query expansion, the base."""
    with _errors("compare"):
        found, bench = _bench(
            versions, source or [],
            data=data, fold=fold, on=on, since=since, limit=limit, depth=depth, drawn=drawn,
            judge_folder=judge_folder,
        )  # fmt: skip

        from training.evaluation.baselines import baselines
        from training.evaluation.compare import (
            as_markdown,
            baseline_ways,
            plot,
            record,
            way,
            way_of,
        )
        from training.evaluation.measure import prompted_rewriter
        from training.folder import write_json

        world, exam = bench.world, bench.exam
        ways = baseline_ways(world, exam.queries, baselines(world, exam.parts), bench.first)
        if prompted:
            base = prompted_rewriter(found[0], exam, drawn)
            ways.append(way(world, exam.queries, "the base model, prompted", base, bench.first))
        measured = [bench.measure(version) for version in found]
        result = record(world, [*ways, *map(way_of, measured)], measured, exam=exam.name)
        write_json(out / "compare.json", result)
        (out / "compare.md").write_text(as_markdown(result) + "\n", encoding="utf-8")
        plot(result, out / "compare.png")
        if as_json:
            _print_json(result)
        else:
            typer.echo(as_markdown(result))
        typer.echo(f"wrote table, figures and plot into {out}", err=as_json)


def _store(folders: Sequence[Path]) -> Store:
    return Store([*map(FolderSource, folders), *open_store().sources])


def _bench(
    names: list[str],
    folders: list[Path],
    *,
    data: Path | None,
    fold: str,
    on: str | None,
    since: datetime | None,
    limit: int,
    depth: int,
    drawn: Path | None,
    judge_folder: Path | None,
) -> tuple[list[StoredVersion], Bench]:
    """The versions, and the queries to measure them on: a fold of their data, or another source.

    Raises:
        TrainingError: an option is wrong; checked before anything slow is loaded.
        ModelStoreError: a version is missing or damaged.
    """
    _one_of("--fold", fold, FOLDS)
    if on is not None:
        _one_of("--on", on, SOURCES)
    elif since is not None:
        raise TrainingError("--since is for another source: name it with --on")
    store = _store(folders)
    versions = [store.get(name) for name in names]

    from training.data.dataset import data_folder, read_source
    from training.data.pairs import World
    from training.evaluation.measure import Bench, fold_exam, other_exam
    from training.judge.model import load_judge

    tables = read_source(on or _source_of(versions[0].manifest.training), data_folder(data))
    if since is not None:
        tables = tables.since(since.replace(tzinfo=UTC))
    world = World(tables, depth)
    if on is None:
        exam = fold_exam(world, fold)
    else:
        exam = other_exam(world, f"{on} since {since:%Y-%m-%d}" if since else on, limit)
    score = None if judge_folder is None else load_judge(judge_folder)
    return versions, Bench(world, exam, drawn, score)


def _one_of(option: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        names = f"{', '.join(allowed[:-1])} or {allowed[-1]}"
        raise TrainingError(f"{option} is {names}, not {value!r}")


def ab(
    *,
    url: Annotated[
        str, typer.Option(envvar="REQUERY_URL", help="The running service.")
    ] = "http://localhost:8000",
    shoppers: Annotated[int, typer.Option(min=2, help="Simulated shoppers.")] = 2000,
    holdout_share: Annotated[
        float,
        typer.Option(min=0.0, max=0.99, help="Share of shoppers that search without rewrites."),
    ] = 0.5,
    seed: Annotated[int, typer.Option(help="Seed of all random choices.")] = 7,
    source: Annotated[str, typer.Option(help="home_depot, best_buy or tables.")] = "home_depot",
    data: DataOption = None,
    out: Annotated[Path, typer.Option(help="Folder for the report.", file_okay=False)] = Path(
        "runs/ab"
    ),
    deadline_ms: Annotated[int, typer.Option(min=1, help="Deadline of each search.")] = 500,
    max_rewrites: Annotated[
        int | None,
        typer.Option(min=1, help="Rewrites per search (default: the version's own number)."),
    ] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, max=100, help="Concurrent shoppers; each waits for its answers.")
    ] = 4,
    page: Annotated[int, typer.Option(min=1, max=100, help="Products on a page.")] = 24,
    rewrite_weight: Annotated[
        float, typer.Option(min=0.0, help="Weight of a rewrite's ranking; the query's own is 1.")
    ] = 0.6,
    judge_folder: Annotated[
        Path | None,
        typer.Option(
            "--judge", help="Judge that grades ungraded products (without one they count as bad)."
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            envvar=["REQUERY_KEY", "REQUERY_API_KEY"], help="API key with the scope for rewrites."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Simulate an A/B test of the service's versions against searches without rewrites."""
    with _errors("ab"):
        _one_of("--source", source, SOURCES)

        from training.ab.experiment import Settings, experiment
        from training.ab.report import as_markdown
        from training.ab.run import Service

        result = experiment(
            Service(url, key, deadline_ms, max_rewrites, concurrency),
            Settings(
                shoppers,
                holdout_share,
                seed,
                page=page,
                rewrite_weight=rewrite_weight,
                judge=judge_folder,
            ),
            source=source,
            data=data,
            out=out,
        )
        if as_json:
            _print_json(result)
        else:
            typer.echo(as_markdown(result))
        typer.echo(f"wrote the report of the simulated experiment into {out}", err=as_json)


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=1, sort_keys=True))


def _source_of(record: dict[str, Any]) -> str:
    """The source of a version's training data, by its training record."""
    try:
        return str(record["recipe"]["data"]["source"])
    except (KeyError, TypeError):
        return "home_depot"


@contextmanager
def _errors(command: str) -> Iterator[None]:
    """Print expected errors in one line and exit with code 1."""
    try:
        yield
    except (TrainingError, ModelStoreError, EngineUnavailable) as error:
        typer.echo(f"requery {command}: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from None
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        typer.echo(f"requery {command}: {what}", err=True)
        raise typer.Exit(1) from None
