from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from structlog.testing import capture_logs

from model_store.manifest import BaseSpec, Manifest
from model_store.materialise import materialised_dir
from service.versions.memory_budget import OVERHEAD_BYTES
from service.versions.memory_estimate import Footprint, gguf_bytes, parameters, served_bytes
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
def footprint(tmp_path: Path) -> Footprint:
    return Footprint(cache_dir=tmp_path / "cache", kv_cache_bytes=KV, device="cpu")


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_weights_are_counted_as_they_are_served(tmp_path: Path, dtype: type) -> None:
    write_weights(tmp_path / "model", dtype)
    assert served_bytes(tmp_path / "model") == 2 * (15 + 7 + 1)


@pytest.mark.parametrize("content", [b"", b"\x02", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0[]"])
def test_what_is_no_safetensors_file_is_not_counted(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="no safetensors"):
        parameters(tmp_path / "x.safetensors")
    assert served_bytes(tmp_path) is None


def test_a_materialised_version_is_counted_exactly(tmp_path: Path, footprint: Footprint) -> None:
    manifest = on("/nonexistent.gguf")
    write_weights(materialised_dir(manifest, tmp_path / "cache"))
    assert footprint(manifest) == BESIDES + 46


def test_a_version_on_a_folder_takes_what_its_base_does(
    tmp_path: Path, footprint: Footprint
) -> None:
    write_weights(tmp_path / "base", np.float32)
    assert footprint(on(tmp_path / "base")) == BESIDES + 46


def test_a_version_on_a_gguf_is_estimated_until_it_is_materialised(
    tmp_path: Path, footprint: Footprint
) -> None:
    base = tmp_path / "Model-1B.Q8_0.gguf"
    base.write_bytes(b"\0" * 850)
    manifest = on(base)
    assert footprint(manifest) == BESIDES + 1600
    write_weights(materialised_dir(manifest, tmp_path / "cache"))
    assert footprint(manifest) == BESIDES + 46


@pytest.mark.parametrize(
    ("name", "served"),
    [
        ("m.F16.gguf", 900),
        ("m-f32.gguf", 450),
        ("m.Q4_1.gguf", 3200),
        ("m-q4_k_m.gguf", 3200),
        ("Q4_0.gguf", 3200),
        ("mQ4.gguf", 3600),
        ("model.gguf", 3600),
    ],
)
def test_the_name_of_a_gguf_tells_its_factor(tmp_path: Path, name: str, served: int) -> None:
    (tmp_path / name).write_bytes(b"\0" * 900)
    assert gguf_bytes(tmp_path / name) == served


def test_full_weights_are_counted_from_the_manifest(footprint: Footprint) -> None:
    files = {
        "model.safetensors": {"sha256": "1" * 64, "bytes": 500},
        "tokenizer.json": {"sha256": "2" * 64, "bytes": 70},
    }
    manifest = make_manifest(weights={"kind": "full"}, files=files)
    assert footprint(manifest) == BESIDES + 500


@pytest.mark.parametrize("source", ["/nonexistent.gguf", "memory://nowhere/base.gguf"])
def test_weights_that_are_not_here_are_left_out_with_one_warning(
    footprint: Footprint, source: str
) -> None:
    manifest = on(source)
    with capture_logs() as logs:
        assert footprint(manifest) == BESIDES
        assert footprint(manifest) == BESIDES
    assert [line["event"] for line in logs] == ["weights_unknown"]
