from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from model_store.errors import DigestMismatch, InvalidVersion, UnknownVersion
from model_store.manifest import FilterSpec, Manifest, SpellingSpec
from model_store.remote import RemoteUnreadable
from model_store.store import FolderSource, Store, pack_version
from service import errors
from service.config.settings import Settings
from service.engine.corrected import CorrectedEngine
from service.engine.spelling import write_words
from service.engine.vllm import VllmEngine
from service.filtering.candidates import Scored, Verdict
from service.filtering.catalogue import INDEX_FILE, build_term_index
from service.versions import from_store as catalogue
from service.versions.from_store import (
    arriving,
    engine_factory,
    known_versions,
    memory_budget,
    version_finder,
)
from service.versions.memory_budget import OVERHEAD_BYTES
from service.versions.version import ModelVersion
from tests.support.model_versions import write_full_version, write_stub_version


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with the version ``main-1``, which has brands."""
    root = tmp_path / "models"
    folder = root / "main-1"
    plain = write_stub_version(folder)
    (folder / "brands.txt").write_text("dewalt\n\nblack & decker\n", encoding="utf-8")
    pack_version(
        folder,
        name="main-1",
        base=plain.base,
        weights=plain.weights,
        prompt=plain.prompt,
        decoding=plain.decoding,
        filters=FilterSpec(brands_file="brands.txt"),
    )
    return root


def names(root: Path, default: str = "main-1") -> list[str]:
    store = Store([FolderSource(root)], root.parent / "cache")
    settings = Settings(default_version=default, cache_dir=root.parent / "cache")
    return [version.name for version in known_versions(store, settings)]


def test_brands_of_the_version_are_guarded(root: Path) -> None:
    store = Store([FolderSource(root)], root.parent / "cache")
    (version,) = known_versions(store, Settings(default_version="main-1"))
    judged = version.filter.judge(
        "dewalt dril", [Scored("dewalt drill", 0.9), Scored("makita drill", 0.8)]
    )
    assert [one.verdict for one in judged] == [Verdict.ACCEPTED, Verdict.LOST_BRAND]


def test_brands_that_were_changed_are_refused(root: Path) -> None:
    (root / "main-1" / "brands.txt").write_text("makita\n", encoding="utf-8")
    with pytest.raises(DigestMismatch, match=r"brands\.txt"):
        names(root)


def test_rewrites_are_looked_up_in_the_catalogue_of_the_version(root: Path) -> None:
    folder = root / "main-1"
    plain = Store([FolderSource(root)]).get("main-1").manifest
    titles = ["DeWalt drill", "DeWalt cordless drill"]
    shop = build_term_index(titles, folder / INDEX_FILE, made_at=datetime.now(UTC))

    def packed(products: int) -> Store:
        sections = {"base", "weights", "prompt", "decoding", "spelling"}
        pack_version(
            folder,
            name="main-1",
            filters=plain.filter,
            catalogue=shop.model_copy(update={"products": products}),
            **{section: getattr(plain, section) for section in sections},
        )
        return Store([FolderSource(root)], root.parent / "cache")

    (version,) = known_versions(packed(2), Settings(default_version="main-1"))
    said = [Scored(text, 0.9) for text in ("dewalt driver", "cordless dewalt drill")]
    verdicts = [one.verdict for one in version.filter.judge("dewalt drill", said)]
    assert verdicts == [Verdict.NO_GAIN, Verdict.NO_RESULTS]
    with pytest.raises(InvalidVersion, match="has 2 products, and the manifest says 3"):
        known_versions(packed(3), Settings(default_version="main-1"))
    (folder / INDEX_FILE).write_bytes(b"")
    with pytest.raises(DigestMismatch, match=r"catalogue\.index"):
        names(root)


def test_a_broken_version_is_left_out_unless_it_is_the_default(root: Path) -> None:
    write_stub_version(root / "other-1")
    (root / "other-1" / "manifest.json").write_text("{")
    assert names(root) == ["main-1"]
    with pytest.raises(InvalidVersion):
        names(root, default="other-1")


def test_a_default_that_is_not_there_is_told(root: Path) -> None:
    with pytest.raises(UnknownVersion, match="main-1"):
        names(root, default="nobody")


class LateStore:
    """A store that is read, and what it says in turn; and the time that passes meanwhile."""

    def __init__(self, *outcomes: Exception | str) -> None:
        self._outcomes = list(outcomes)
        self.now = 0.0
        self.looks: list[float] = []

    def read(self) -> str:
        self.looks.append(self.now)
        outcome = self._outcomes.pop(0) if len(self._outcomes) > 1 else self._outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    async def arriving(self, wait_s: float) -> str:
        return await arriving(self.read, wait_s=wait_s, clock=lambda: self.now, sleep=self.sleep)


MISSING = UnknownVersion("no model version is called 'main-1'; known: none")


@pytest.mark.parametrize(
    "missing",
    [MISSING, RemoteUnreadable("cannot read s3://models"), OSError(107, "not connected")],
    ids=["version", "url", "volume"],
)
async def test_a_store_that_comes_late_is_waited_for(missing: Exception) -> None:
    store = LateStore(*[missing] * 30, "versions")
    with capture_logs() as logs:
        assert await store.arriving(30) == "versions"
    assert len(store.looks) == 31
    # One line every few seconds, not one for each look.
    assert [line["event"] for line in logs] == ["waiting_for_the_model_store"] * 3
    assert logs[0]["reason"] == str(missing)
    assert [line["seconds_left"] for line in logs] == [30.0, 25.0, 20.0]


async def test_one_that_does_not_come_is_not_waited_for_longer() -> None:
    store = LateStore(MISSING)
    with pytest.raises(UnknownVersion, match="main-1"):
        await store.arriving(30)
    assert store.now == 30


async def test_without_a_source_that_could_come_nothing_is_waited_for() -> None:
    store = LateStore(MISSING, "versions")
    with capture_logs() as logs, pytest.raises(UnknownVersion):
        await store.arriving(0)
    assert store.looks == [0.0]
    assert logs == []


async def test_what_is_there_and_cannot_be_used_is_told_at_once() -> None:
    store = LateStore(InvalidVersion("manifest.json: not JSON"), "versions")
    with pytest.raises(InvalidVersion):
        await store.arriving(30)
    assert store.looks == [0.0]


async def test_a_store_that_gives_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_FIND_SECONDS", 0)
    hanging = threading.Event()
    with pytest.raises(errors.LoadFailed, match="no answer"):
        await arriving(hanging.wait, wait_s=30)
    hanging.set()


def settings_of(root: Path, **more: object) -> Settings:
    return Settings(default_version="main-1", cache_dir=root.parent / "cache", **more)  # type: ignore[arg-type]


async def find(root: Path, name: str) -> ModelVersion:
    store = Store([FolderSource(root)], root.parent / "cache")
    return await version_finder(store, settings_of(root))(name)


async def test_a_version_that_came_into_the_store_later_is_found(root: Path) -> None:
    with pytest.raises(errors.UnknownVersion, match="requery models add"):
        await find(root, "later-1")
    manifest = write_stub_version(root / "later-1")
    assert (await find(root, "later-1")).digest == manifest.digest


async def test_a_broken_version_in_the_store_is_told_without_its_place(root: Path) -> None:
    write_stub_version(root / "later-1")
    (root / "later-1" / "manifest.json").write_text("{")
    with pytest.raises(errors.LoadFailed, match=r"'later-1' cannot be used") as caught:
        await find(root, "later-1")
    assert str(root.parent) not in str(caught.value)


def silent(_prompt: int, _generated: int) -> None:
    pass


async def test_a_version_that_was_changed_in_the_store_is_not_loaded(root: Path) -> None:
    store = Store([FolderSource(root)], root.parent / "cache")
    make = engine_factory(store, settings_of(root, device="cpu"))
    manifest: Manifest = store.get("main-1").manifest
    # Its answers would be kept under the digest of the old one.
    with pytest.raises(InvalidVersion, match="changed in the store"):
        await make(manifest.model_copy(update={"filter": FilterSpec()}), silent)


async def test_the_engine_of_a_version_with_words_corrects(root: Path) -> None:
    folder = root / "words-1"
    plain = write_full_version(folder)
    write_words({"steel": 9}, folder / "words.txt")
    pack_version(
        folder,
        name="words-1",
        base=plain.base,
        weights=plain.weights,
        prompt=plain.prompt,
        decoding=plain.decoding,
        spelling=SpellingSpec(words_file="words.txt"),
    )
    store = Store([FolderSource(root)], root.parent / "cache")
    make = engine_factory(store, settings_of(root))
    manifest = store.get("words-1").manifest
    assert isinstance(await make(manifest, silent), CorrectedEngine)
    write_full_version(root / "plain-1")
    assert isinstance(await make(store.get("plain-1").manifest, silent), VllmEngine)
    (folder / "words.txt").write_text("steel 8\n")
    with pytest.raises(DigestMismatch, match=r"words\.txt"):
        await make(manifest, silent)


def test_the_memory_budget_counts_weights_keys_and_values_and_the_engine_core(
    root: Path,
) -> None:
    manifest = write_full_version(root / "full-1")
    budget = memory_budget(
        settings_of(root, device="cpu", engine_memory_bytes=10**9, engine_kv_cache_bytes=5_000_000)
    )
    assert budget.limit_bytes == 10**9
    size = (root / "full-1" / "model.safetensors").stat().st_size
    assert budget.estimate(manifest) == size + 5_000_000 + OVERHEAD_BYTES["cpu"]


def test_without_a_configured_budget_there_is_one_all_the_same(root: Path) -> None:
    limit = memory_budget(settings_of(root, device="cpu")).limit_bytes
    assert limit is not None
    assert limit > 2**20
