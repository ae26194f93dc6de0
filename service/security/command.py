"""``requery keys``: make API keys, and check the file of their hashes."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from service.config.watched_file import FileInvalid, load_yaml
from service.security.api_keys import SCOPES, KeysInvalid, entry, new_key
from service.security.keyring import append_entry, check_keys_file

app = typer.Typer(
    help="Make API keys, and check the file of their hashes (REQUERY_API_KEYS_FILE).",
    no_args_is_help=True,
    add_completion=False,
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
    file: Annotated[
        Path | None,
        typer.Option(help="YAML file of keys to add the entry to; made if it is missing."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON with the key itself on standard output.")
    ] = False,
) -> None:
    """Make a key. It is shown once, on standard error.

    Its entry for the file goes to --file, or else to standard output.
    """
    key = new_key()
    expires = None if days is None else datetime.now(UTC) + timedelta(days=days)
    try:
        text = entry(name, key, scope, expires)
    except KeysInvalid as error:
        # There is only one entry, so its number says nothing.
        _fail(str(error).removeprefix("entry 1, "))
    if file is not None:
        try:
            append_entry(file, text)
        except FileInvalid as error:
            _fail(str(error))
    if as_json:
        shown = {"key": key, "entry": load_yaml(text.encode())[0]}
        typer.echo(json.dumps(shown | ({} if file is None else {"file": str(file)}), indent=2))
        return
    typer.echo(
        f"The key, shown only now (send it as 'Authorization: Bearer <key>'):\n{key}\n"
        + (
            "Its entry for the file of keys, without the key itself:"
            if file is None
            else f"Its entry, without the key itself, is in {file}."
        ),
        err=True,
    )
    if file is None:
        typer.echo(text, nl=False)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="The file of keys.", metavar="FILE")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """List the keys of a file; exits with 1 if the service could not take it."""
    try:
        keys = check_keys_file(file)
    except FileInvalid as error:
        _fail(str(error))
    now = time.time()
    if as_json:
        rows = [
            {
                "name": key.name,
                "scopes": sorted(key.scopes),
                "state": key.fault(now) or "valid",
                "expires": None if key.expires is None else _utc(key.expires).isoformat(),
            }
            for key in keys
        ]
        typer.echo(json.dumps(rows, indent=2))
        return
    for key in keys:
        state: str = key.fault(now) or "valid"
        if state == "valid" and key.expires is not None:
            state = f"valid until {_utc(key.expires):%Y-%m-%d %H:%M} UTC"
        typer.echo(f"{key.name}: {', '.join(sorted(key.scopes))}; {state}")
    typer.echo(f"{file}: {len(keys)} key{'' if len(keys) == 1 else 's'}, well formed")


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _fail(message: str) -> NoReturn:
    typer.echo(f"requery: {message}", err=True)
    raise typer.Exit(1)
