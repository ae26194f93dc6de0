"""Requests out of an OpenAPI document: a valid one for each operation, and every place in it.

New routes are covered by themselves; one whose valid request cannot be told from the document
alone (a name that has to exist, say) needs a line in the names that :class:`Operation` is given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import orjson

from tests.contract.wire import JSON, Sent

Pointer = tuple[str | int, ...]
Json = Any

_METHODS = ("get", "post", "put", "patch", "delete")
_HOLE = "a7f3-the-hole-0c1d"
"""Stands where raw bytes go once a body is written."""


@dataclass(frozen=True)
class Place:
    """Somewhere in a valid request that anything may be put into."""

    where: str
    """``body queries.0.query``, ``path id``, ``query wait``, ``header If-Match``, ``key ...``."""
    text: Callable[[str], Sent]
    """The request with a string there."""
    raw: Callable[[bytes], Sent] | None = None
    """The request with any bytes there instead of a JSON value."""


class Operation:
    """One method of one path.

    Args:
        method: lower case, as in the document.
        path: with ``{names}``.
        item: the operation object.
        document: the whole document, for its references.
        names: valid values by the name of a property or parameter, where the document cannot say.
    """

    def __init__(
        self,
        method: str,
        path: str,
        item: Mapping[str, Any],
        document: Mapping[str, Any],
        names: Mapping[str, Json],
    ) -> None:
        self.method = method.upper()
        self.path = path
        self.item = item
        self._document = document
        self._names = names
        self._pattern = re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path)), re.DOTALL)

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def has_body(self) -> bool:
        """Whether it takes one."""
        return "requestBody" in self.item

    def answers(self, path: str) -> bool:
        """Whether a decoded path is one of this operation."""
        return self._pattern.fullmatch(path) is not None

    def valid(self) -> list[Sent]:
        """Requests that should succeed, together with every alternative of the body."""
        return [self._request(body=body) for body in self._bodies()]

    def places(self) -> Iterator[Place]:
        """Every place of the requests of :meth:`valid`."""
        for number, body in enumerate(self._bodies()):
            for pointer in pointers(body):
                yield self._body_place(body, pointer, number)
            for pointer in _objects(body):
                yield self._key_place(body, pointer, number)
        for one in self.parameters():
            yield self._parameter_place(one["in"], one["name"])

    def parameters(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Parameter objects, of one kind or of all."""
        listed = [self._resolved(one) for one in self.item.get("parameters", ())]
        return [one for one in listed if kind is None or one["in"] == kind]

    def with_header(self, name: bytes, value: bytes) -> Sent:
        """A valid request with one more header, first among all."""
        sent = self.valid()[0]
        kept = tuple(h for h in sent.headers if h[0] != name)
        return Sent(sent.method, sent.target, ((name, value), *kept), sent.body)

    def with_body(self, body: bytes, content_type: bytes | None = JSON[1]) -> Sent:
        """A valid request with another body."""
        sent = self.valid()[0]
        headers = tuple(h for h in sent.headers if h[0] != b"content-type")
        if content_type is not None:
            headers = (*headers, (b"content-type", content_type))
        return Sent(sent.method, sent.target, headers, body)

    def _bodies(self) -> list[Json]:
        if not self.has_body:
            return [None]
        content = self.item["requestBody"]["content"]["application/json"]
        return list(self._samples(content["schema"], ""))

    def _request(
        self, *, body: Json = None, raw: bytes | None = None, given: Mapping[str, str] | None = None
    ) -> Sent:
        """A request; ``given`` replaces parameters, by ``kind name``."""
        values = {
            f"{one['in']} {one['name']}": _shown(next(self._samples(one["schema"], one["name"])))
            for one in self.parameters()
        } | dict(given or {})
        path = re.sub(
            r"\{(\w+)\}", lambda m: _quoted(values.get(f"path {m[1]}", "undocumented")), self.path
        )
        query = "&".join(
            f"{_quoted(name)}={_quoted(value)}"
            for (kind, _, name), value in ((k.partition(" "), v) for k, v in values.items())
            if kind == "query"
        )
        headers = [
            (key.removeprefix("header ").lower().encode(), _bytes(value))
            for key, value in values.items()
            if key.startswith("header ")
        ]
        if self.has_body:
            headers.append(JSON)
            raw = orjson.dumps(body) if raw is None else raw
        return Sent(
            self.method,
            (path + (f"?{query}" if query else "")).encode(),
            tuple(headers),
            raw or b"",
        )

    def _body_place(self, body: Json, pointer: Pointer, number: int) -> Place:
        before, after = orjson.dumps(replaced(body, pointer, _HOLE)).split(f'"{_HOLE}"'.encode())

        def raw(value: bytes) -> Sent:
            return self._request(raw=before + value + after)

        where = ".".join(map(str, pointer))
        return Place(f"body {number} {where}", lambda text: raw(_json_text(text)), raw)

    def _key_place(self, body: Json, pointer: Pointer, number: int) -> Place:
        found = _at(body, pointer)
        text = orjson.dumps(replaced(body, pointer, {**found, _HOLE: _HOLE}))
        before, after = text.split(f'"{_HOLE}":"{_HOLE}"'.encode())
        where = ".".join(map(str, pointer))
        return Place(
            f"key {number} {where}",
            lambda key: self._request(raw=before + _json_text(key) + b":1" + after),
        )

    def _parameter_place(self, kind: str, name: str) -> Place:
        key = f"{kind} {name}"
        body = self._bodies()[0]
        return Place(key, lambda text: self._request(body=body, given={key: text}))

    def _known(self, name: str) -> Json:
        return self._names.get(f"{self} {name}", self._names.get(name))

    def _resolved(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        while "$ref" in schema:
            found: Any = self._document
            for part in schema["$ref"].removeprefix("#/").split("/"):
                found = found[part]
            schema = found
        return dict(schema)

    def _samples(self, schema: Mapping[str, Any], name: str) -> Iterator[Json]:
        """Valid values, one for each alternative that the schema has anywhere."""
        schema = self._resolved(schema)
        if (known := self._known(name)) is not None:
            yield known
        elif branches := schema.get("oneOf") or schema.get("anyOf"):
            for branch in branches:
                if self._resolved(branch).get("type") != "null":
                    yield from self._samples(branch, name)
        elif schema.get("type") == "object":
            yield from self._objects(schema)
        elif schema.get("type") == "array":
            for item in self._samples(schema["items"], name):
                yield [item]
        else:
            yield _scalar(schema)

    def _objects(self, schema: Mapping[str, Any]) -> Iterator[Json]:
        alternatives = {
            key: list(self._samples(one, key)) for key, one in schema.get("properties", {}).items()
        }
        for key, values in alternatives.items():
            if not values:
                raise ValueError(f"{self}: no sample for {key}")
        base = {key: values[0] for key, values in alternatives.items()}
        yield base
        for key, values in alternatives.items():
            for other in values[1:]:
                yield {**base, key: other}


def operations(document: Mapping[str, Any], names: Mapping[str, Json]) -> list[Operation]:
    """All operations of an OpenAPI document."""
    return [
        Operation(method, path, item[method], document, names)
        for path, item in document["paths"].items()
        for method in _METHODS
        if method in item
    ]


def _scalar(schema: Mapping[str, Any]) -> Json:
    """A valid value that is no list and no object."""
    if "const" in schema:
        return schema["const"]
    if listed := schema.get("enum") or schema.get("examples"):
        return listed[0]
    if schema.get("type") == "boolean":
        return True
    if schema.get("type") in ("integer", "number"):
        return schema.get("maximum", 1)
    return "2099-01-31T18:00:00Z" if schema.get("format") == "date-time" else "steele stake"


def _json_text(text: str) -> bytes:
    # The standard library writes lone surrogates as escapes; orjson refuses them.
    import json

    return json.dumps(text).encode()


def _shown(value: Json) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _quoted(text: str) -> str:
    return quote(_bytes(text), safe="")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def pointers(value: Json, at: Pointer = ()) -> Iterator[Pointer]:
    """Of every value inside ``value``, leaves and containers."""
    inner: Sequence[tuple[str | int, Json]] = ()
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    for key, one in inner:
        yield (*at, key)
        yield from pointers(one, (*at, key))


def _objects(value: Json) -> Iterator[Pointer]:
    """Of every object in ``value``, itself included."""
    for pointer in [(), *pointers(value)]:
        if isinstance(_at(value, pointer), dict):
            yield pointer


def _at(value: Json, pointer: Pointer) -> Json:
    for key in pointer:
        value = value[key]
    return value


def replaced(value: Json, pointer: Pointer, new: Json) -> Json:
    """A copy of ``value`` with ``new`` at a place in it."""
    if not pointer:
        return new
    key, *rest = pointer
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[key] = replaced(value[key], tuple(rest), new)
    return copy
