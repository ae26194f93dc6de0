"""The real base and a random adapter, merged by real processes, checked against the arithmetic."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from model_store.base import find_base
from model_store.materialise import is_materialised, load_prompt_format
from model_store.store import FolderSource, Store, StoredVersion
from tests.support.model_versions import EMBEDDING_ROWS, PROMPT_IDS, write_real_version

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Made:
    """A version that two processes were asked for at the same time."""

    version: StoredVersion
    cache: Path
    source: Path
    answers: list[dict[str, Any]]

    @property
    def folder(self) -> Path:
        return Path(self.answers[0]["folder"])


def ask(source: Path, cache: Path) -> subprocess.Popen[str]:
    """Start ``requery models materialise`` as a user would."""
    command = [sys.executable, "-m", "service.cli", "models", "materialise", "tiny-1", "--json"]
    command += ["--source", str(source), "--cache-dir", str(cache)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("tiny")
    source, cache = root / "source", root / "cache"
    write_real_version(source / "tiny-1")
    processes = [ask(source, cache) for _ in range(2)]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    answers = [json.loads(output) for output, _ in outputs]
    return Made(Store([FolderSource(source)], cache).get("tiny-1"), cache, source, answers)


@pytest.fixture(scope="module")
def models(made: Made) -> tuple[Any, Any, Any]:
    """The base and the base with its adapter unmerged, in float32, and the merged one in bf16."""
    with warnings.catch_warnings():
        # Importing torch, transformers and peft sets off deprecations among themselves.
        warnings.simplefilter("ignore")
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        from model_store.merge import load_base_model

        base_path = find_base(made.version.manifest.base, made.cache)
        base = load_base_model(base_path)
        state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
        unmerged = PeftModel.from_pretrained(base, str(made.source / "tiny-1")).eval()
        merged = AutoModelForCausalLM.from_pretrained(made.folder, dtype=torch.bfloat16).eval()
    return state, unmerged, merged


def test_two_processes_at_once_agree_and_leave_no_trace(made: Made) -> None:
    assert made.answers[0]["folder"] == made.answers[1]["folder"]
    assert is_materialised(made.version, made.cache)
    names = sorted(path.name for path in made.folder.parent.iterdir())
    assert names == [made.folder.name, f"{made.folder.name}.lock"]


def test_the_second_start_only_checks_digests(made: Made) -> None:
    weights = made.folder / "model.safetensors"
    before = weights.stat()
    process = ask(made.source, made.cache)
    output, errors = process.communicate()
    assert json.loads(output)["folder"] == str(made.folder), errors
    after = weights.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_an_engine_can_load_it_as_an_ordinary_model(made: Made) -> None:
    config = json.loads((made.folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "bfloat16"
    assert config["tie_word_embeddings"] is True
    assert "quantization_config" not in config
    assert "auto_map" not in config
    names = {path.name for path in made.folder.iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= names
    assert not names & {"adapter_config.json", "adapter_model.safetensors"}


def test_the_weights_are_base_plus_adapter(made: Made, models: tuple[Any, Any, Any]) -> None:
    import torch

    base, _, _ = models
    adapter_file = made.source / "tiny-1" / "adapter_model.safetensors"
    with (
        safe_open(adapter_file, "pt") as adapter,
        safe_open(made.folder / "model.safetensors", "pt") as merged,
    ):
        assert {merged.get_tensor(name).dtype for name in merged.keys()} == {torch.bfloat16}  # noqa: SIM118 - no mapping
        for name in [
            "model.layers.0.self_attn.q_proj",
            "model.layers.17.self_attn.v_proj",
            "model.layers.29.mlp.down_proj",
        ]:
            a = adapter.get_tensor(f"base_model.model.{name}.lora_A.weight")
            b = adapter.get_tensor(f"base_model.model.{name}.lora_B.weight")
            wanted = base[f"{name}.weight"] + 2.0 * (b @ a)  # lora_alpha / r
            found = merged.get_tensor(f"{name}.weight").float()
            torch.testing.assert_close(found, wanted, rtol=2**-8, atol=1e-6)
            # The adapter matters: the base alone would not pass.
            assert (found - base[f"{name}.weight"]).abs().max() > 0.005


def test_the_trained_token_rows_are_in_the_tied_embedding(
    made: Made, models: tuple[Any, Any, Any]
) -> None:
    import torch

    base, _, model = models
    with (
        safe_open(made.source / "tiny-1" / "adapter_model.safetensors", "pt") as adapter,
        safe_open(made.folder / "model.safetensors", "pt") as merged,
    ):
        rows = adapter.get_tensor(EMBEDDING_ROWS)
        embedding = merged.get_tensor("model.embed_tokens.weight")
        assert "lm_head.weight" not in merged.keys()  # noqa: SIM118 - no mapping
    assert torch.equal(embedding[PROMPT_IDS], rows.bfloat16())
    others = torch.ones(len(embedding), dtype=torch.bool)
    others[PROMPT_IDS] = False
    before = base["model.embed_tokens.weight"]
    assert torch.equal(embedding[others], before[others].bfloat16())
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_the_merged_model_gives_the_unmerged_ones_logits(
    made: Made, models: tuple[Any, Any, Any]
) -> None:
    import torch

    _, unmerged, merged = models
    prompts = load_prompt_format(made.folder, made.version.manifest)
    labels = [prompts.labels.relevant, prompts.labels.irrelevant]
    in_float32 = copy.deepcopy(merged).float()
    for query, rewrite in [("steele stake", "steel stake"), ("3/4 in. pvc pipe", "pvc pipe 20 mm")]:
        # The model's attention rests on the first token: a random row there makes chaos of every
        # rounding, so these sequences start with a token that it knows.
        ids = torch.tensor([[1, *prompts.tag_prompt(query, rewrite)]])
        with torch.inference_mode():
            wanted = unmerged(ids).logits[0]
            stored = in_float32(ids).logits[0]
            served = merged(ids).logits[0].float()
            with unmerged.disable_adapter():
                without = unmerged(ids).logits[0]

        def error(found: Any, wanted: Any = wanted) -> float:
            return float((found - wanted).abs().mean() / wanted.std())

        def tag(logits: Any) -> float:
            return float(logits[-1, labels].softmax(-1)[0])

        # Measured: 0.01 from rounding the weights, 0.06 with bf16 arithmetic (0.05 for the base).
        assert error(stored) < 0.03
        assert error(served) < 0.12
        assert error(without) > 0.2
        assert abs(tag(stored) - tag(wanted)) < 0.02
        assert abs(tag(served) - tag(wanted)) < 0.05


def test_the_tokenizer_is_the_bases(made: Made) -> None:
    prompts = load_prompt_format(made.folder, made.version.manifest)
    assert [prompts.query_id, prompts.rewrite_id] == PROMPT_IDS[:2]
    assert [prompts.labels.relevant, prompts.labels.irrelevant] == PROMPT_IDS[2:]
    for text in ["steel stake", "3/4 in. pvc 1500w", "größe 😀 عربى", "<|im_end|> <filename>"]:
        ids = prompts.encode(text)
        assert prompts.decode(ids) == text
        assert not set(ids) & set(range(17)), "a special token came out of text"


def test_a_wrong_base_is_refused_before_any_work(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "source" / "tiny-1"
    write_real_version(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["base"]["sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    process = ask(tmp_path / "source", tmp_path / "cache")
    output, errors = process.communicate()
    assert process.returncode == 1
    assert output == ""
    assert len(errors.splitlines()) == 1
    assert "not the one this version was trained on" in errors
    assert "Traceback" not in errors


def test_an_adapter_that_does_not_fit_the_base_is_one_clear_line(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    from model_store.store import pack_version

    folder = tmp_path / "source" / "tiny-1"
    manifest = write_real_version(folder)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = "base_model.model.model.layers.3.mlp.up_proj.lora_A.weight"
    tensors[name] = tensors[name][:, :100].copy()
    save_file(tensors, path, metadata={"format": "pt"})
    pack_version(
        folder,
        name="tiny-1",
        base=manifest.base,
        weights=manifest.weights,
        prompt=manifest.prompt,
        decoding=manifest.decoding,
    )
    process = ask(tmp_path / "source", tmp_path / "cache")
    output, errors = process.communicate()
    assert process.returncode == 1
    assert output == ""
    assert len(errors.splitlines()) == 1
    assert "cannot build a model" in errors
    assert "up_proj" in errors
    models = tmp_path / "cache" / "models"
    assert [path.suffix for path in models.iterdir()] == [".lock"]
