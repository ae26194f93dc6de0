"""Parses Redis URLs: one server, a socket, Sentinel or Cluster, with or without TLS."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

_ADVICE = (
    "write redis://host:port/db, unix:///path/to/socket?db=0, "
    "redis+sentinel://host:port,host:port/service/db or redis+cluster://host:port,host:port, "
    "each with 'user:password@' before the hosts if there is one, and rediss instead of redis "
    "for TLS; percent-encode signs like / @ : # ? % in names and passwords"
)
_PORTS = {"single": 6379, "cluster": 6379, "sentinel": 26379}
_TLS_OPTIONS = {
    "ssl_ca_certs",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_cert_reqs",
    "ssl_check_hostname",
    "ssl_ciphers",
}
_OPTIONS = {"client_name", "db", "username", "password"}
_SENTINEL_OPTIONS = {"sentinel_username", "sentinel_password"}
_CHOICES: dict[str, dict[str, Any]] = {
    "ssl_cert_reqs": {"none": "none", "optional": "optional", "required": "required"},
    "ssl_check_hostname": {"true": True, "yes": True, "1": True, "false": False, "no": False,
                           "0": False},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed Redis URL."""

    kind: str
    """``single``, ``unix``, ``sentinel`` or ``cluster``."""
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    """Of the socket, for ``unix``."""
    service: str = ""
    """Name of the master, for ``sentinel``."""
    tls: bool = False
    db: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    """Options of each connection to Redis."""
    sentinel_options: dict[str, Any] = field(default_factory=dict)
    """Options of each connection to a sentinel."""


def parse(url: str) -> Target:
    """Read a Redis URL.

    Raises:
        ValueError: it is malformed; the message says how to write it.
    """
    kind, tls, parts = _scheme(url)
    userinfo, _, netloc = parts.netloc.rpartition("@")
    options = _login(userinfo) | _options(parts.query, kind, tls=tls)
    db = options.pop("db", "")
    if kind == "unix":
        if not parts.path or netloc:
            raise _malformed("a unix socket is a path, so three slashes follow 'unix:'")
        return Target(kind, path=unquote(parts.path), db=_db(db), options=options)
    sentinel_options = {
        name.removeprefix("sentinel_"): options.pop(name)
        for name in _SENTINEL_OPTIONS & options.keys()
    }
    if kind == "sentinel":
        sentinel_options |= {n: value for n, value in options.items() if n in _TLS_OPTIONS}
    service, path = _path(parts.path, kind)
    return Target(
        kind, _hosts(netloc, kind), service=service, tls=tls, db=_db(db or path),
        options=options, sentinel_options=sentinel_options,
    )  # fmt: skip


def _scheme(url: str) -> tuple[str, bool, SplitResult]:
    """The kind of Redis, whether with TLS, and the parts of the URL."""
    try:
        parts = urlsplit(url)
    except ValueError:
        # Not "from" it: Python's message repeats the address with its password.
        raise _malformed(
            "its brackets do not match: an IPv6 address is written [address]:port"
        ) from None
    if "#" in url:
        raise _malformed("it has a '#'")
    if parts.scheme == "unix":
        return "unix", False, parts
    prefix, _, kind = parts.scheme.partition("+")
    if prefix not in ("redis", "rediss") or kind not in ("", "sentinel", "cluster"):
        raise _malformed("its scheme is not a known one")
    return kind or "single", prefix == "rediss", parts


def _login(userinfo: str) -> dict[str, Any]:
    user, _, password = userinfo.partition(":")
    login = {"username": unquote(user), "password": unquote(password)}
    return {name: value for name, value in login.items() if value}


def _path(path: str, kind: str) -> tuple[str, str]:
    """The sentinels' name of the master, and the database; empty where missing."""
    segments = [unquote(one) for one in path.split("/") if one]
    service = ""
    if kind == "sentinel":
        if not segments:
            raise _malformed("the name of the master, as the sentinels know it, is missing")
        service = segments.pop(0)
    if len(segments) > 1:
        raise _malformed("its path has too many parts")
    db = segments[0] if segments else ""
    if kind == "cluster" and db not in ("", "0"):
        raise _malformed("a cluster has no databases")
    return service, db


def _malformed(why: str) -> ValueError:
    # Nothing of the URL is repeated: a password that is not escaped may be in any part of it.
    return ValueError(f"the Redis URL is malformed: {why}; {_ADVICE}")


def _hosts(netloc: str, kind: str) -> tuple[tuple[str, int], ...]:
    hosts = tuple(_host(one, kind) for one in netloc.split(","))
    if kind == "single" and len(hosts) > 1:
        raise _malformed("several hosts need redis+sentinel:// or redis+cluster://")
    return hosts


def _host(text: str, kind: str) -> tuple[str, int]:
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise _malformed("an IPv6 address is written [address]:port")
        port = port.removeprefix(":")
    else:
        host, _, port = text.partition(":")
    if not host:
        raise _malformed("it names no host")
    if not port:
        return unquote(host), _PORTS[kind]
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise _malformed("a port is a number from 1 to 65535")
    return unquote(host), int(port)


def _db(text: str) -> int:
    if not (text.isascii() and text.isdigit()) and text:
        raise _malformed("a database is a number")
    return int(text or 0)


def _options(query: str, kind: str, *, tls: bool) -> dict[str, Any]:
    """The options of the query string, with their values checked and typed."""
    known = _OPTIONS - ({"db"} if kind == "cluster" else set())
    if tls:
        known |= _TLS_OPTIONS
    if kind == "sentinel":
        known |= _SENTINEL_OPTIONS
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise _malformed("its options are not written name=value") from error
    options: dict[str, Any] = {}
    for name, value in pairs:
        if name in _TLS_OPTIONS and not tls:
            raise _malformed(f"{name} needs a scheme with TLS, rediss instead of redis")
        if name not in known:
            raise _malformed(f"an option is none of {', '.join(sorted(known))}")
        choices = _CHOICES.get(name)
        if choices is None:
            options[name] = value
        elif value.lower() in choices:
            options[name] = choices[value.lower()]
        else:
            raise _malformed(f"{name} is one of {', '.join(choices)}")
    return options
