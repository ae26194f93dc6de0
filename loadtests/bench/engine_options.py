"""The service's engine arguments, for peers that run the same engine without the service."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_store.manifest import Manifest
from model_store.materialise import load_prompt_format
from model_store.prompt import PromptFormat
from service.config.settings import Settings
from service.engine.loading import (
    Device,
    EngineSettings,
    detect_device,
    engine_arguments,
    engine_environment,
    special_ids,
)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The options that the service starts vLLM with for a version.

    Attributes:
        manifest: of the version.
        folder: its materialised weights.
        device: ``cpu`` or ``cuda``.
        arguments: of ``AsyncEngineArgs``.
        environment: variables for vLLM.
    """

    manifest: Manifest
    folder: Path
    device: Device
    arguments: Mapping[str, Any]
    environment: Mapping[str, str]

    @classmethod
    def of(
        cls, manifest: Manifest, folder: Path, settings: Settings | None = None
    ) -> EngineOptions:
        """By the ``REQUERY_ENGINE_*`` settings; default: those of the environment."""
        settings = settings or Settings()
        chosen = EngineSettings(
            device=settings.device,
            kv_cache_bytes=settings.engine_kv_cache_bytes,
            max_sequences=settings.engine_max_sequences,
            threads=settings.engine_threads,
            compiled=settings.engine_compiled,
            log_level=settings.engine_log_level,
        )
        device = detect_device() if chosen.device == "auto" else chosen.device
        return cls(
            manifest,
            folder,
            device,
            engine_arguments(manifest, folder, chosen, device),
            engine_environment(chosen, device),
        )

    def prompts(self) -> tuple[PromptFormat, list[int]]:
        """The prompt format, and the ids that end a generation."""
        from tokenizers import Tokenizer

        prompts = load_prompt_format(self.folder, self.manifest)
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        return prompts, special_ids(tokenizer, prompts)


_NOT_FOR_A_SERVER = {
    "model": "has an option of its own",
    "skip_tokenizer_init": "its answers are text",
    "worker_extension_cls": "is the service's addition",
    "use_tqdm_on_load": "is a progress bar",
}
"""Arguments that vLLM's own server does not get."""


def server_options(arguments: Mapping[str, Any]) -> list[str]:
    """Engine arguments as options of vLLM's own HTTP server."""
    options: list[str] = []
    for name, value in arguments.items():
        if name in _NOT_FOR_A_SERVER or value is False or value is None:
            continue
        options.append("--" + name.replace("_", "-"))
        if value is not True:
            options.append(str(value))
    return options
