"""What a manifest accepts, and what its digest covers."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from model_store.manifest import CATALOGUE_SCHEMA, SCHEMA, Manifest
from model_store.store import PACKAGED, FolderSource, Store

SHA = "0" * 64


def fields(**changes: Any) -> dict[str, Any]:
    """The fields of a valid manifest, some replaced."""
    return {
        "name": "sft-1",
        "base": {"source": "base.gguf", "sha256": SHA, "license": "Apache-2.0"},
        "weights": {"kind": "adapter"},
        "prompt": {"query": "<q>", "rewrite": "<r>", "relevant": "<y>", "irrelevant": "<n>"},
        "decoding": {"temperatures": [0.0, 0.8]},
        "files": {
            "adapter_model.safetensors": {"sha256": SHA, "bytes": 3},
            "README.md": {"sha256": SHA, "bytes": 5},
        },
        **changes,
    }


def manifest(**changes: Any) -> Manifest:
    return Manifest.model_validate(fields(**changes))


def with_file(name: str) -> dict[str, Any]:
    files = fields()["files"]
    return fields(files={**files, name: {"sha256": SHA, "bytes": 1}})


@pytest.mark.parametrize(
    "name",
    [
        "../x.json",
        "a/../../x.json",
        "/etc/x.json",
        "..",
        "",
        "a\\..\\x.json",
        "model.bin",
        "model.pt",
        "model.pkl",
        "run.py",
        "a/../x.json",
        "no_suffix",
    ],
)
def test_files_that_a_version_may_not_have(name: str) -> None:
    with pytest.raises(ValidationError):
        Manifest.model_validate(with_file(name))


@given(
    st.lists(
        st.one_of(st.sampled_from(["..", ".", "", "a", "b c", "ü"]), st.text("./\\ab", max_size=6)),
        min_size=1,
        max_size=5,
    )
)
def test_no_accepted_path_leaves_the_folder(parts: list[str]) -> None:
    name = "/".join(parts) + ".json"
    try:
        Manifest.model_validate(with_file(name))
    except ValidationError:
        return
    root = PurePosixPath("/store/sft-1")
    path = root / name
    assert path.is_relative_to(root)
    assert ".." not in path.parts


@pytest.mark.parametrize("name", ["", "SFT", "a/b", "../a", ".hidden", "-x", "a" * 65, "a b", "ä"])
def test_names_that_a_version_may_not_have(name: str) -> None:
    with pytest.raises(ValidationError):
        manifest(name=name)


def test_a_newer_schema_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValidationError, match="upgrade requery"):
        manifest(schema_version=SCHEMA + 1)


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError):
        manifest(surprise=1)


def test_a_version_without_weights_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"no \.safetensors file"):
        manifest(files={"a.json": {"sha256": SHA, "bytes": 1}})


def test_a_brands_file_must_be_listed() -> None:
    with pytest.raises(ValidationError, match="not listed"):
        manifest(filter={"brands_file": "brands.txt"})


def with_words(**changes: Any) -> dict[str, Any]:
    files = fields()["files"] | {"words.txt": {"sha256": SHA, "bytes": 1}}
    return {
        "schema_version": 2, "files": files, "spelling": {"words_file": "words.txt"}, **changes
    }  # fmt: skip


def test_words_to_correct_by_must_be_listed() -> None:
    assert manifest(**with_words()).spelling is not None
    with pytest.raises(ValidationError, match=r"words\.txt.*not listed"):
        manifest(**with_words(files=fields()["files"]))
    pairs = {"words_file": "words.txt", "pairs_file": "pairs.txt"}
    with pytest.raises(ValidationError, match=r"pairs\.txt.*not listed"):
        manifest(**with_words(spelling=pairs))


def test_programs_of_before_are_told_that_they_cannot_correct() -> None:
    with pytest.raises(ValidationError, match="schema_version 2"):
        manifest(**with_words(schema_version=1))


def test_synonyms_must_be_listed_and_need_the_third_schema() -> None:
    files = with_words()["files"] | {"synonyms.txt": {"sha256": SHA, "bytes": 1}}
    spelling = {"words_file": "words.txt", "synonyms_file": "synonyms.txt"}
    read = manifest(**with_words(files=files, spelling=spelling, schema_version=3))
    assert read.digest != manifest(**with_words(files=files, schema_version=3)).digest
    with pytest.raises(ValidationError, match="synonyms_file needs schema_version 3"):
        manifest(**with_words(files=files, spelling=spelling))
    with pytest.raises(ValidationError, match=r"synonyms\.txt.*not listed"):
        manifest(**with_words(spelling=spelling, schema_version=3))


def test_how_words_are_corrected_changes_the_digest() -> None:
    digests = {
        manifest(**with_words(**changes)).digest
        for changes in (
            {},
            {"spelling": None},
            {"spelling": {"words_file": "words.txt", "max_edits": 1}},
            {"spelling": {"words_file": "words.txt", "trust": 2.0}},
        )
    }
    assert len(digests) == 4


def test_digests_of_before_there_were_corrections_stay() -> None:
    # Cache keys hold them, and people have noted them.
    digests = {version: Store([FolderSource(PACKAGED)]).get(version).digest[:12] for version in (
        "sft-1", "grpo-1"
    )}  # fmt: skip
    assert digests == {"sft-1": "041fc80da076", "grpo-1": "7c1c232622be"}


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"description": "words"},
        {"training": {"steps": 3}},
        {"evaluation": {"auc": 0.9}},
    ],
)
def test_records_and_prose_are_no_part_of_the_digest(changes: dict[str, Any]) -> None:
    assert manifest(**changes).digest == manifest().digest


def test_the_model_card_is_no_part_of_the_digest() -> None:
    files = fields()["files"]
    files["README.md"] = {"sha256": "f" * 64, "bytes": 9}
    assert manifest(files=files).digest == manifest().digest


@pytest.mark.parametrize(
    "changes",
    [
        {"base": {"source": "base.gguf", "sha256": "1" * 64, "license": "Apache-2.0"}},
        {"weights": {"kind": "full"}},
        {"prompt": {**fields()["prompt"], "fold_case": False}},
        {"decoding": {"temperatures": [0.0, 0.7]}},
        {"decoding": {"temperatures": [0.0, 0.8], "max_tokens": 8}},
        {"filter": {"min_relevance": 0.9}},
        {"files": {"adapter_model.safetensors": {"sha256": "1" * 64, "bytes": 3}}},
    ],
)
def test_all_that_can_change_an_answer_changes_the_digest(changes: dict[str, Any]) -> None:
    assert manifest(**changes).digest != manifest().digest


def test_a_catalogue_needs_its_file_and_schema_and_its_age_is_no_part_of_the_digest() -> None:
    def shop(index: str = "catalogue.index", **changes: Any) -> dict[str, Any]:
        catalogue = {"index_file": index, "products": 5, "made_at": "2026-11-28T04:00:00Z"}
        content = with_file("catalogue.index") | {"schema_version": CATALOGUE_SCHEMA}
        return content | {"catalogue": catalogue | changes}

    digest = Manifest.model_validate(shop()).digest
    assert Manifest.model_validate(shop(made_at="2026-11-29T04:00:00Z")).digest == digest
    assert Manifest.model_validate(shop(products=6)).digest != digest
    for wrong, message in (
        (shop("other.index"), "index_file 'other.index' is not listed"),
        (shop() | {"schema_version": 2}, "catalogue needs schema_version 3"),
        (shop(made_at="2026-11-28T04:00:00"), "timezone"),
        (shop(products=0), "greater than or equal to 1"),
    ):
        with pytest.raises(ValidationError, match=message):
            Manifest.model_validate(wrong)
