"""Control documents in a store of this process: changes, refusals, the audit trail."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import structlog
from prometheus_client import CollectorRegistry

from service.control import documents
from service.control.documents import Document
from service.control.metrics import ControlMetrics
from service.control.store import AUDIT_ENTRIES, Absent, LocalDocumentStore, Stored
from service.errors import DocumentStoreUnavailable, NewerSchema, StaleRevision, UnreadableDocument


def parse(body: dict[str, Any]) -> int:
    """The value is the number under ``n``."""
    if not isinstance(body.get("n"), int):
        raise ValueError("n must be a whole number")  # noqa: TRY004 - what parsers raise
    if body["n"] < 0:
        raise RuntimeError("a fault of the parser")
    return int(body["n"])


class Flaky(LocalDocumentStore):
    """A store that can be told to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.fault: Exception | None = None
        self.asked: list[str] = []
        self.before_write: Callable[[], None] = lambda: None

    async def read(self, name: str) -> Stored | None:
        self.asked.append("read")
        self._maybe_fail()
        return await super().read(name)

    async def write(
        self, name: str, body: Mapping[str, Any], *, schema: int, expected: int
    ) -> Stored:
        self.asked.append("write")
        self._maybe_fail()
        self.before_write()
        return await super().write(name, body, schema=schema, expected=expected)

    async def note(self, entry: Mapping[str, Any]) -> None:
        self._maybe_fail()
        await super().note(entry)

    def show(self, state: Stored | Absent) -> None:
        """Let subscribers see ``state``, as if another process had written it."""
        if isinstance(state, Stored):
            self._documents["doc"] = state
        else:
            self._documents.pop("doc", None)
        self._subscribers.notify("doc", state)

    def _maybe_fail(self) -> None:
        if self.fault is not None:
            raise self.fault


class World:
    """A document, its store and its metrics."""

    def __init__(self) -> None:
        self.store = Flaky()
        self.registry = CollectorRegistry()
        self.document = Document(
            self.store,
            "doc",
            schema=2,
            parse=parse,
            initial=0,
            dump=lambda n: {"n": n},
            metrics=ControlMetrics(self.registry),
        )

    async def set(
        self, n: int, *, expected: int | None = None, author: str = "ada", reason: str | None = None
    ) -> int:
        return await self.document.update(
            lambda _: n, expected=expected, action="set", author=author, reason=reason
        )

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, {"document": "doc", **labels})

    def refused(self, reason: str) -> float | None:
        return self.metric("requery_control_documents_refused_total", reason=reason)


@pytest.fixture
def world() -> World:
    return World()


async def test_until_something_is_written_the_initial_value_is_in_force(world: World) -> None:
    await world.document.refresh()
    assert (world.document.value, world.document.revision) == (0, 0)
    assert not world.document.durable
    assert world.metric("requery_control_document_missing") == 0


async def test_a_change_is_in_force_when_it_returns(world: World) -> None:
    heard: list[int] = []
    world.document.on_change(heard.append)
    revision = await world.set(5, expected=0)
    assert (revision, world.document.value, world.document.revision) == (1, 5, 1)
    assert heard == [5]
    assert world.metric("requery_control_document_revision") == 1


async def test_a_stale_change_is_refused_and_says_the_current_revision(world: World) -> None:
    await world.set(5, expected=0)
    with pytest.raises(StaleRevision, match="at revision 1") as caught:
        await world.set(6, expected=0, author="bob")
    assert caught.value.current == 1
    assert caught.value.headers == {"ETag": '"1"'}
    assert world.document.value == 5


async def test_every_change_is_noted_with_what_it_changed(world: World) -> None:
    await world.set(5, expected=0)
    with structlog.testing.capture_logs() as lines:
        await world.set(6, expected=1, author="bob", reason="better")
    newest, oldest = await world.store.notes(10)
    assert (newest["before"], newest["after"]) == ({"n": 5}, {"n": 6})
    assert (newest["replaced"], newest["revision"]) == (1, 2)
    assert (newest["author"], newest["reason"], newest["action"]) == ("bob", "better", "set")
    assert oldest["author"] == "ada"
    (line,) = [line for line in lines if line["event"] == "audit"]
    assert line["after"] == {"n": 6}
    assert line["author"] == "bob"


async def test_the_audit_trail_is_bounded_and_newest_first() -> None:
    store = LocalDocumentStore()
    for i in range(AUDIT_ENTRIES + 5):
        await store.note({"i": i})
    found = await store.notes(AUDIT_ENTRIES + 5)
    assert [entry["i"] for entry in found] == list(range(AUDIT_ENTRIES + 4, 4, -1))
    assert len(await store.notes(3)) == 3


async def test_a_value_that_its_own_parser_refuses_is_never_written(world: World) -> None:
    with pytest.raises(ValueError, match="whole number"):
        await world.set("x")  # type: ignore[arg-type]
    assert await world.store.read("doc") is None


async def test_a_document_of_a_newer_schema_is_not_taken(world: World) -> None:
    await world.set(5, expected=0)
    newer = Stored(3, 9, {"n": 7, "m": 8})
    with structlog.testing.capture_logs() as lines:
        world.store.show(newer)
        await world.document.refresh()
    assert (world.document.value, world.document.revision, world.document.stored) == (5, 1, 9)
    assert [line["kind"] for line in lines] == ["newer_schema"]
    assert world.refused("newer_schema") == 1


@pytest.mark.parametrize("expected", [None, 9])
async def test_a_document_of_a_newer_schema_is_not_overwritten(
    world: World, expected: int | None
) -> None:
    world.store.show(Stored(3, 9, {}))
    with pytest.raises(NewerSchema, match="newer release"):
        await world.set(5, expected=expected)
    assert await world.store.read("doc") == Stored(3, 9, {})


async def test_an_older_schema_is_given_to_the_parser(world: World) -> None:
    world.store.show(Stored(1, 4, {"n": 3}))
    assert (world.document.value, world.document.revision) == (3, 4)


@pytest.mark.parametrize("body", [{}, {"n": "x"}, {"n": None}])
async def test_a_body_that_makes_no_sense_is_not_taken_and_can_be_replaced(
    world: World, body: dict[str, Any]
) -> None:
    await world.set(5, expected=0)
    world.store.show(Stored(2, 2, body))
    assert (world.document.value, world.document.revision) == (5, 1)
    assert world.refused("invalid") == 1
    await world.set(6, expected=world.document.stored)
    assert (world.document.value, world.document.revision) == (6, 3)


async def test_a_parser_that_breaks_does_no_harm(world: World) -> None:
    world.store.show(Stored(2, 2, {"n": 4}))
    world.store.show(Stored(2, 3, {"n": -1}))
    assert (world.document.value, world.refused("invalid")) == (4, 1)


async def test_what_cannot_be_read_is_not_taken(world: World) -> None:
    await world.set(5, expected=0)
    world.store.fault = UnreadableDocument("garbage")
    await world.document.refresh()
    await world.document.refresh()
    assert (world.document.value, world.document.revision, world.document.stored) == (5, 1, 1)
    assert world.refused("unreadable") == 1


async def test_a_document_that_disappears_leaves_its_last_value_in_force(world: World) -> None:
    await world.set(5, expected=0)
    with structlog.testing.capture_logs() as lines:
        world.store.show(Absent.GONE)
        await world.document.refresh()
    assert (world.document.value, world.document.revision) == (5, 0)
    assert [line["event"] for line in lines] == ["control_document_gone"]
    assert world.metric("requery_control_document_missing") == 1
    assert await world.store.read("doc") is None
    await world.set(6, expected=0)
    assert world.metric("requery_control_document_missing") == 0


async def test_while_the_store_is_down_the_last_value_stays_in_force(world: World) -> None:
    await world.set(5, expected=0)
    world.store.fault = DocumentStoreUnavailable("down")
    await world.document.refresh()
    assert (world.document.value, world.document.revision) == (5, 1)
    with pytest.raises(DocumentStoreUnavailable) as caught:
        await world.set(6, expected=1)
    assert caught.value.headers == {"Retry-After": "1"}
    assert world.document.value == 5


async def test_a_revision_may_go_back_because_the_store_is_the_truth(world: World) -> None:
    world.store.show(Stored(2, 6, {"n": 6}))
    world.store.show(Stored(2, 5, {"n": 5}))
    assert (world.document.value, world.document.revision) == (5, 5)


async def test_one_listener_that_breaks_keeps_no_other_from_hearing(world: World) -> None:
    heard: list[int] = []

    def broken(_: int) -> None:
        raise RuntimeError("no")

    world.document.on_change(broken)
    world.document.on_change(heard.append)
    await world.set(5, expected=0)
    assert heard == [5]


async def test_an_update_starts_again_when_someone_else_was_faster(world: World) -> None:
    others = iter([Stored(2, 1, {"n": 10}), Stored(2, 2, {"n": 20})])

    def interfere() -> None:
        if (stored := next(others, None)) is not None:
            world.store.show(stored)

    world.store.before_write = interfere
    revision = await world.document.update(lambda n: n + 1, action="add", author="ada")
    assert (revision, world.document.value) == (3, 21)


async def test_an_update_of_a_given_revision_is_not_tried_again(world: World) -> None:
    world.store.before_write = lambda: world.store.show(Stored(2, 1, {"n": 10}))
    with pytest.raises(StaleRevision):
        await world.document.update(lambda n: n + 1, expected=0, action="add", author="ada")
    assert world.document.value == 10


async def test_an_update_sees_what_is_stored_although_nobody_told(world: World) -> None:
    world.store._documents["doc"] = Stored(2, 4, {"n": 40})
    assert await world.document.update(lambda n: n + 1, expected=4, action="add", author="ada") == 5
    assert world.document.value == 41


async def test_an_update_that_changes_nothing_is_not_written(world: World) -> None:
    await world.set(5)
    assert await world.document.update(lambda _: None, action="set", author="bob") == 1
    assert len(await world.store.notes(10)) == 1


async def test_an_update_gives_up_after_a_few_tries(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "_PAUSE_S", 0.0)
    revision = iter(range(1, 1000))

    def interfere() -> None:
        world.store.show(Stored(2, next(revision), {"n": 0}))

    world.store.before_write = interfere
    with pytest.raises(DocumentStoreUnavailable, match="many at once"):
        await world.document.update(lambda n: n + 1, action="add", author="ada")


async def test_nobody_changes_what_is_stored_by_changing_what_was_given() -> None:
    store = LocalDocumentStore()
    body = {"list": [1]}
    stored = await store.write("doc", body, schema=1, expected=0)
    body["list"].append(2)
    assert stored.body == {"list": [1]}


async def test_a_change_on_a_store_that_is_down_costs_one_question(world: World) -> None:
    await world.set(5, expected=0)
    world.store.asked.clear()
    world.store.fault = DocumentStoreUnavailable("Redis does not answer")
    for expected in (None, 1):
        with pytest.raises(DocumentStoreUnavailable):
            await world.document.update(
                lambda n: n + 1, expected=expected, action="set", author="ada"
            )
    assert world.store.asked == ["read", "read"]
    await world.document.refresh()
    assert world.document.value == 5
