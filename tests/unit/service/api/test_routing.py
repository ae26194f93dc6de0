"""``/routing``, the kill switch and ``/audit``, in a document store of this process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import pytest
import structlog
from prometheus_client import CollectorRegistry

from service.api.operator_schemas import AuditResponse, RoutingResponse
from service.api.routing import ControlApi
from service.api.schemas import Problem
from service.control.documents import Document
from service.control.metrics import ControlMetrics
from service.control.store import LocalDocumentStore, Stored
from service.errors import DocumentStoreUnavailable, UnknownVersion
from service.routing.document import Kill, Routing
from service.routing.router import Router
from tests.support.auth import admin_guard, open_guard
from tests.support.calling import calling, mounted

KEY = "0123456789abcdef"
KILL = {"version": None, "reason": "fire"}
PLAN = {"default": "sft-1", "weights": {"sft-1": 0.5, "grpo-1": 0.5}, "salt": "exp-1"}


class Known:
    """Versions as routing sees them."""

    def __init__(self) -> None:
        self.known = {"sft-1", "grpo-1", "grpo-2"}
        self.ready = {"sft-1", "grpo-1"}

    def get(self, name: str) -> object:
        if name not in self.known:
            raise UnknownVersion(f"version {name!a} is not known here")
        return name

    def ready_names(self) -> set[str]:
        return self.ready


class SharedStore(LocalDocumentStore):
    """Can be down or hang, and can be changed by others."""

    down = False
    hangs = False

    async def read(self, name: str) -> Stored | None:
        if self.down:
            raise DocumentStoreUnavailable("Redis does not answer")
        return await super().read(name)

    async def write(self, *args: Any, **kwargs: Any) -> Stored:
        if self.down:
            raise DocumentStoreUnavailable("Redis does not answer")
        return await super().write(*args, **kwargs)

    async def note(self, entry: Mapping[str, Any]) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        if self.down:
            raise DocumentStoreUnavailable("Redis does not answer")
        await super().note(entry)

    async def notes(self, limit: int) -> list[dict[str, Any]]:
        if self.down:
            raise DocumentStoreUnavailable("Redis does not answer")
        return await super().notes(limit)

    def elsewhere(self, stored: Stored, *, notify: bool = False) -> None:
        """Another replica has written ``stored``."""
        self._documents["routing"] = stored
        if notify:
            self._subscribers.notify("routing", stored)


class Api:
    """The routes in an application of their own."""

    def __init__(self) -> None:
        self.document_store, self.versions = SharedStore(), Known()
        self.registry = CollectorRegistry()
        metrics = ControlMetrics(self.registry)
        self.routing = Document(
            self.document_store,
            "routing",
            schema=1,
            parse=Routing.parse,
            initial=Routing(default="sft-1", weights={}, salt="requery"),
            dump=Routing.dump,
            metrics=metrics,
        )
        self.router = Router(self.routing)
        metrics.watch_local_kill(lambda: self.router.local_kill is not None)
        self.app = mounted(
            ControlApi(
                routing=self.routing,
                versions=self.versions,
                document_store=self.document_store,
                guard=admin_guard(KEY),
                reader=open_guard(),
                assigner=self.router,
            ).router()
        )
        self.client: httpx.AsyncClient

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        match: str | None = None,
        key: str | None = KEY,
    ) -> httpx.Response:
        headers = {"x-requery-author": "ada"}
        if match is not None:
            headers["if-match"] = match
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        return await self.client.request(
            method, path, headers=headers, json=body if body is not None else None
        )

    async def put(self, match: str | None = "*", **fields: Any) -> httpx.Response:
        return await self.call("PUT", "/routing", PLAN | fields, match=match)


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    api = Api()
    async with calling(api.app) as api.client:
        yield api


def refusal(response: httpx.Response, status: int, slug: str) -> Problem:
    assert response.status_code == status, response.text
    found = Problem.model_validate_json(response.content)
    assert found.type == f"urn:requery:problem:{slug}"
    return found


async def test_what_was_never_written_is_the_default_at_revision_zero(api: Api) -> None:
    response = await api.call("GET", "/routing", key=None)
    assert response.headers["etag"] == '"0"'
    found = RoutingResponse.model_validate_json(response.content)
    assert (found.default, found.weights, found.revision) == ("sft-1", {}, 0)
    assert found.persistence == "process"
    assert set(response.json()) == set(RoutingResponse.model_fields)


async def test_a_plan_is_in_force_once_it_is_put(api: Api) -> None:
    response = await api.put('"0"', shadow={"version": "grpo-1", "share": 0.1})
    assert response.status_code == 200
    assert response.headers["etag"] == '"1"'
    assert response.json()["weights"] == PLAN["weights"]
    assert response.json() == (await api.call("GET", "/routing")).json()
    found = api.router.assign(pin=None, unit_id="u-1")
    assert (found.why, found.salt) == ("unit", "exp-1")


async def test_a_plan_needs_to_say_what_it_was_made_from(api: Api) -> None:
    refusal(await api.put(None), 428, "precondition-required")
    assert api.routing.revision == 0


@pytest.mark.parametrize("match", ["7", 'W/"1"', '"x"', '"1", "2"'])
async def test_an_if_match_that_is_no_revision_is_refused(api: Api, match: str) -> None:
    problem = refusal(await api.put(match), 422, "invalid-request")
    assert problem.errors is not None
    assert problem.errors[0].field == "header If-Match"


async def test_a_plan_made_from_an_older_one_is_refused_and_the_older_one_stays(api: Api) -> None:
    await api.put('"0"')
    response = await api.put('"0"', default="grpo-1")
    problem = refusal(response, 412, "precondition-failed")
    assert "revision 1" in problem.detail
    assert response.headers["etag"] == '"1"'
    assert api.routing.value.default == "sft-1"
    assert (await api.put('"1"', default="grpo-1")).status_code == 200


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"weights": {"sft-1": 0.5, "grpo-1": 0.4}}, "weights"),
        ({"weights": {"sft-1": -1.0, "grpo-1": 2.0}}, "weights.sft-1"),
        ({"default": "nosuch"}, "default"),
        ({"weights": {"nosuch": 1.0}}, "weights.nosuch"),
        ({"weights": {"sft-1": 1.0, "nosuch": 0.0}}, "weights.nosuch"),
        ({"shadow": {"version": "nosuch", "share": 0.1}}, "shadow.version"),
        ({"shadow": {"version": "sft-1", "share": 2}}, "shadow.share"),
        ({"salt": ""}, "salt"),
        ({"kill": None}, "kill"),
        ({"revision": 1}, "revision"),
    ],
)
async def test_a_plan_that_makes_no_sense_is_refused_by_field(
    api: Api, fields: dict[str, Any], where: str
) -> None:
    await api.put()
    problem = refusal(await api.put(**fields), 422, "invalid-request")
    assert problem.errors is not None
    assert [error.field for error in problem.errors][:1] == [where]
    assert api.routing.revision == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"default": "grpo-2"},
        {"weights": {"sft-1": 0.9, "grpo-2": 0.1}},
        {"shadow": {"version": "grpo-2", "share": 0.1}},
    ],
)
async def test_requests_are_sent_only_to_versions_that_are_ready(
    api: Api, fields: dict[str, Any]
) -> None:
    problem = refusal(await api.put(**fields), 409, "version-not-loaded")
    assert "POST /versions/grpo-2/load" in problem.detail
    assert api.routing.revision == 0


async def test_a_version_without_a_share_need_not_be_ready(api: Api) -> None:
    weights = {"sft-1": 1.0, "grpo-2": 0.0}
    assert (await api.put(weights=weights)).status_code == 200


async def test_a_version_that_died_keeps_nobody_from_changing_the_rest(api: Api) -> None:
    await api.put()
    api.versions.ready.remove("grpo-1")
    less = {"sft-1": 0.9, "grpo-1": 0.1}
    more = {"sft-1": 0.8, "grpo-1": 0.2}
    assert (await api.put(weights=less)).status_code == 200
    refusal(await api.put(weights=more), 409, "version-not-loaded")


async def test_the_kill_switch_needs_no_revision_and_survives_a_new_plan(api: Api) -> None:
    await api.put()
    body = {"version": None, "reason": "bad rewrites"}
    response = await api.call("PUT", "/routing/kill", body)
    assert (response.status_code, response.json()["kill"]) == (200, body)
    assert api.router.assign(pin="sft-1", unit_id="u").off
    assert (await api.put(salt="exp-2")).json()["kill"] == body
    response = await api.call("DELETE", "/routing/kill")
    assert (response.status_code, response.json()["kill"]) == (200, None)
    assert not api.router.assign(pin="sft-1", unit_id="u").off


async def test_ending_an_emergency_that_there_is_not_changes_nothing(api: Api) -> None:
    response = await api.call("DELETE", "/routing/kill")
    assert (response.status_code, response.headers["etag"]) == (200, '"0"')


@pytest.mark.parametrize(
    ("body", "status", "slug"),
    [
        ({"version": "nosuch", "reason": "x"}, 422, "invalid-request"),
        ({"version": "grpo-2", "reason": "x"}, 409, "version-not-loaded"),
        ({"version": "sft-1"}, 422, "invalid-request"),
        ({"reason": "x"}, 422, "invalid-request"),
        ({"version": "sft-1", "reason": ""}, 422, "invalid-request"),
    ],
)
@pytest.mark.parametrize("path", ["/routing/kill", "/routing/kill/local"])
async def test_a_kill_switch_that_makes_no_sense_is_refused(
    api: Api, body: dict[str, Any], status: int, slug: str, path: str
) -> None:
    refusal(await api.call("PUT", path, body), status, slug)
    assert api.routing.value.kill is None
    assert api.router.local_kill is None


async def test_a_newer_document_is_not_overwritten_and_the_last_good_one_serves(api: Api) -> None:
    await api.put()
    api.document_store.elsewhere(Stored(2, 2, {"regions": {}}), notify=True)
    shown = await api.call("GET", "/routing")
    assert shown.json()["weights"] == PLAN["weights"]
    assert (shown.json()["revision"], shown.headers["etag"]) == (1, '"2"')
    for match in ('"1"', '"2"', "*"):
        response = await api.put(match)
        assert response.status_code in (409, 412)
    refusal(await api.put("*"), 409, "newer-schema")
    refusal(
        await api.call("PUT", "/routing/kill", {"version": None, "reason": "x"}),
        409,
        "newer-schema",
    )
    assert api.router.assign(pin=None, unit_id="u").revision == 1


async def test_a_document_that_makes_no_sense_can_be_repaired(api: Api) -> None:
    await api.put()
    api.document_store.elsewhere(Stored(1, 2, {"default": 5}), notify=True)
    etag = (await api.call("GET", "/routing")).headers["etag"]
    response = await api.put(etag, salt="repaired")
    assert (response.status_code, response.json()["revision"]) == (200, 3)


async def test_without_redis_an_answer_says_when_to_try_again(api: Api) -> None:
    await api.put()
    api.document_store.down = True
    response = await api.put('"1"', default="grpo-1")
    refusal(response, 503, "control-unavailable")
    assert response.headers["retry-after"] == "1"
    refusal(await api.call("GET", "/audit"), 503, "control-unavailable")
    assert (await api.call("GET", "/routing")).json()["default"] == "sft-1"


async def test_a_failed_kill_of_all_replicas_says_how_to_stop_each(api: Api) -> None:
    api.document_store.down = True
    response = await api.call("PUT", "/routing/kill", KILL)
    problem = refusal(response, 503, "control-unavailable")
    assert "PUT /routing/kill/local" in problem.detail
    assert response.headers["retry-after"] == "1"
    assert api.router.assign(pin=None, unit_id=None).why == "default"


async def test_without_redis_the_kill_switch_cannot_be_ended(api: Api) -> None:
    # This replica has not heard of one; that says nothing about what is stored.
    api.document_store.down = True
    refusal(await api.call("DELETE", "/routing/kill"), 503, "control-unavailable")


@pytest.mark.parametrize("fault", ["down", "hangs"])
async def test_this_replica_alone_is_stopped_without_the_document_store(
    api: Api, fault: str
) -> None:
    await api.put()
    setattr(api.document_store, fault, True)
    with structlog.testing.capture_logs() as lines:
        response = await api.call("PUT", "/routing/kill/local", KILL)
    assert response.status_code == 200
    found = RoutingResponse.model_validate_json(response.content)
    assert (found.local_kill, found.kill) == (Kill.model_validate(KILL), None)
    assert (found.revision, response.headers["etag"]) == (1, '"1"')
    assert api.registry.get_sample_value("requery_local_kill") == 1
    assigned = api.router.assign(pin="sft-1", unit_id="u-1")
    assert (assigned.why, assigned.off) == ("kill", True)
    audits = [line for line in lines if line["event"] == "audit"]
    assert [line["action"] for line in audits] == ["routing.kill_local"]
    assert audits[0]["reason"] == KILL["reason"]
    assert "audit_not_noted" in [line["event"] for line in lines]
    assert (await api.call("GET", "/routing")).json() == response.json()

    response = await api.call("DELETE", "/routing/kill/local")
    assert (response.status_code, response.json()["local_kill"]) == (200, None)
    assert api.registry.get_sample_value("requery_local_kill") == 0
    assert api.router.assign(pin="sft-1", unit_id="u-1").why == "pin"


async def test_what_was_done_to_one_replica_is_in_the_trail_of_all(api: Api) -> None:
    await api.put()
    await api.call("PUT", "/routing/kill/local", KILL)
    await api.call("PUT", "/routing/kill/local", KILL)
    await api.call("DELETE", "/routing/kill/local")
    await api.call("DELETE", "/routing/kill/local")
    found = AuditResponse.model_validate_json((await api.call("GET", "/audit")).content)
    off, on, put = found.entries
    assert (off.action, on.action) == ("routing.revive_local", "routing.kill_local")
    assert (on.document, on.revision, on.reason) == ("routing", 1, KILL["reason"])
    assert (on.before, on.after) == ({"local_kill": None}, {"local_kill": KILL})
    assert (off.before, off.after) == ({"local_kill": KILL}, {"local_kill": None})
    assert on.replica == socket.gethostname()
    assert put.replica is None


async def test_the_switch_of_this_replica_goes_before_that_of_all(api: Api) -> None:
    await api.call("PUT", "/routing/kill", {"version": "sft-1", "reason": "one is bad"})
    local = {"version": "grpo-1", "reason": "here the other is"}
    await api.call("PUT", "/routing/kill/local", local)
    assert api.router.assign(pin=None, unit_id=None).version == "grpo-1"
    # Changes of the document are followed, and change nothing about it.
    response = await api.call("DELETE", "/routing/kill")
    assert (response.json()["kill"], response.json()["local_kill"]) == (None, local)
    assert (await api.put()).json()["local_kill"] == local
    assert api.router.assign(pin="sft-1", unit_id=None).version == "grpo-1"


async def test_a_document_says_nothing_of_the_switch_of_one_replica(api: Api) -> None:
    await api.call("PUT", "/routing/kill/local", KILL)
    await api.put()
    stored = await api.document_store.read("routing")
    assert stored is not None
    assert "local_kill" not in stored.body
    refusal(await api.put(local_kill=None), 422, "invalid-request")


async def test_the_audit_trail_lists_the_newest_change_first(api: Api) -> None:
    await api.put()
    await api.put(salt="exp-2")
    await api.call("PUT", "/routing/kill", {"version": None, "reason": "fire"})
    response = await api.call("GET", "/audit?limit=2")
    found = AuditResponse.model_validate_json(response.content)
    assert [entry.action for entry in found.entries] == ["routing.kill", "routing.put"]
    kill, put = found.entries
    assert (put.before, put.after) == ({"salt": "exp-1"}, {"salt": "exp-2"})
    assert (kill.author, kill.reason, kill.revision) == ("admin/ada", "fire", 3)
    assert kill.after == {"kill": Kill(version=None, reason="fire").model_dump()}
