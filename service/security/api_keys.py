"""API keys and their scopes.

Only hashes are kept. A key is 32 random bytes, so its SHA-256 cannot be reversed; a slow password
hash would only slow every request.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal, get_args

import orjson
import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

from service.config.watched_file import FileUnusable, load_yaml

Scope = Literal["rewrite", "admin", "metrics"]
"""What a key allows: rewriting and tagging; changes and operators' pages; ``/metrics``."""
SCOPES: tuple[Scope, ...] = get_args(Scope)

ADMIN = "admin"
"""Name of the key that ``REQUERY_ADMIN_KEY`` sets."""
PREFIX = "rq_"
"""Prefix of generated keys, by which people and secret scanners recognise them."""
MAX_KEYS = 256
"""Most keys; each request's key is compared with all of them."""
_KEY_BYTES = 32

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,31}$"


class KeysInvalid(FileUnusable):
    """A list of keys is malformed; the message says where, and repeats no key."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key, without the key itself.

    Attributes:
        name: of its owner, for logs and the audit trail.
        digest: SHA-256 of the key.
        scopes: what it allows.
        expires: when it expires, in seconds since 1970; ``None``: never.
        revoked: whether it has been revoked.
    """

    name: str
    digest: bytes
    scopes: frozenset[Scope]
    expires: float | None = None
    revoked: bool = False

    def fault(self, now: float) -> Literal["revoked", "expired"] | None:
        """Why it is invalid at ``now`` (seconds since 1970); ``None`` if it is valid."""
        if self.revoked:
            return "revoked"
        if self.expires is not None and now >= self.expires:
            return "expired"
        return None


def new_key() -> str:
    """A new random key."""
    return PREFIX + secrets.token_urlsafe(_KEY_BYTES)


def digest_of(key: bytes) -> bytes:
    """SHA-256 of a key as it is sent."""
    return hashlib.sha256(key).digest()


def admin_key(secret: str) -> Key:
    """The key that ``REQUERY_ADMIN_KEY`` sets, with all scopes."""
    return Key(ADMIN, digest_of(secret.strip().encode()), frozenset(SCOPES))


def find(keys: Iterable[Key], given: bytes) -> Key | None:
    """The key that was sent, valid or not, if it is one of ``keys``.

    It is compared with each of them, to the last byte, so that the time taken reveals nothing.
    """
    digest = digest_of(given)
    found = None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            found = key
    return found


def read_keys(content: bytes, kind: str) -> tuple[Key, ...]:
    """Keys out of a file.

    Args:
        content: of the file.
        kind: how its name ends: ``.json``, ``.yaml`` or ``.yml``.

    Raises:
        KeysInvalid: it is no list of keys. The message never repeats the content, because that
            may hold a key by mistake.
    """
    data = _parse(content, kind)
    if not isinstance(data, list):
        raise KeysInvalid(
            "must be a list of keys, each with name, sha256 and scopes; "
            "'requery keys new' makes an entry"
        )
    if len(data) > MAX_KEYS:
        raise KeysInvalid(f"has {len(data)} keys, and at most {MAX_KEYS} are taken")
    try:
        records = _RECORDS.validate_python(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise KeysInvalid(_in_words(first["loc"], first["type"], first["msg"])) from None
    _require_different("name", [record.name for record in records])
    _require_different("sha256", [record.sha256 for record in records])
    return tuple(record.key() for record in records)


def entry(name: str, key: str, scopes: Sequence[str], expires: datetime | None = None) -> str:
    """The entry of a key for the file, as YAML.

    Raises:
        KeysInvalid: the name or a scope is invalid.
    """
    record: dict[str, Any] = {
        "name": name,
        "sha256": digest_of(key.encode()).hex(),
        "scopes": list(dict.fromkeys(scopes)),
    }
    if expires is not None:
        record["expires"] = expires.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    read_keys(orjson.dumps([record]), ".json")
    text = yaml.safe_dump([record], sort_keys=False, default_flow_style=None, width=200)
    assert isinstance(text, str)  # noqa: S101 - for the type checker
    return text


def _instant(value: object) -> datetime:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            value = None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    if not isinstance(value, datetime):
        text = "must be a time in UTC, as in 2030-01-31T18:00:00Z"
        raise ValueError(text)  # noqa: TRY004 - pydantic lets a TypeError pass
    return value if value.tzinfo is not None else value.replace(tzinfo=UTC)


def _not_reserved(name: str) -> str:
    if name == ADMIN:
        raise ValueError(f"{ADMIN!r} is the key of REQUERY_ADMIN_KEY; choose another name")
    return name


class _Record(BaseModel):
    """One entry of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[
        str, StringConstraints(pattern=_NAME, strict=True), AfterValidator(_not_reserved)
    ]
    sha256: Annotated[
        str, StringConstraints(pattern=r"^[0-9A-Fa-f]{64}$", to_lower=True, strict=True)
    ]
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=16)]
    expires: Annotated[datetime | None, BeforeValidator(_instant)] = None
    revoked: StrictBool = False

    def key(self) -> Key:
        expires = None if self.expires is None else self.expires.timestamp()
        return Key(
            self.name, bytes.fromhex(self.sha256), frozenset(self.scopes), expires, self.revoked
        )


_RECORDS = TypeAdapter(list[_Record])

_ADVICE: Mapping[str, str] = {
    "name": "must be 1 to 32 letters, digits or any of . _ @ + -, and begin with one of the former",
    "sha256": "must be the SHA-256 of the key: 64 hexadecimal digits",
    "scopes": f"must be a list of one or more of {', '.join(SCOPES)}",
    "revoked": "must be true or false",
}


def _in_words(location: tuple[int | str, ...], kind: str, message: str) -> str:
    """The place and kind of an error, without any content of the file."""
    place = f"entry {int(location[0]) + 1}" if location else "the list"
    field = str(location[1]) if len(location) > 1 else None
    if field is None:
        return f"{place}: must be an entry with name, sha256 and scopes"
    if kind == "extra_forbidden":
        return f"{place}: has a field other than {', '.join(_Record.model_fields)}; remove it"
    if kind == "missing":
        return f"{place}, {field}: is required"
    if kind == "value_error":
        return f"{place}, {field}: {message.removeprefix('Value error, ')}"
    return f"{place}, {field}: {_ADVICE.get(field, 'is not valid')}"


def _require_different(field: str, values: Sequence[str]) -> None:
    value, count = Counter(values).most_common(1)[0] if values else ("", 0)
    if count > 1:
        places = [str(i) for i, one in enumerate(values, start=1) if one == value]
        raise KeysInvalid(f"entries {' and '.join(places)} have the same {field}; keep one")


def _parse(content: bytes, kind: str) -> Any:
    try:
        if kind == ".json":
            return orjson.loads(content)
        if kind in (".yaml", ".yml"):
            return load_yaml(content)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" at line {mark.line + 1}" if mark is not None else ""
        raise KeysInvalid(f"is malformed YAML{where}") from None
    except (ValueError, yaml.YAMLError):
        raise KeysInvalid(f"is malformed {kind.lstrip('.').upper()}") from None
    raise KeysInvalid("is neither .json nor .yaml (or .yml); rename it")
