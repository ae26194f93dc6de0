from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file
from structlog.testing import capture_logs

from model_store.manifest import BaseSpec, Manifest
from model_store.materialise import materialised_dir
from service.versions.memory_budget import OVERHEAD_BYTES
from service.versions.memory_estimate import MemoryEstimate, gguf_bytes, safetensors_bytes
from tests.support.versions import make_manifest

KV = 1000
BESIDES = KV + OVERHEAD_BYTES["cpu"]


def on(base: Path | str, name: str = "v") -> Manifest:
    spec = BaseSpec(source=str(base), sha256="0" * 64, license="Apache-2.0")
    return make_manifest(name, base=spec.model_dump())


def write_weights(folder: Path, dtype: type = np.float16) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"a": np.zeros((3, 5), dtype)}, folder / "one.safetensors", metadata={"format": "pt"})
    save_file({"b": np.zeros(7, dtype), "c": np.zeros((), dtype)}, folder / "two.safetensors")


@pytest.fixture
def estimate(tmp_path: Path) -> MemoryEstimate:
    return MemoryEstimate(cache_dir=tmp_path / "cache", kv_cache_bytes=KV, device="cpu")


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_weights_are_counted_as_they_are_served(tmp_path: Path, dtype: type) -> None:
    write_weights(tmp_path / "model", dtype)
    assert safetensors_bytes(tmp_path / "model") == 2 * (15 + 7 + 1)


@pytest.mark.parametrize("content", [b"", b"\x02", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0[]"])
def test_what_is_no_safetensors_file_is_not_counted(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    assert safetensors_bytes(tmp_path) is None


def test_a_materialised_version_is_counted_exactly(
    tmp_path: Path, estimate: MemoryEstimate
) -> None:
    manifest = on("/nonexistent.gguf")
    write_weights(materialised_dir(manifest, tmp_path / "cache"))
    assert estimate(manifest) == BESIDES + 46


def test_a_version_on_a_folder_takes_what_its_base_does(
    tmp_path: Path, estimate: MemoryEstimate
) -> None:
    write_weights(tmp_path / "base", np.float32)
    assert estimate(on(tmp_path / "base")) == BESIDES + 46


def write_gguf(path: Path) -> None:
    """One tensor of 96 parameters in four bits and one of 5 in 32."""
    writer = gguf.GGUFWriter(path, "llama")
    quantised = gguf.quantize(np.ones((3, 32), np.float32), gguf.GGMLQuantizationType.Q4_1)
    writer.add_tensor("a", quantised, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.add_tensor("b", np.ones(5, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_version_on_a_gguf_is_estimated_until_it_is_materialised(
    tmp_path: Path, estimate: MemoryEstimate
) -> None:
    write_gguf(tmp_path / "base.gguf")
    manifest = on(tmp_path / "base.gguf")
    assert estimate(manifest) == BESIDES + 2 * (96 + 5)
    write_weights(materialised_dir(manifest, tmp_path / "cache"))
    assert estimate(manifest) == BESIDES + 46


def test_a_base_is_read_once_for_all_versions(tmp_path: Path, estimate: MemoryEstimate) -> None:
    write_gguf(tmp_path / "base.gguf")
    first = estimate(on(tmp_path / "base.gguf"))
    (tmp_path / "base.gguf").write_bytes(b"")
    assert estimate(on(tmp_path / "base.gguf", "another")) == first


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\3\0\0\0", b"\0" * 850])
def test_what_is_no_gguf_is_not_counted(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    assert gguf_bytes(tmp_path / "x.gguf") is None
    (tmp_path / "x.gguf").unlink()
    assert gguf_bytes(tmp_path / "x.gguf") is None


def test_full_weights_are_counted_from_the_manifest(estimate: MemoryEstimate) -> None:
    files = {
        "model.safetensors": {"sha256": "1" * 64, "bytes": 500},
        "tokenizer.json": {"sha256": "2" * 64, "bytes": 70},
    }
    manifest = make_manifest(weights={"kind": "full"}, files=files)
    assert estimate(manifest) == BESIDES + 500


@pytest.mark.parametrize("source", ["/nonexistent.gguf", "memory://nowhere/base.gguf"])
def test_weights_that_are_not_here_are_left_out_with_one_warning(
    estimate: MemoryEstimate, source: str
) -> None:
    manifest = on(source)
    with capture_logs() as logs:
        assert estimate(manifest) == BESIDES
        assert estimate(manifest) == BESIDES
    assert [line["event"] for line in logs] == ["weights_unknown"]
