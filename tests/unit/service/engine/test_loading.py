from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path

import pytest

from model_store.manifest import (
    BaseSpec,
    DecodingSpec,
    FileSpec,
    Manifest,
    PromptSpec,
    WeightsSpec,
)
from model_store.text import MAX_QUERY_CHARS
from service.engine import loading
from service.engine.errors import EngineUnavailable
from service.engine.loading import (
    MAX_PROMPT_TOKENS,
    EngineSettings,
    available_cores,
    detect_device,
    engine_arguments,
    engine_environment,
    load_engine,
)

MANIFEST = Manifest(
    name="v",
    base=BaseSpec(source="/base.gguf", sha256="0" * 64, license="Apache-2.0"),
    weights=WeightsSpec(kind="adapter"),
    prompt=PromptSpec(query="<q>", rewrite="<r>", relevant="<yes>", irrelevant="<no>"),
    decoding=DecodingSpec(temperatures=(0.0, 0.8), max_tokens=20),
    files={"adapter_model.safetensors": FileSpec(sha256="0" * 64, bytes=1)},
)


def test_the_longest_ascii_pair_and_its_markers_fit_the_model_length() -> None:
    arguments = engine_arguments(MANIFEST, Path("/m"), EngineSettings(), "cpu")
    assert MAX_PROMPT_TOKENS == 2 * (1 + MAX_QUERY_CHARS) + 2
    assert arguments["max_model_len"] == MAX_PROMPT_TOKENS + 20


def test_cpu_is_eager_and_in_one_engine_process_by_default() -> None:
    settings = EngineSettings(threads=3)
    arguments = engine_arguments(MANIFEST, Path("/m"), settings, "cpu")
    environment = engine_environment(settings, "cpu")
    assert arguments["enforce_eager"] is True
    assert arguments["distributed_executor_backend"] == "uni"
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["TORCH_COMPILE_DISABLE"] == "1"
    assert int(environment["ONEDNN_PRIMITIVE_CACHE_CAPACITY"]) < 1024


def test_compiling_on_a_cpu_lets_the_compiler_run() -> None:
    settings = EngineSettings(compiled=True)
    assert engine_arguments(MANIFEST, Path("/m"), settings, "cpu")["enforce_eager"] is False
    assert "TORCH_COMPILE_DISABLE" not in engine_environment(settings, "cpu")


def test_cuda_is_compiled_and_keeps_the_cpu_variables_out() -> None:
    arguments = engine_arguments(MANIFEST, Path("/m"), EngineSettings(), "cuda")
    environment = engine_environment(EngineSettings(), "cuda")
    assert arguments["enforce_eager"] is False
    assert "distributed_executor_backend" not in arguments
    cpu_only = {"OMP_NUM_THREADS", "VLLM_ENABLE_V1_MULTIPROCESSING"}
    assert not (cpu_only | {"ONEDNN_PRIMITIVE_CACHE_CAPACITY"}) & set(environment)


def test_libraries_keep_their_files_in_our_cache_folder_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("VLLM_CACHE_ROOT", "VLLM_CONFIG_ROOT", "TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("REQUERY_CACHE_DIR", "/cache")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    environment = engine_environment(EngineSettings(), "cuda")
    assert {Path(environment[name]).parent for name in names} == {Path("/cache")}
    for name in names:
        monkeypatch.setenv(name, f"/tmp/{name}")
    environment = engine_environment(EngineSettings(), "cuda")
    assert {name: environment[name] for name in names} == {name: f"/tmp/{name}" for name in names}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_nothing_is_reported_or_fetched_on_any_device(device: loading.Device) -> None:
    arguments = engine_arguments(MANIFEST, Path("/m"), EngineSettings(), device)
    environment = engine_environment(EngineSettings(), device)
    assert environment["VLLM_NO_USAGE_STATS"] == environment["HF_HUB_OFFLINE"] == "1"
    assert arguments["trust_remote_code"] is False
    assert arguments["disable_log_stats"] is True


def test_chosen_sizes_win_over_defaults() -> None:
    settings = EngineSettings(kv_cache_bytes=2**26, max_sequences=7)
    arguments = engine_arguments(MANIFEST, Path("/m"), settings, "cpu")
    assert arguments["kv_cache_memory_bytes"] == 2**26
    assert arguments["max_num_seqs"] == 7


@pytest.mark.parametrize(
    ("text", "limit"),
    [("max 100000", None), ("150000 100000", 1), ("50000 100000", 1), ("100000000 100000", None)],
)
def test_a_container_quota_bounds_the_cores(tmp_path: Path, text: str, limit: int | None) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text(text + "\n")
    affinity = len(os.sched_getaffinity(0))
    assert available_cores(quota) == (affinity if limit is None else min(limit, affinity))


def test_cores_without_a_control_group(tmp_path: Path) -> None:
    assert available_cores(tmp_path / "none") == len(os.sched_getaffinity(0))


def test_device_is_cpu_without_the_cuda_build(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    assert detect_device() == "cpu"


def test_device_is_cpu_when_every_gpu_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "distribution", lambda name: None)
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == "/dev/nvidiactl")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert detect_device() == "cuda"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert detect_device() == "cpu"


def test_a_folder_without_a_model_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match="materialise it again"):
        load_engine(MANIFEST, tmp_path)


def test_importing_the_engine_imports_neither_torch_nor_vllm() -> None:
    code = (
        "import sys, service.engine.loading; "
        "print([m for m in ('torch', 'vllm', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("extensions", [True, False])
def test_the_worker_gets_an_extension_that_vllm_can_import(*, extensions: bool) -> None:
    settings = EngineSettings(extensions=extensions)
    arguments = engine_arguments(MANIFEST, Path("/m"), settings, "cpu")
    module, _, name = arguments["worker_extension_cls"].rpartition(".")
    extension = getattr(import_module(module), name)
    assert callable(extension.end_with_parent)
    assert hasattr(extension, "extend") is extensions
    assert hasattr(extension, "given_up") is extensions
