"""``requery keys``: make API keys, and check the file of their hashes."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from service.config.watched_file import FileInvalid
from service.security.api_keys import SCOPES, KeysInvalid, entry, new_key
from service.security.keyring import check_keys_file

app = typer.Typer(
    help="Make API keys, and check the file of their hashes (REQUERY_API_KEYS_FILE).",
    no_args_is_help=True,
)


@app.command()
def new(
    name: Annotated[str, typer.Option(help="Owner of the key, for logs and the audit trail.")],
    scope: Annotated[
        list[str], typer.Option(help=f"What it allows: {', '.join(SCOPES)}; may be repeated.")
    ],
    days: Annotated[
        int | None,
        typer.Option(min=1, max=36_500, help="Days until it expires. Default: never."),
    ] = None,
) -> None:
    """Make a key. It is shown once, on standard error; its entry for the file on standard output.

    So 'requery keys new --name backend --scope rewrite >> keys.yaml' shows the key and adds it.
    """
    key = new_key()
    expires = None if days is None else datetime.now(UTC) + timedelta(days=days)
    try:
        text = entry(name, key, scope, expires)
    except KeysInvalid as error:
        # There is only one entry, so its number says nothing.
        _fail(str(error).removeprefix("entry 1, "))
    typer.echo(
        f"The key, shown only now (send it as 'Authorization: Bearer <key>'):\n{key}\n"
        "Its entry for the file of keys, without the key itself:",
        err=True,
    )
    typer.echo(text, nl=False)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="The file of keys.", metavar="FILE")],
) -> None:
    """List the keys of a file; exits with 1 if the service could not take it."""
    try:
        keys = check_keys_file(file)
    except FileInvalid as error:
        _fail(str(error))
    now = time.time()
    for key in keys:
        state: str = key.fault(now) or "valid"
        if state == "valid" and key.expires is not None:
            state = f"valid until {datetime.fromtimestamp(key.expires, UTC):%Y-%m-%d %H:%M} UTC"
        typer.echo(f"{key.name}: {', '.join(sorted(key.scopes))}; {state}")
    typer.echo(f"{file}: {len(keys)} key{'' if len(keys) == 1 else 's'}, well formed")


def _fail(message: str) -> NoReturn:
    typer.echo(f"requery: {message}", err=True)
    raise typer.Exit(1)
