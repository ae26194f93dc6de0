"""Who may do what: keys and their scopes, and without keys the machine that a call comes from."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from structlog.testing import capture_logs

from service.config.settings import Settings
from service.errors import Forbidden, TooManyRequests, Unauthorized
from service.resilience.rate_limit import RateLimiter
from service.security.api_keys import digest_of, new_key
from service.security.auth import (
    FAILURES_BURST,
    Auth,
    Guard,
    address_of,
    require_keys,
)
from service.security.keyring import KeyRing
from service.security.metrics import AuthMetrics, KeyMetrics, Need
from service.telemetry.request_context import context_of
from tests.support.auth import admin_guard, auth_with, request
from tests.support.calling import calling
from tests.support.clock import Clock
from tests.support.service import Serve, Service

KEY = "correct horse battery"
KEYS = {name: new_key() for name in ("backend", "ops", "scraper", "old", "gone", "all")}
_SCOPES = {
    "backend": ["rewrite"], "ops": ["admin"], "scraper": ["metrics"], "old": ["admin"],
    "gone": ["admin"], "all": ["rewrite", "admin", "metrics"],
}  # fmt: skip
_MORE: dict[str, dict[str, Any]] = {
    "old": {"expires": "2020-01-01T00:00:00Z"},
    "gone": {"revoked": True},
    "all": {"expires": "2999-01-01T00:00:00Z"},
}


def write_keys(path: Path, names: Iterator[str] | None = None) -> None:
    entries = [
        {"name": n, "sha256": digest_of(KEYS[n].encode()).hex(), "scopes": _SCOPES[n]}
        | _MORE.get(n, {})
        for n in names or KEYS
    ]
    aside = path.with_suffix(".aside")
    aside.write_text(json.dumps(entries))
    aside.rename(path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    write_keys(path)
    return path


def refusals(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    """Refusals that were counted, by scope and reason."""
    return {
        (sample.labels["scope"], sample.labels["reason"]): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "requery_auth_refusals_total" and sample.value
    }


class TestAdminKey:
    def test_it_opens_from_anywhere_and_the_scheme_has_any_case(self) -> None:
        guard = admin_guard(KEY)
        assert guard.check(request(authorization=f"Bearer {KEY}")) == "admin"
        assert guard.check(request(authorization=f"bearer  {KEY} ")) == "admin"

    def test_it_may_be_of_any_alphabet(self) -> None:
        key = "schlüssel mit ümlaut"
        assert admin_guard(key).check(request(authorization=f"Bearer {key}".encode())) == "admin"

    @pytest.mark.parametrize(
        ("given", "reason"),
        [
            ("", "missing"), ("Bearer", "missing"), ("Bearer ", "missing"), (KEY, "missing"),
            (f"Basic {KEY}", "missing"), (f"Bearer {KEY}x", "unknown"),
            (f"Bearer {KEY[:-1]}", "unknown"), ("Bearer k\u00e9y", "unknown"),
            (f"Bearer Bearer {KEY}", "unknown"), (f"Bearer {'x' * 100_000}", "unknown"),
        ],
    )  # fmt: skip
    def test_anything_else_does_not_not_even_from_the_same_machine(
        self, given: str, reason: str
    ) -> None:
        registry = CollectorRegistry()
        guard = auth_with(KEY, registry=registry).guard("admin")
        with pytest.raises(Unauthorized) as caught:
            guard.check(request("127.0.0.1", authorization=given))
        assert KEY not in str(caught.value)
        assert "Bearer" in caught.value.headers["WWW-Authenticate"]
        assert refusals(registry) == {("admin", reason): 1}

    def test_rewriting_metrics_and_reading_stay_open(self) -> None:
        auth = auth_with(KEY)
        needs: tuple[Need, ...] = ("rewrite", "metrics", "any")
        for need in needs:
            assert auth.guard(need).check(request()) == ""

    def test_a_key_in_the_query_string_or_another_header_is_none(self) -> None:
        asked = request(x_api_key=KEY, cookie=f"key={KEY}")
        asked.scope["query_string"] = f"key={KEY}".encode()
        with pytest.raises(Unauthorized):
            admin_guard(KEY).check(asked)


class TestWithoutKeys:
    @pytest.mark.parametrize("client", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1", None])
    def test_the_same_machine_may(self, client: str | None) -> None:
        assert admin_guard(None).check(request(client)) == "admin"

    @pytest.mark.parametrize(
        "client", ["10.0.0.4", "203.0.113.7", "testclient", "::2", "::ffff:10.0.0.4"]
    )
    def test_no_other_machine_may(self, client: str) -> None:
        registry = CollectorRegistry()
        with pytest.raises(Forbidden, match="REQUERY_ADMIN_KEY"):
            auth_with(registry=registry).guard("admin").check(request(client))
        assert refusals(registry) == {("admin", "remote"): 1}

    @pytest.mark.parametrize("header", ["forwarded", "x_forwarded_for", "x_real_ip"])
    def test_nor_one_behind_a_proxy_of_this_machine(self, header: str) -> None:
        with pytest.raises(Forbidden, match="proxy"):
            admin_guard(None).check(request("127.0.0.1", **{header: "127.0.0.1"}))

    @pytest.mark.parametrize(
        ("host", "origin", "foreign"),
        [
            ("localhost:8000", None, False),
            ("localhost:8000", "http://localhost:8000", False),
            ("localhost:8000", "http://localhost:9000", True),
            ("localhost:8000", "https://evil.example", True),
            ("localhost:8000", "null", True),
            ("localhost:8000", "http://[", True),
            ("[::1]:8000", "http://[::1]:8000", False),
            ("127.0.0.1:8000", None, False),
            ("requery", None, False),
            ("app.localhost", None, False),
            # A name that whoever owns it lets point at this machine.
            ("evil.example:8000", "http://evil.example:8000", True),
            ("evil.example.", None, True),
            ("127.0.0.1.evil.example", None, True),
            ("[evil", None, True),
        ],
    )
    def test_no_page_of_another_origin_may(
        self, host: str, origin: str | None, foreign: bool
    ) -> None:
        registry = CollectorRegistry()
        guard = auth_with(registry=registry).guard("admin")
        headers = {"host": host} | ({} if origin is None else {"origin": origin})
        asked = request("127.0.0.1", **headers)
        if not foreign:
            assert guard.check(asked) == "admin"
            return
        with pytest.raises(Forbidden, match="web page"):
            guard.check(asked)
        assert refusals(registry) == {("admin", "origin"): 1}


class TestScopes:
    @pytest.mark.parametrize(
        ("need", "names"),
        [
            ("rewrite", {"backend", "all"}),
            ("admin", {"ops", "all"}),
            ("metrics", {"scraper", "all"}),
            ("any", {"backend", "ops", "scraper", "all"}),
        ],
    )
    def test_a_key_opens_what_its_scopes_say(self, need: Need, names: set[str], file: Path) -> None:
        registry = CollectorRegistry()
        guard = auth_with(file=file, registry=registry).guard(need)
        reasons = {"old": "expired", "gone": "revoked"}
        expected = dict[tuple[str, str], float]()
        for name, key in KEYS.items():
            asked = request(authorization=f"Bearer {key}")
            if name in names:
                assert guard.check(asked) == name
                continue
            reason = reasons.get(name, "scope")
            expected[need, reason] = expected.get((need, reason), 0) + 1
            with pytest.raises(Forbidden if reason == "scope" else Unauthorized) as caught:
                guard.check(asked)
            assert key not in str(caught.value)
            fields = context_of(asked.scope).fields
            assert (fields["key"], fields["refused"]) == (name, reason)
        assert refusals(registry) == expected

    def test_a_refusal_says_no_more_than_that_a_valid_key_is_needed(self, file: Path) -> None:
        guard = auth_with(file=file).guard("admin")
        said = set()
        for given in ("", f"Bearer {KEYS['old']}", f"Bearer {KEYS['gone']}", "Bearer x"):
            with pytest.raises(Unauthorized) as caught:
                guard.check(request(authorization=given))
            said.add(str(caught.value))
        assert len(said) == 1

    def test_the_same_machine_needs_a_key_too(self, file: Path) -> None:
        needs: tuple[Need, ...] = ("rewrite", "admin", "metrics", "any")
        for need in needs:
            with pytest.raises(Unauthorized):
                auth_with(file=file).guard(need).check(request("127.0.0.1"))

    def test_uses_are_counted_and_refusals_are_no_uses(self, file: Path) -> None:
        used: list[str] = []
        ring = KeyRing(file=file, metrics=KeyMetrics(CollectorRegistry()))
        ring.load()
        auth = Auth(ring, AuthMetrics(CollectorRegistry()), on_use=used.append)
        auth.guard("rewrite").check(request(authorization=f"Bearer {KEYS['all']}"))
        with pytest.raises(Forbidden):
            auth.guard("rewrite").check(request(authorization=f"Bearer {KEYS['ops']}"))
        assert used == ["all"]

    def test_a_key_expires_while_the_service_runs(self, tmp_path: Path) -> None:
        file = tmp_path / "keys.yaml"
        hashed = digest_of(KEYS["ops"].encode()).hex()
        file.write_text(
            f"- {{name: a, sha256: '{hashed}', scopes: [admin], expires: 2030-01-31T12:00:00Z}}"
        )
        now = [1896091199.0]
        ring = KeyRing(file=file, metrics=KeyMetrics(CollectorRegistry()))
        ring.load()
        auth = Auth(ring, AuthMetrics(CollectorRegistry()), clock=lambda: now[0])
        asked = {"authorization": f"Bearer {KEYS['ops']}"}
        assert auth.guard("admin").check(request(**asked)) == "a"
        now[0] += 1
        with pytest.raises(Unauthorized):
            auth.guard("admin").check(request(**asked))


@pytest.mark.parametrize(
    ("author", "known_as"),
    [("ada@shop", "ada@shop"), ("  ada ", "ada"), ("a\x00b", ""), ("x" * 65, ""), ("a/b", "")],
)
def test_an_author_is_named_after_the_key_if_the_name_is_sane(
    author: str, known_as: str, file: Path
) -> None:
    local = request("127.0.0.1", x_requery_author=author)
    assert admin_guard(None).check(local) == (known_as or "admin")
    with_key = request(authorization=f"Bearer {KEYS['ops']}", x_requery_author=author)
    guard = auth_with(file=file).guard("admin")
    assert guard.check(with_key) == ("ops/" + known_as if known_as else "ops")


def test_an_author_is_short_enough_to_be_stored_with_an_override(file: Path) -> None:
    asked = request(authorization=f"Bearer {KEYS['ops']}", x_requery_author="x" * 64)
    assert len(auth_with(file=file).guard("admin").check(asked)) == 64


class TestGuessing:
    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def guard(self, file: Path, clock: Clock) -> Guard:
        return self.auth(file, clock).guard("admin")

    @staticmethod
    def auth(file: Path, clock: Clock) -> Auth:
        ring = KeyRing(file=file, metrics=KeyMetrics(CollectorRegistry()))
        ring.load()
        failures = RateLimiter(per_s=10, burst=20, clock=clock)
        return Auth(ring, AuthMetrics(CollectorRegistry()), failures=failures)

    @staticmethod
    def guess(guard: Guard, client: str = "203.0.113.7", key: str = "guess") -> float:
        """Seconds to wait after a try; 0 if it was looked at."""
        try:
            guard.check(request(client, authorization=f"Bearer {key}"))
        except TooManyRequests as refused:
            return float(refused.headers["Retry-After"])
        except Unauthorized:
            pass
        return 0

    def test_an_address_may_try_so_many_keys(self, guard: Guard, clock: Clock) -> None:
        assert [self.guess(guard) for _ in range(21)] == [0] * 20 + [1]
        assert self.guess(guard, client="203.0.113.8") == 0
        clock.now += 0.1
        assert [self.guess(guard) for _ in range(2)] == [0, 1]

    def test_once_limited_the_right_admin_key_is_answered_like_a_wrong_one(
        self, guard: Guard, clock: Clock
    ) -> None:
        while not self.guess(guard):
            pass
        assert self.guess(guard, key=KEYS["ops"]) == 1
        assert self.guess(guard, client="203.0.113.8", key=KEYS["ops"]) == 0
        clock.now += 1
        assert self.guess(guard, key=KEYS["ops"]) == 0

    def test_rewriting_goes_on_for_others_behind_the_same_address(
        self, file: Path, clock: Clock
    ) -> None:
        auth = self.auth(file, clock)
        while not self.guess(auth.guard("admin")):
            pass
        asked = request(authorization=f"Bearer {KEYS['backend']}")
        assert auth.guard("rewrite").check(asked) == "backend"

    def test_a_call_without_a_key_is_no_guess(self, guard: Guard) -> None:
        for _ in range(FAILURES_BURST + 1):
            with pytest.raises(Unauthorized):
                guard.check(request())
        assert self.guess(guard) == 0


@pytest.mark.parametrize(
    ("client", "address"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("testclient", "testclient"),
        (None, "unix"),
    ],
)
def test_all_addresses_of_one_caller_count_as_one(client: str | None, address: str) -> None:
    assert address_of(request(client).scope) == address


class TestBinding:
    @pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
    def test_loopback_needs_no_keys(self, host: str) -> None:
        require_keys(Settings(host=host))

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.1.2.3", "::ffff:10.1.2.3"])
    def test_any_other_address_does(self, host: str, file: Path) -> None:
        settings = Settings(host=host)
        with pytest.raises(ValueError, match="REQUERY_API_KEYS_FILE") as caught:
            require_keys(settings)
        assert "\n" not in str(caught.value)
        require_keys(settings.model_copy(update={"admin_key": SecretStr(KEY)}))
        require_keys(settings.model_copy(update={"api_keys_file": file}))

    def test_unless_it_is_said_in_words_which_the_log_repeats(self) -> None:
        with capture_logs() as logs:
            require_keys(Settings(host="0.0.0.0", serve_without_keys="to-anyone"))
        assert [(line["event"], line["log_level"]) for line in logs] == [
            ("serving_without_keys", "warning")
        ]

    def test_a_name_that_is_none_is_left_to_whoever_listens(self) -> None:
        require_keys(Settings(host="no-such-host.invalid"))


# The whole application: each route of the OpenAPI document, so that no new one is forgotten.

OPEN = {"/livez", "/readyz"}
REWRITING = {"/rewrite", "/rewrite/batch", "/relevance"}
READING = {"/versions", "/versions/{name}", "/routing"}
BODIES: dict[str, Any] = {"/relevance": {"pairs": [{"query": "a", "rewrite": "b"}]}}


def need_of(method: str, path: str) -> Need | None:
    """What a route must need; one that this test has never heard of needs ``admin``."""
    if path in REWRITING:
        return "rewrite"
    if method == "get":
        if path in OPEN:
            return None
        if path in READING:
            return "any"
        if path == "/metrics":
            return "metrics"
    return "admin"


async def routes(service: Service) -> list[tuple[str, str, Need | None]]:
    document = (await service.client.get("/openapi.json")).json()
    found = [
        (method, prefix + path, need_of(method, path))
        for path, operations in document["paths"].items()
        for method in operations
        for prefix in ("", "/v1")
    ]
    assert {"/overrides/{id}", "/routing/kill", "/audit", "/cache/purge"} <= {
        p for _, p, _ in found
    }
    return found


def address(number: int) -> str:
    """One of its own for each request, so that no limit on guesses comes into it."""
    return f"10.0.{number >> 8}.{number & 255}"


def path_of(template: str) -> str:
    return template.replace("{name}", "test-1").replace("{id}", "x")


async def samples(service: Service, key: str) -> dict[tuple[str, str], float]:
    from prometheus_client.parser import text_string_to_metric_families

    response = await service.client.get("/metrics", headers={"authorization": f"Bearer {key}"})
    return {
        (sample.labels["scope"], sample.labels["reason"]): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
        if sample.name == "requery_auth_refusals_total" and sample.value
    }


REFUSED = {
    "no key": (None, 401, "missing"),
    "a wrong key": (new_key(), 401, "unknown"),
    "an expired key": (KEYS["old"], 401, "expired"),
    "a revoked key": (KEYS["gone"], 401, "revoked"),
    "a key for rewriting": (KEYS["backend"], 403, "scope"),
    "a key for metrics": (KEYS["scraper"], 403, "scope"),
}


@pytest.mark.parametrize(("key", "status", "reason"), REFUSED.values(), ids=REFUSED.keys())
async def test_every_route_that_changes_state_refuses(
    serve: Serve, file: Path, key: str | None, status: int, reason: str
) -> None:
    service = await serve(api_keys_file=file)
    guarded = [(m, p) for m, p, need in await routes(service) if need == "admin"]
    assert len(guarded) >= 13
    for number, (method, path) in enumerate(guarded):
        async with calling(service.app, address(number), key) as client:
            response = await client.request(
                method, path_of(path), json={"query": "a"}, headers={"if-match": "*"}
            )
        assert response.status_code == status, (method, path, response.text)
        assert response.headers["content-type"] == "application/problem+json"
        assert key is None or key not in response.text
    assert await samples(service, KEYS["all"]) == {("admin", reason): len(guarded)}
    async with calling(service.app, address(999), KEYS["ops"]) as ops:
        entries = (await ops.get("/audit")).json()["entries"]
        assert not [entry for entry in entries if entry["author"] in KEYS]


async def test_every_other_route_needs_its_scope_too(serve: Serve, file: Path) -> None:
    service = await serve(api_keys_file=file)
    opens = {"rewrite": "backend", "metrics": "scraper", "any": "backend"}
    for number, (method, path, need) in enumerate(await routes(service)):
        if need == "admin":
            continue
        async with calling(service.app, address(number), None) as client:
            body = BODIES.get(path, {"query": "a"})
            refused = await client.request(method, path, json=body)
            if need is None:
                assert refused.status_code == 200
                continue
            assert refused.status_code == 401, path
            for name, key in KEYS.items():
                headers = {"authorization": f"Bearer {key}"}
                response = await client.request(method, path, json=body, headers=headers)
                if name in ("old", "gone"):
                    assert response.status_code == 401
                elif name in (opens[need], "all") or need == "any":
                    assert response.status_code not in (401, 403), (path, name)
                else:
                    assert response.status_code == 403, (path, name)


async def test_documents_about_the_api_are_open(serve: Serve, file: Path) -> None:
    service = await serve(api_keys_file=file)
    for path in ("/openapi.json", "/docs"):
        assert (await service.client.get(path)).status_code == 200
    document = (await service.client.get("/openapi.json")).json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"


async def test_keys_change_while_the_service_runs(serve: Serve, file: Path) -> None:
    service = await serve(api_keys_file=file)

    async def status(name: str) -> int:
        headers = {"authorization": f"Bearer {KEYS[name]}"}
        return (await service.client.get("/audit", headers=headers)).status_code

    assert await status("ops") == 200
    write_keys(file, iter(["all"]))
    while await status("ops") == 200:  # noqa: ASYNC110 - the file is looked at by the clock
        await asyncio.sleep(0.01)
    assert (await status("ops"), await status("all")) == (401, 200)


async def test_who_changed_what_is_known_by_the_key(serve: Serve, file: Path) -> None:
    service = await serve(api_keys_file=file)
    headers = {"authorization": f"Bearer {KEYS['ops']}", "x-requery-author": "ada"}
    response = await service.client.post("/cache/purge", json={"query": "a"}, headers=headers)
    assert response.status_code == 200
    entries = (await service.client.get("/audit", headers=headers)).json()["entries"]
    assert entries[0]["author"] == "ops/ada"


async def test_the_access_line_names_the_key_and_why_it_was_refused(
    serve: Serve, file: Path
) -> None:
    service = await serve(api_keys_file=file)
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        for name in ("backend", "gone"):
            await service.client.post(
                "/rewrite",
                json={"query": "a"},
                headers={"authorization": f"Bearer {KEYS[name]}"},
            )
    lines = [line for line in logs if line["event"] == "request"]
    assert [(line["key"], line.get("refused"), line.get("client")) for line in lines] == [
        ("backend", None, None), ("gone", "revoked", "127.0.0.1"),
    ]  # fmt: skip
