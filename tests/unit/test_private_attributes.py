"""Every private attribute of a dependency that is used, and that the installed release has it.

After an upgrade this says at once what has been renamed or removed. What happens then at run time:
vLLM's are left out with a warning (``test_vllm.py``); of the others the upper bounds in
``pyproject.toml`` admit no release that has not been tested.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

VLLM = """
v1/engine/async_llm AsyncLLM: engine_core output_handler errored shutdown collective_rpc
v1/engine/core_client MPClient: resources
v1/engine/core_client AsyncMPClient: get_output_async
v1/engine/core_client BackgroundResources: ctx input_socket output_socket
v1/engine/exceptions -: EngineDeadError EngineGenerateError
inputs/engine -: tokens_input
sampling_params SamplingParams: logprob_token_ids flat_logprobs skip_clone
v1/worker/gpu_model_runner GPUModelRunner: get_model sampler vllm_config lora_config
v1/worker/gpu_model_runner GPUModelRunner: speculative_config uses_mrope input_batch query_start_loc
v1/worker/gpu_input_batch InputBatch: num_reqs req_ids
v1/utils CpuGpuBuffer: np
v1/sample/sampler Sampler: compute_logprobs gather_specific_token_logprobs
v1/outputs LogprobsTensors: logprob_token_ids logprobs
config/vllm VllmConfig: model_config compilation_config
config/model ModelConfig: enforce_eager
config/compilation CompilationConfig: static_forward_context
forward_context -: get_forward_context
forward_context ForwardContext: attn_metadata
v1/attention/backends/cpu_attn CPUAttentionBackendImpl: sinks alibi_slopes use_zentorch_sdpa
v1/attention/backends/cpu_attn CPUAttentionBackendImpl: kv_cache_dtype scale sliding_window
v1/attention/backends/cpu_attn CPUAttentionBackendImpl: logits_soft_cap
v1/attention/backends/cpu_attn CPUAttentionMetadata: slot_mapping query_start_loc seq_lens causal
v1/attention/backends/cpu_attn CPUAttentionMetadata: block_table scheduler_metadata dynamic_causal
v1/attention/backends/cpu_attn -: isa
model_executor/layers/attention/attention Attention: impl kv_cache layer_name num_heads num_kv_heads
model_executor/layers/attention/attention Attention: head_size query_quant
model_executor/layers/layernorm RMSNorm: has_weight variance_size_override variance_epsilon weight
model_executor/layers/rotary_embedding/base RotaryEmbeddingBase: cos_sin_cache is_neox_style
model_executor/layers/linear LinearBase: tp_size
model_executor/layers/linear ColumnParallelLinear: input_size_per_partition
model_executor/layers/linear ColumnParallelLinear: output_size_per_partition
model_executor/layers/vocab_parallel_embedding VocabParallelEmbedding: embedding_dim tp_size
model_executor/layers/logits_processor LogitsProcessor: soft_cap scale
model_executor/layers/utils -: cpu_linear
model_executor/layers/activation -: SiluAndMul silu_and_mul
model_executor/models/llama LlamaForCausalLM: model lm_head logits_processor compute_logits
model_executor/models/llama LlamaModel: embed_tokens layers norm
model_executor/models/llama LlamaDecoderLayer: self_attn mlp input_layernorm
model_executor/models/llama LlamaDecoderLayer: post_attention_layernorm
model_executor/models/llama LlamaAttention: qkv_proj o_proj rotary_emb attn
model_executor/models/llama LlamaMLP: gate_up_proj down_proj act_fn
_custom_ops -: rms_norm fused_add_rms_norm rotary_embedding cpu_attn_reshape_and_cache
_custom_ops -: cpu_attention_with_kv_cache
"""
UVICORN = """
server Server: _serve startup on_tick shutdown handle_exit servers lifespan should_exit started
server ServerState: connections tasks default_headers
protocols/http/httptools_impl -: STATUS_LINE
protocols/http/httptools_impl HttpToolsProtocol: cycle pipeline flow connections scope app loop
protocols/http/httptools_impl HttpToolsProtocol: parser transport timeout_keep_alive shutdown
protocols/http/httptools_impl HttpToolsProtocol: _unset_keepalive_if_required on_response_complete
protocols/http/httptools_impl HttpToolsProtocol: timeout_keep_alive_handler on_headers_complete
protocols/http/httptools_impl RequestResponseCycle: keep_alive response_started response_complete
protocols/http/httptools_impl RequestResponseCycle: disconnected message_event more_body scope flow
protocols/http/httptools_impl RequestResponseCycle: default_headers transport on_response
protocols/http/httptools_impl RequestResponseCycle: waiting_for_100_continue chunked_encoding
"""
REDIS = """
asyncio/cluster RedisCluster: _initialize initialize nodes_manager get_default_node get_primaries
asyncio/cluster NodesManager: aclose nodes_cache startup_nodes
asyncio/sentinel SentinelConnectionPool: sentinel_manager
asyncio/sentinel Sentinel: aclose
"""
TRL = """
trainer/grpo_trainer GRPOTrainer: _get_per_token_logps_and_entropies _metrics compute_loss
trainer/grpo_trainer GRPOTrainer: rollout_func temperature max_completion_length
"""
TRANSFORMERS = """
trainer Trainer: _load_from_checkpoint
"""
USED = [
    (package, *line.split(": "))
    for package, lines in {
        "vllm": VLLM, "uvicorn": UVICORN, "redis": REDIS, "trl": TRL, "transformers": TRANSFORMERS,
    }.items()
    for line in lines.strip().splitlines()
]  # fmt: skip


@cache
def tree(package: str, module: str) -> ast.Module:
    """The source of a module, which is not imported."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    path = Path(spec.submodule_search_locations[0]) / f"{module}.py"
    return ast.parse(path.read_text(encoding="utf-8"))


def names(part: ast.AST) -> set[str]:
    """All names that are defined in a part of a module, and attributes that it mentions."""
    found = set()
    for node in ast.walk(part):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)  # a slot, a buffer
    return found


@pytest.mark.parametrize(("package", "place", "attributes"), USED)
def test_the_installed_release_has_it(package: str, place: str, attributes: str) -> None:
    module, name = place.split()
    part: ast.AST = tree(package, module)
    if name != "-":
        classes = {n.name: n for n in ast.walk(part) if isinstance(n, ast.ClassDef)}
        assert name in classes, f"{package}/{module}.py has no class {name}"
        part = classes[name]
    missing = set(attributes.split()) - names(part)
    assert not missing, f"{package}/{module}.py, {name}: {sorted(missing)}"


def test_an_attribute_that_is_gone_is_named() -> None:
    with pytest.raises(AssertionError, match=r"vllm/v1/utils.py, CpuGpuBuffer: \['numpy_view'\]"):
        test_the_installed_release_has_it("vllm", "v1/utils CpuGpuBuffer", "np numpy_view")
