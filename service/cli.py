"""The command ``requery``: one root, each subcommand loaded only when it is used.

So ``requery models list`` starts at once, and ``requery serve`` needs no training library.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib import import_module, metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


class _Root(TyperGroup):
    """Knows the options and commands of a subcommand when a shell completes them."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if ctx.resilient_parsing and name in _TARGETS:
            # A line is a candidate to fish, so that no text may be wrapped.
            os.environ["COLUMNS"] = "10000"
            with suppress(ModuleNotFoundError):  # an extra is missing
                command = _command(*_TARGETS[name])
        return name, command, rest


_TARGETS: dict[str, tuple[str, str]] = {}
"""Module and attribute of each subcommand."""

app = typer.Typer(
    cls=_Root,
    help="Rewrites shopping queries online: serve, rewrite, precompute, keep models, train.",
    no_args_is_help=True,
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
    """Rewrites shopping queries online: serve, rewrite, precompute, keep models, train."""
    if version:
        typer.echo(f"requery {metadata.version('requery-search')}")
        raise typer.Exit


def _subcommand(
    name: str, module: str, attribute: str, text: str, *, extra: str | None = None
) -> None:
    _TARGETS[name] = (module, attribute)

    @app.command(name, help=text, context_settings=_PASS_ON, add_help_option=False)
    def command(ctx: typer.Context) -> None:
        _run(name, module, attribute, ctx.args, extra=extra)


_subcommand("serve", "service.server.command", "serve", "Answer rewrite requests over HTTP.")
_subcommand(
    "rewrite", "service.server.ask_command", "rewrite", "Rewrite one query, in the terminal."
)
_subcommand(
    "precompute", "service.precompute.command", "precompute",
    "Fill the cache with the most frequent queries of a log.",
)  # fmt: skip
_subcommand(
    "models", "model_store.cli", "app", "List, show, verify, add and materialise model versions."
)
_subcommand(
    "keys", "service.security.command", "app", "Make API keys, and check the file of their hashes."
)
_subcommand(
    "adapt", "training.adapt.command", "adapt", "Make a version of a shop's own product list.",
    extra="train",
)  # fmt: skip
for _name, _text in {
    "train": "Train a version from a recipe.",
    "evaluate": "Measure a version on held-out queries.",
    "compare": "Put versions and simpler ways to rewrite side by side.",
    "judge": "Train the judge of relevance, for rewards and for measuring.",
    "ab": "Simulate an A/B test of the versions of a running service.",
}.items():
    _subcommand(_name, "training.cli", _name, _text, extra="train")


def _run(
    name: str, module: str, attribute: str, arguments: list[str], *, extra: str | None = None
) -> None:
    try:
        # Heavy libraries are imported as late as here, by the command itself.
        _command(module, attribute)(args=arguments, prog_name=f"requery {name}")
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


def _command(module: str, attribute: str) -> Any:
    target = getattr(import_module(module), attribute)
    if not isinstance(target, typer.Typer):
        command, target = target, typer.Typer(add_completion=False)
        target.command()(command)
    return typer.main.get_command(target)


if __name__ == "__main__":
    sys.exit(app())
