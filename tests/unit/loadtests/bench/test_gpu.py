from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file

from loadtests.bench.gpu import run
from loadtests.bench.gpu.floors import Peaks, miss, step
from loadtests.bench.gpu.shapes import (
    QWEN3_06B,
    QWEN3_8B,
    SMOLLM2_135M,
    Shape,
    is_linear,
)
from loadtests.bench.gpu.weights import quantise, widened, write_random
from model_store.prompt import PromptFormat
from tests.support.model_versions import PROMPT, byte_tokenizer

TINY = Shape(
    "tiny", "Qwen3ForCausalLM", "qwen3", hidden=8, layers=2, heads=2, kv_heads=1, head_dim=4,
    inner=16, vocabulary=300, tied=False, normed_heads=True, rope_theta=1e4, positions=64,
)  # fmt: skip
PEAKS = Peaks(bandwidth=1e12, bf16=1e15, fp8=2e15)


@pytest.mark.parametrize(
    ("shape", "parameters"),
    # As published: 135 M, 0.6 B (0.44 B of them not embeddings) and 8.2 B (6.95 B).
    [(SMOLLM2_135M, 134_515_008), (QWEN3_06B, 596_049_920), (QWEN3_8B, 8_190_735_360)],
)
def test_shapes_have_as_many_parameters_as_the_models(shape: Shape, parameters: int) -> None:
    assert shape.parameters == parameters
    assert QWEN3_8B.linear_parameters == pytest.approx(6.95e9, rel=0.001)
    assert QWEN3_8B.kv_values_per_token == 2 * 36 * 8 * 128


def test_a_step_of_one_row_reads_every_weight_once() -> None:
    floor = step(QWEN3_8B, "bf16", PEAKS, rows=1, context=0)
    weights = 2 * (QWEN3_8B.linear_parameters + QWEN3_8B.head_parameters)
    assert floor.by_bytes == pytest.approx(weights / 1e12)
    assert floor.by_operations == pytest.approx(weights / 1e15)
    assert floor.seconds == floor.by_bytes


def test_keys_and_values_are_read_for_each_row() -> None:
    shape = replace(QWEN3_06B, layers=1)
    few, many = (step(shape, "bf16", PEAKS, rows=r, context=100).by_bytes for r in (1, 11))
    assert (many - few) * 1e12 == pytest.approx(10 * 100 * 2 * 8 * 128 * 2)


def test_fp8_halves_the_layers_and_leaves_the_head() -> None:
    bf16, fp8 = (step(QWEN3_8B, p, PEAKS, rows=1, context=0) for p in ("bf16", "fp8"))
    assert bf16.by_bytes - fp8.by_bytes == pytest.approx(QWEN3_8B.linear_parameters / 1e12)
    assert fp8.by_operations == pytest.approx(
        (2 * QWEN3_8B.linear_parameters / 2e15) + 2 * QWEN3_8B.head_parameters / 1e15
    )


def test_many_rows_are_bound_by_operations_and_few_by_bytes() -> None:
    few, many = (step(QWEN3_8B, "bf16", PEAKS, rows=r, context=20) for r in (4, 5000))
    assert few.seconds == few.by_bytes
    assert many.seconds == many.by_operations


def test_reading_a_prompt_computes_all_of_its_tokens() -> None:
    one, ten = (step(TINY, "bf16", PEAKS, rows=1, context=10, new=n).by_operations for n in (1, 10))
    linear = 2 * TINY.linear_parameters
    attention = 4 * TINY.layers * TINY.heads * TINY.head_dim
    assert (ten - one) * 1e15 == pytest.approx(9 * linear + attention * (10 * 5 - 10))


def test_a_miss_is_its_prompt_and_a_step_for_each_further_token() -> None:
    prompt = step(QWEN3_8B, "bf16", PEAKS, rows=4, context=9, new=9).seconds
    assert miss(QWEN3_8B, "bf16", PEAKS, rows=4, prompt=9, generated=1) == prompt
    steps = sum(step(QWEN3_8B, "bf16", PEAKS, rows=4, context=9 + i).seconds for i in range(1, 12))
    whole = miss(QWEN3_8B, "bf16", PEAKS, rows=4, prompt=9, generated=12)
    assert whole == pytest.approx(prompt + steps)


@pytest.mark.parametrize("fp8", [False, True])
def test_random_weights_are_a_checkpoint_of_the_shape(tmp_path: Path, fp8: bool) -> None:
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    folder = tmp_path / "model"
    write_random(TINY, folder, tmp_path / "tokenizer.json", fp8=fp8)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    tensors = {
        name: tensor
        for file in set(index["weight_map"].values())
        for name, tensor in load_file(folder / file).items()
    }
    shapes = dict(TINY.tensors())
    assert {n: tuple(t.shape) for n, t in tensors.items() if not n.endswith("_scale")} == shapes
    assert set(tensors) == set(index["weight_map"])
    scales = {name for name in tensors if name.endswith("_scale")}
    assert len(scales) == (2 * 7 if fp8 else 0)
    for name in shapes:
        matrix = torch.float8_e4m3fn if fp8 and is_linear(name) else torch.bfloat16
        assert tensors[name].dtype == matrix
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    assert index["metadata"]["total_size"] == size


def test_quantised_weights_are_the_same_to_three_bits(tmp_path: Path) -> None:
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    write_random(TINY, tmp_path / "a", tmp_path / "tokenizer.json", fp8=False)
    quantise(tmp_path / "a", tmp_path / "b")
    before = load_file(tmp_path / "a/model-00001.safetensors")
    after = load_file(tmp_path / "b/model-00001.safetensors")
    name = "model.layers.1.mlp.down_proj"
    exact = before[f"{name}.weight"].float()
    again = after[f"{name}.weight"].float() * after[f"{name}.weight_scale"]
    # Half a step of three bits, and the least number that there is.
    bound = exact.abs() / 16 + after[f"{name}.weight_scale"] * 2**-9
    assert bool(((again - exact).abs() <= bound * 1.01).all())
    assert json.loads((tmp_path / "b/config.json").read_text())["quantization_config"]


def test_every_id_of_the_vocabulary_can_be_decoded_and_text_is_split_as_before() -> None:
    from tokenizers import Tokenizer

    known = byte_tokenizer()
    wide = Tokenizer.from_str(json.dumps(widened(json.loads(known.to_str()), 300)))
    prompts = PromptFormat(wide, PROMPT)
    assert wide.get_vocab_size() == 300
    assert prompts.encode("x299 rug") == list(
        known.encode(" x299 rug", add_special_tokens=False).ids
    )
    assert prompts.decode([299]) == "x299"


def test_figures_are_set_beside_the_floors() -> None:
    modes = {
        "single": {
            "requests": 5,
            "prompt_tokens_per_request": 36.0,
            "generated_tokens_per_request": 48.0,
            "over_rounds": {"median_ms": {"median": 100.0}},
        },
        "batch": {"requests": 0},
    }
    told = {"peers": {"Requery": {"modes": modes}}}
    found, rows = run.beside_floors(told, QWEN3_8B, "bf16", PEAKS)
    least = miss(QWEN3_8B, "bf16", PEAKS, rows=4, prompt=9.0, generated=12.0)
    assert found["single"]["request_ms"] == pytest.approx(1000 * least)
    assert found["single"]["share_of_floor"] == pytest.approx(least / 0.1)
    assert set(found) == {"single"}
    assert len(rows) == 1


def test_without_a_gpu_nothing_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "detect_device", lambda: "cpu")
    with pytest.raises(typer.Exit):
        run.gpu(tmp_path / "o", PEAKS, shapes=None, precisions=None, seed=0, quick=True)
    assert "no NVIDIA GPU" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
