"""The command ``requery``: one root, each subcommand loaded only when it is used.

So ``requery models list`` starts at once, and ``requery serve`` needs no training library.
"""

from __future__ import annotations

import sys
from importlib import import_module, metadata
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Rewrites shopping queries online: serve, precompute, look after models, train, evaluate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

OURS = frozenset({"service", "model_store", "training"})
# Everything after the subcommand's name, "--help" too, is left to the subcommand itself.
_PASS_ON: dict[str, Any] = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "allow_interspersed_args": False,
}


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Rewrites shopping queries online: serve, precompute, look after models, train, evaluate."""
    if version:
        typer.echo(f"requery {metadata.version('requery-search')}")
        raise typer.Exit


@app.command(context_settings=_PASS_ON, add_help_option=False)
def serve(ctx: typer.Context) -> None:
    """Answer rewrite requests over HTTP."""
    _run("serve", "service.server.command", "serve", ctx.args)


@app.command(context_settings=_PASS_ON, add_help_option=False)
def precompute(ctx: typer.Context) -> None:
    """Fill the cache with the most frequent queries of a log."""
    _run("precompute", "service.precompute.command", "precompute", ctx.args)


@app.command(context_settings=_PASS_ON, add_help_option=False)
def models(ctx: typer.Context) -> None:
    """List, show, verify, add and materialise model versions."""
    _run("models", "model_store.cli", "app", ctx.args)


@app.command(context_settings=_PASS_ON, add_help_option=False)
def keys(ctx: typer.Context) -> None:
    """Make API keys, and check the file of their hashes."""
    _run("keys", "service.security.command", "app", ctx.args)


@app.command(context_settings=_PASS_ON, add_help_option=False)
def train(ctx: typer.Context) -> None:
    """Train a version from a recipe."""
    _run("train", "training.cli", "train", ctx.args, extra="train")


@app.command(context_settings=_PASS_ON, add_help_option=False)
def evaluate(ctx: typer.Context) -> None:
    """Measure a version on held-out queries."""
    _run("evaluate", "training.cli", "evaluate", ctx.args, extra="train")


@app.command(context_settings=_PASS_ON, add_help_option=False)
def compare(ctx: typer.Context) -> None:
    """Put versions and simpler ways to rewrite side by side."""
    _run("compare", "training.cli", "compare", ctx.args, extra="train")


@app.command(context_settings=_PASS_ON, add_help_option=False)
def judge(ctx: typer.Context) -> None:
    """Train the judge of relevance, for rewards and for measuring."""
    _run("judge", "training.cli", "judge", ctx.args, extra="train")


@app.command(context_settings=_PASS_ON, add_help_option=False)
def ab(ctx: typer.Context) -> None:
    """Simulate an A/B test of the versions of a running service."""
    _run("ab", "training.cli", "ab", ctx.args, extra="train")


def _run(
    name: str, module: str, attribute: str, arguments: list[str], *, extra: str | None = None
) -> None:
    try:
        target = getattr(import_module(module), attribute)
        if not isinstance(target, typer.Typer):
            command, target = target, typer.Typer()
            target.command()(command)
        # Heavy libraries are imported as late as here, by the command itself.
        typer.main.get_command(target)(args=arguments, prog_name=f"requery {name}")
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in OURS:
            raise
        hint = (
            f"the extra {extra!r}: pip install 'requery-search[{extra}]'"
            if extra
            else "a full install"
        )
        typer.echo(f"requery: {name} needs {hint} ({missing} is missing)", err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    sys.exit(app())
