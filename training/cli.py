"""``requery train``, ``evaluate``, ``compare``, ``judge`` and ``ab``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from model_store.errors import ModelStoreError
from model_store.store import FolderSource, Store, open_store
from service.engine.errors import EngineUnavailable
from training.errors import TrainingError

SOURCES = ("home_depot", "best_buy", "tables")

DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Folder that holds home_depot/ and best_buy/, or for a recipe with the source "
        "'tables' the folder of the tables [REQUERY_DATA].",
    ),
]

FoldOption = Annotated[
    str, typer.Option(help="held-out (to report) or development (to choose by).")
]
OnOption = Annotated[
    str | None,
    typer.Option(help="Another source (best_buy, home_depot, tables), all of it unseen."),
]
SinceOption = Annotated[
    datetime | None,
    typer.Option(formats=["%Y-%m-%d"], help="Of --on: only what shoppers did from then on."),
]
LimitOption = Annotated[int, typer.Option(min=1, help="Of --on: most queries, drawn by chance.")]
DepthOption = Annotated[
    int, typer.Option(min=1, help="Products that a search returns: the budget of a fusion.")
]
JudgeOption = Annotated[
    Path | None,
    typer.Option("--judge", help="Judge that measures relevance.", file_okay=False),
]
DrawnOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder to keep all candidates in; those that are there are not drawn again.",
        file_okay=False,
    ),
]


def train(
    recipe: Annotated[Path, typer.Option(help="The recipe, a YAML file.", dir_okay=False)],
    run: Annotated[
        Path | None,
        typer.Option(help="Folder of the run; the same command continues it [runs/<name>]."),
    ] = None,
    data: DataOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write the finished version into [the run's].")
    ] = None,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 50,
) -> None:
    """Train a version: all stages of a recipe, continued where a killed run stopped."""
    with _errors("train"):
        from training.recipe import load_recipe

        loaded = load_recipe(recipe)

        from training.artifacts import write_artifacts
        from training.data.dataset import data_folder, read_source
        from training.run import train as run_recipe
        from training.trial import pack_adapter

        folder = run or Path("runs") / loaded.name
        adapter = run_recipe(loaded, folder, data, checkpoint_every=checkpoint_every)
        record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        target = (out or folder / "version") / loaded.name
        target.mkdir(parents=True, exist_ok=True)
        write_artifacts(loaded, read_source(loaded.data.source, data_folder(data)), target)
        manifest = pack_adapter(adapter, loaded, target, spelling=loaded.spelling, training=record)
        typer.echo(f"trained {manifest.name} ({manifest.digest[:12]}) into {target}")
        typer.echo(f"measure it: requery evaluate {manifest.name} --source {target.parent}")


def evaluate(
    version: Annotated[str, typer.Argument(help="Name of the version.")],
    *,
    source: Annotated[
        Path | None, typer.Option(help="Folder of versions to look in before the packaged ones.")
    ] = None,
    data: DataOption = None,
    fold: FoldOption = "held-out",
    on: OnOption = None,
    since: SinceOption = None,
    limit: LimitOption = 1000,
    depth: DepthOption = 100,
    judge_folder: JudgeOption = None,
    against: Annotated[
        str | None, typer.Option(help="Another version: differences to it on the same queries.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write every figure here, as JSON.", dir_okay=False)
    ] = None,
    drawn: DrawnOption = None,
) -> None:
    """Measure a version's rewrites and tags on queries that no stage has seen."""
    with _errors("evaluate"):
        # What is wrong with the arguments is said before anything heavy is loaded.
        _check_exam(fold, on, since)
        store = open_store() if source is None else Store(
            [FolderSource(source), *open_store().sources]
        )  # fmt: skip
        found = store.get(version)
        other = store.get(against) if against is not None else None

        from training.data.dataset import data_folder, read_source
        from training.data.pairs import World
        from training.evaluation.measure import Bench, differences, fold_exam, other_exam
        from training.evaluation.report import as_differences, as_table
        from training.folder import write_json
        from training.judge.model import load_judge

        tables = read_source(on or _source_of(found.manifest.training), data_folder(data))
        if since is not None:
            tables = tables.since(since.replace(tzinfo=UTC))
        world = World(tables, depth)
        exam = fold_exam(world, fold) if on is None else other_exam(world, _named(on, since), limit)
        score = None if judge_folder is None else load_judge(judge_folder)
        bench = Bench(world, exam, drawn, score)
        mine = bench.measure(found)
        result = {"fold": exam.name, "depth": depth, **mine.record(world)}
        text = as_table(result)
        if other is not None:
            theirs = bench.measure(other)
            result |= {"against": other.manifest.name, **differences(world, mine, theirs)}
            text += "\n\n" + as_differences(result)
        if out is not None:
            write_json(out, result)
        typer.echo(text)


def judge(
    source: Annotated[
        str, typer.Option(help="home_depot, best_buy or tables: what to learn from.")
    ] = "home_depot",
    data: DataOption = None,
    run: Annotated[
        Path, typer.Option(help="Folder of the run; the same command continues it.")
    ] = Path("runs/judge"),
    out: Annotated[
        Path | None, typer.Option(help="Folder to write the judge into [<run>/judge].")
    ] = None,
    epochs: Annotated[float, typer.Option(min=0.01, help="Passes over the grades.")] = 1.0,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Most graded pairs to learn from [all].")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides every random choice.")] = 7,
    fold: Annotated[
        str, typer.Option(help="Measured on: development (to choose by) or held-out (to report).")
    ] = "development",
) -> None:
    """Train the judge of relevance on people's grades, and measure it."""
    with _errors("judge"):
        if fold not in ("held-out", "development"):
            raise TrainingError(f"--fold is held-out or development, not {fold!r}")
        if source not in SOURCES:
            raise TrainingError(f"--source is one of {', '.join(SOURCES)}, not {source!r}")

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
        typer.echo(json.dumps(figures, indent=1))
        typer.echo(f"wrote the judge into {target}")


def compare(
    versions: Annotated[list[str], typer.Argument(help="Names of the versions.")],
    *,
    source: Annotated[
        list[Path] | None,
        typer.Option(help="Folders of versions to look in before the packaged ones."),
    ] = None,
    data: DataOption = None,
    fold: FoldOption = "held-out",
    on: OnOption = None,
    since: SinceOption = None,
    limit: LimitOption = 1000,
    depth: DepthOption = 100,
    judge_folder: JudgeOption = None,
    prompted: Annotated[
        bool, typer.Option(help="Also the base of the first version, asked by examples.")
    ] = False,
    drawn: DrawnOption = None,
    out: Annotated[
        Path, typer.Option(help="Folder of the table, the figures and the plot.", file_okay=False)
    ] = Path("runs/compare"),
) -> None:
    """Put versions side by side with what needs no training: spelling, expansion, the base."""
    with _errors("compare"):
        _check_exam(fold, on, since)
        folders = [FolderSource(folder) for folder in source or ()]
        store = Store([*folders, *open_store().sources])
        found = [store.get(name) for name in versions]

        from training.data.dataset import data_folder, read_source
        from training.data.pairs import World
        from training.evaluation.baselines import baselines
        from training.evaluation.compare import (
            as_markdown,
            baseline_ways,
            plot,
            record,
            way,
            way_of,
        )
        from training.evaluation.measure import Bench, fold_exam, other_exam, prompted_rewriter
        from training.folder import write_json
        from training.judge.model import load_judge

        tables = read_source(on or _source_of(found[0].manifest.training), data_folder(data))
        if since is not None:
            tables = tables.since(since.replace(tzinfo=UTC))
        world = World(tables, depth)
        exam = fold_exam(world, fold) if on is None else other_exam(world, _named(on, since), limit)
        bench = Bench(
            world, exam, drawn, None if judge_folder is None else load_judge(judge_folder)
        )
        ways = baseline_ways(world, exam.queries, baselines(world, exam.parts), bench.first)
        if prompted:
            base = prompted_rewriter(found[0], exam, drawn)
            ways.append(way(world, exam.queries, "the base model, prompted", base, bench.first))
        measured = [bench.measure(version) for version in found]
        result = record(world, [*ways, *map(way_of, measured)], measured, exam=exam.name)
        write_json(out / "compare.json", result)
        (out / "compare.md").write_text(as_markdown(result) + "\n", encoding="utf-8")
        plot(result, out / "compare.png")
        typer.echo(as_markdown(result))
        typer.echo(f"wrote table, figures and plot into {out}")


def _check_exam(fold: str, on: str | None, since: datetime | None) -> None:
    """Refuse what cannot be measured on.

    Raises:
        TrainingError: an option is wrong; the message says which.
    """
    if fold not in ("held-out", "development"):
        raise TrainingError(f"--fold is held-out or development, not {fold!r}")
    if on is not None and on not in SOURCES:
        raise TrainingError(f"--on is one of {', '.join(SOURCES)}, not {on!r}")
    if since is not None and on is None:
        raise TrainingError("--since is for another source: name it with --on")


def _named(source: str, since: datetime | None) -> str:
    return source if since is None else f"{source} since {since:%Y-%m-%d}"


def ab(
    *,
    url: Annotated[
        str, typer.Option(envvar="REQUERY_URL", help="The running service.")
    ] = "http://localhost:8000",
    shoppers: Annotated[int, typer.Option(min=2, help="Simulated shoppers.")] = 2000,
    holdout_share: Annotated[
        float, typer.Option(min=0.0, max=0.99, help="Part of them that searches without rewrites.")
    ] = 0.5,
    seed: Annotated[int, typer.Option(help="Decides every random choice.")] = 7,
    source: Annotated[str, typer.Option(help="home_depot, best_buy or tables.")] = "home_depot",
    data: DataOption = None,
    out: Annotated[Path, typer.Option(help="Folder of the report.", file_okay=False)] = Path(
        "runs/ab"
    ),
    deadline_ms: Annotated[int, typer.Option(min=1, help="Deadline of each search.")] = 500,
    max_rewrites: Annotated[
        int | None, typer.Option(min=1, help="Rewrites to ask for [the version's own number].")
    ] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, max=100, help="Shoppers at a time; each waits for its answers.")
    ] = 4,
    page: Annotated[int, typer.Option(min=1, max=100, help="Products on a page.")] = 24,
    rewrite_weight: Annotated[
        float, typer.Option(min=0.0, help="Of a rewrite's ranking beside the query's own 1.")
    ] = 0.6,
    judge_folder: Annotated[
        Path | None,
        typer.Option("--judge", help="Judge for products without grades [they count as bad]."),
    ] = None,
    key: Annotated[
        str | None, typer.Option(envvar="REQUERY_KEY", help="Key that may ask for rewrites.")
    ] = None,
) -> None:
    """Simulate an A/B test of the running service's versions, and of no rewrites at all."""
    with _errors("ab"):
        if source not in SOURCES:
            raise TrainingError(f"--source is home_depot, best_buy or tables, not {source!r}")

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
        typer.echo(as_markdown(result))
        typer.echo(f"wrote the report of the simulated experiment into {out}")


def _source_of(record: dict[str, Any]) -> str:
    """The source that a version was trained on, by its training record."""
    try:
        return str(record["recipe"]["data"]["source"])
    except (KeyError, TypeError):
        return "home_depot"


@contextmanager
def _errors(command: str) -> Iterator[None]:
    """One clear line and exit code 1 for everything that is raised on purpose."""
    try:
        yield
    except (TrainingError, ModelStoreError, EngineUnavailable) as error:
        typer.echo(f"requery {command}: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from None
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        typer.echo(f"requery {command}: {what}", err=True)
        raise typer.Exit(1) from None
