"""Who may change what the service does."""

from __future__ import annotations

import pytest
from pydantic import SecretStr
from starlette.requests import Request

from service.api.admin import AdminGuard
from service.errors import Forbidden, Unauthorized

KEY = "correct horse battery"


def request(client: str | None = "203.0.113.7", **headers: str) -> Request:
    raw = [(k.replace("_", "-").encode(), v.encode("latin-1")) for k, v in headers.items()]
    where = (client, 1234) if client else None
    return Request({"type": "http", "headers": raw, "client": where})


def test_the_key_opens_from_anywhere_and_the_scheme_has_any_case() -> None:
    guard = AdminGuard(SecretStr(KEY))
    assert guard.check(request(authorization=f"Bearer {KEY}")) == "admin"
    assert guard.check(request(authorization=f"bearer  {KEY} ")) == "admin"


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer ", f"Basic {KEY}", f"Bearer {KEY}x", KEY, "Bearer k\u00e9y"]
)
def test_anything_else_does_not_not_even_from_the_same_machine(given: str) -> None:
    guard = AdminGuard(SecretStr(KEY))
    with pytest.raises(Unauthorized) as caught:
        guard.check(request("127.0.0.1", authorization=given))
    assert KEY not in str(caught.value)
    assert "Bearer" in caught.value.headers["WWW-Authenticate"]


@pytest.mark.parametrize("client", ["127.0.0.1", "127.8.9.1", "::1", None])
def test_without_a_key_the_same_machine_may(client: str | None) -> None:
    assert AdminGuard(None).check(request(client)) == "admin"


@pytest.mark.parametrize("client", ["10.0.0.4", "203.0.113.7", "testclient", "::2"])
def test_without_a_key_no_other_machine_may(client: str) -> None:
    with pytest.raises(Forbidden, match="REQUERY_ADMIN_KEY"):
        AdminGuard(None).check(request(client))


@pytest.mark.parametrize(
    ("origin", "foreign"),
    [
        ("http://localhost:8000", False),
        ("http://localhost:9000", True),
        ("https://evil.example", True),
        ("null", True),
    ],
)
def test_without_a_key_no_page_of_another_origin_may(origin: str, foreign: bool) -> None:
    asked = request("127.0.0.1", host="localhost:8000", origin=origin)
    if foreign:
        with pytest.raises(Forbidden, match="web page"):
            AdminGuard(None).check(asked)
    else:
        assert AdminGuard(None).check(asked) == "admin"


@pytest.mark.parametrize(
    ("author", "known_as"),
    [("ada@shop", "ada@shop"), ("  ada ", "ada"), ("a\x00b", "admin"), ("x" * 65, "admin")],
)
def test_an_author_is_named_if_the_name_is_sane(author: str, known_as: str) -> None:
    guard = AdminGuard(None)
    assert guard.check(request("127.0.0.1", x_requery_author=author)) == known_as
