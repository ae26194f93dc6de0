from __future__ import annotations

from pathlib import Path

import pytest

from loadtests.bench.engine_options import EngineOptions, server_options
from loadtests.bench.versions import TEMPERATURE, BenchVersions, bench_name, link
from model_store.store import FolderSource, Store
from tests.support.model_versions import PROMPT, write_full_version


@pytest.fixture
def versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BenchVersions:
    monkeypatch.setenv("REQUERY_CACHE_DIR", str(tmp_path / "user"))
    write_full_version(tmp_path / "store" / "real-1")
    versions = BenchVersions.under(tmp_path / "bench")
    store = Store([FolderSource(tmp_path / "store")], tmp_path / "user")
    assert versions.make("real-1", [1, 4], store) == [bench_name(1), bench_name(4)]
    # Made anew over what is there.
    versions.make("real-1", [4], store)
    return versions


def test_bench_versions_have_the_same_weights_and_other_decoding(
    versions: BenchVersions, tmp_path: Path
) -> None:
    manifest, folder = versions.find("bench-n4")
    assert manifest.decoding.temperatures == (TEMPERATURE,) * 4
    assert manifest.prompt == PROMPT
    weights = (folder / "model.safetensors").read_bytes()
    assert weights == (tmp_path / "store/real-1/model.safetensors").read_bytes()
    assert folder.is_relative_to(versions.cache)
    assert versions.find("bench-n1")[0].digest != manifest.digest


def test_a_file_that_cannot_be_linked_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("another file system")

    (tmp_path / "a").write_text("text")
    link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").samefile(tmp_path / "a")
    monkeypatch.setattr("os.link", refuse)
    link(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "c").read_text() == "text"


def test_peers_get_the_services_own_engine_arguments(
    versions: BenchVersions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUERY_DEVICE", "cpu")
    monkeypatch.setenv("REQUERY_ENGINE_THREADS", "3")
    options = EngineOptions.of(*versions.find("bench-n4"))
    assert options.arguments["dtype"] == "bfloat16"
    assert options.environment["OMP_NUM_THREADS"] == "3"
    prompts, stop_ids = options.prompts()
    assert {prompts.labels.relevant, prompts.labels.irrelevant} <= set(stop_ids)


def test_arguments_become_options_of_vllms_server() -> None:
    arguments = {
        "model": "somewhere", "dtype": "bfloat16", "max_num_seqs": 64, "enforce_eager": True,
        "trust_remote_code": False, "skip_tokenizer_init": True, "worker_extension_cls": "a.B",
    }  # fmt: skip
    assert server_options(arguments) == [
        "--dtype", "bfloat16", "--max-num-seqs", "64", "--enforce-eager",
    ]  # fmt: skip
