"""The engine on a vLLM in miniature whose private attributes change: it starts and answers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

torch = pytest.importorskip("torch")

from service.engine import matrices as matrices_module  # noqa: E402 - torch may not be there
from service.engine.matrices import AGREE, MatrixPlan  # noqa: E402
from service.engine.protocol import Candidate  # noqa: E402 - torch may not be there
from service.engine.vllm import VllmEngine  # noqa: E402
from service.engine.worker.errors import LayoutChanged  # noqa: E402
from tests.support.fake_vllm import FakeVllm, View, install  # noqa: E402
from tests.support.vllm_parts import Sampler  # noqa: E402

PAIRS = [("led", "led bulb"), ("led", "tent"), ("steel stake", "stake"), ("hose", "garden hose")]

Changes = dict[str, Callable[[Any], Any] | None]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeVllm]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more would only wait for each other
    yield install(monkeypatch)
    torch.set_num_threads(threads)


async def started(engine: VllmEngine) -> dict[str, Any]:
    """Start an engine; its warnings, of which there is one of each kind at most."""
    with capture_logs() as events:
        await engine.start()
    warnings = [event for event in events if event["log_level"] == "warning"]
    found = {event["event"]: event for event in warnings}
    assert len(found) == len(warnings)
    return {name: event.get("left_out") or event["reason"] for name, event in found.items()}


async def answers(engine: VllmEngine) -> tuple[list[Candidate], list[float]]:
    """Candidates of a query, and tags; the engine is closed after that."""
    candidates = [candidate async for candidate in engine.generate("steele stake")]
    tags = await engine.tag(PAIRS)
    await engine.close()
    return candidates, tags


_plain: list[tuple[list[Candidate], list[float]]] = []
"""What an engine without the extension answers, once it has been asked."""


async def right(fake: FakeVllm, engine: VllmEngine) -> bool:
    """Whether a started engine answers as one without the extension; closes it."""
    found, tags = await answers(engine)
    if not _plain:
        fake.change_worker = fake.change_llm = lambda _: None
        plain = fake.engine(extensions=False)
        await plain.start()
        _plain.append(await answers(plain))
    expected, expected_tags = _plain[0]
    assert tags == pytest.approx(expected_tags, abs=1e-3)
    assert [(c.text, c.token_ids) for c in found] == [(c.text, c.token_ids) for c in expected]
    assert [c.relevance for c in found] == [
        None if c.relevance is None else pytest.approx(c.relevance, abs=1e-3) for c in expected
    ]
    return max(expected_tags) - min(expected_tags) > 0.1


async def test_all_parts_are_at_work_where_nothing_has_changed(fake: FakeVllm) -> None:
    engine = fake.engine()
    assert await started(engine) == {}
    (llm,) = fake.engines
    seen, saved = llm.worker.rows_shared()
    assert seen > saved > 0
    assert llm.worker.direct_pass.tried
    assert llm.worker.shared_forward.tried == {False, True}
    assert await right(fake, engine)
    assert llm.sockets == []
    assert fake.processes[0].ended


async def test_without_extensions_nothing_private_is_used(fake: FakeVllm) -> None:
    def strip(llm: Any) -> None:
        del llm.engine_core.resources, llm.engine_core.get_output_async

    def take(worker: Any) -> None:
        worker.model_runner = None
        assert not hasattr(worker, "extend")

    fake.change_worker, fake.change_llm = take, strip
    engine = fake.engine(extensions=False)
    assert await started(engine) == {}
    before = engine.progress
    assert before > 0
    await engine.tag(PAIRS)
    assert engine.progress == before + len(PAIRS)
    assert engine.effort > 0
    assert await right(fake, engine)
    assert fake.engines[0].shut_down
    assert fake.processes[0].ended


ALL = {"kernels", "label_logits", "shared_rows"}
MISSING: list[tuple[str, set[str]]] = [
    ("get_model", ALL),
    ("sampler", {"label_logits"}),
    ("sampler.compute_logprobs", {"label_logits"}),
    ("sampler.gather_specific_token_logprobs", {"label_logits"}),
    ("vllm_config", {"shared_rows"}),
    ("vllm_config.model_config", {"shared_rows"}),
    ("vllm_config.model_config.enforce_eager", {"shared_rows"}),
    ("vllm_config.compilation_config.static_forward_context", {"shared_rows"}),
    ("lora_config", {"shared_rows"}),
    ("speculative_config", {"shared_rows"}),
    ("uses_mrope", {"shared_rows"}),
    ("input_batch", {"shared_rows"}),
    ("input_batch.num_reqs", {"shared_rows"}),
    ("input_batch.req_ids", {"shared_rows"}),
    ("query_start_loc", {"shared_rows"}),
    ("query_start_loc.np", {"shared_rows"}),
]


def see(changes: Changes) -> Callable[[Any], None]:
    """Has a worker see its runner with changes, while the runner works as before."""

    def change(worker: Any) -> None:
        worker.model_runner = View(worker.model_runner, changes)

    return change


@pytest.mark.parametrize(("path", "parts"), MISSING, ids=[path for path, _ in MISSING])
async def test_a_runner_without_an_attribute(fake: FakeVllm, path: str, parts: set[str]) -> None:
    fake.change_worker = see({path: None})
    engine = fake.engine()
    warnings = await started(engine)
    assert warnings.pop("engine_slower").keys() == parts
    assert warnings.keys() == ({"relevance_rounded"} if path == "get_model" else set())
    assert len(fake.engines) == 1
    assert await right(fake, engine)


async def test_a_worker_without_its_runner(fake: FakeVllm) -> None:
    def rename(worker: Any) -> None:
        del type(worker).model_runner

    fake.change_worker = rename
    engine = fake.engine()
    assert (await started(engine))["engine_slower"].keys() == ALL
    assert await right(fake, engine)


def later(starts: Any) -> Any:
    return starts + 1


def turned(names: list[str]) -> list[str]:
    return [*names[1:], *names[:1]]


OTHER_NUMBERS: list[tuple[Changes, set[str]]] = [
    ({"query_start_loc.np": later}, {"shared_rows"}),
    ({"query_start_loc.np": lambda starts: starts * 0 + starts.max()}, {"shared_rows"}),
    ({"input_batch.num_reqs": lambda count: count - 1}, {"shared_rows", "direct_pass"}),
    ({"input_batch.req_ids": lambda names: names[:1]}, {"shared_rows"}),
    ({"sampler.compute_logprobs": lambda own: lambda logits: own(logits) / 2}, {"label_logits"}),
]


@pytest.mark.parametrize(("changes", "parts"), OTHER_NUMBERS)
async def test_a_runner_that_gives_other_numbers(
    fake: FakeVllm, changes: Changes, parts: set[str]
) -> None:
    fake.change_worker = see(changes)
    engine = fake.engine()
    warnings = await started(engine)
    assert warnings.keys() == {"engine_slower"}
    assert warnings["engine_slower"].keys() <= parts
    assert await right(fake, engine)


async def test_names_in_another_order_than_their_rows(fake: FakeVllm) -> None:
    """Sequences that are still the same keep one number, whichever of the names it is under."""
    fake.change_worker = see({"input_batch.req_ids": turned})
    engine = fake.engine()
    await started(engine)
    assert await right(fake, engine)


class Renamed(Sampler):
    """Computes and gathers by methods of other names."""

    def __call__(self, logits: Any, temperatures: Any, asked: Any) -> Any:
        drawn = logits.argmax(-1)
        return drawn, Sampler().gather_specific_token_logprobs(
            Sampler.compute_logprobs(logits), asked, drawn
        )


class ComputesElsewhere(Sampler):
    """Has ``compute_logprobs`` still, and does not call it."""

    def __call__(self, logits: Any, temperatures: Any, asked: Any) -> Any:
        drawn = logits.argmax(-1)
        raw = Sampler.compute_logprobs(logits)
        return drawn, self.gather_specific_token_logprobs(raw, asked, drawn)


class GathersElsewhere(Sampler):
    """Has ``gather_specific_token_logprobs`` still, and does not call it."""

    def __call__(self, logits: Any, temperatures: Any, asked: Any) -> Any:
        drawn = logits.argmax(-1)
        raw = self.compute_logprobs(logits)
        return drawn, Sampler().gather_specific_token_logprobs(raw, asked, drawn)


@pytest.mark.parametrize(
    ("sampler", "parts"),
    [(Renamed, None), (ComputesElsewhere, {"label_logits"}), (GathersElsewhere, {"all"})],
)
async def test_a_sampler_that_calls_other_methods(
    fake: FakeVllm, sampler: type[Sampler], parts: set[str] | None
) -> None:
    def change(worker: Any) -> None:
        worker.model_runner.sampler = sampler()

    fake.change_worker = change
    engine = fake.engine()
    warnings = await started(engine)
    assert warnings.keys() == (set() if parts is None else {"engine_slower"})
    if parts is not None:
        assert warnings["engine_slower"].keys() == parts
    # An engine core that dies of the extension is replaced by one without it, for good.
    assert len(fake.engines) == (2 if parts == {"all"} else 1)
    assert await right(fake, engine)
    if parts == {"all"}:
        assert await started(engine) == {}
        await engine.close()


async def test_an_extension_that_changes_tags_is_left_out(fake: FakeVllm) -> None:
    """Whatever it was that made them differ."""

    def change(worker: Any) -> None:
        def flip(*_: Any) -> None:
            worker.model_runner.model.lm_head.weight.neg_()

        worker.compute_labels_exactly = flip

    fake.change_worker = change
    engine = fake.engine()
    warnings = await started(engine)
    assert "tags differ by" in warnings["engine_slower"]["all"]
    assert len(fake.engines) == 2
    assert await right(fake, engine)


def no_context() -> None:
    del vars(sys.modules["vllm.forward_context"])["get_forward_context"]


def empty_context() -> None:
    vars(sys.modules["vllm.forward_context"])["get_forward_context"] = object


def no_kernel() -> None:
    del torch.ops._C.rotary_embedding


def other_kernel() -> None:
    torch.ops._C.silu_and_mul.default = lambda out, x: out.zero_()


@pytest.mark.parametrize("change", [no_context, empty_context, no_kernel, other_kernel])
async def test_kernels_and_context_that_have_changed(
    fake: FakeVllm, change: Callable[[], None]
) -> None:
    change()
    engine = fake.engine()
    assert (await started(engine))["engine_slower"].keys() == {"direct_pass"}
    assert await right(fake, engine)


def no_head(model: Any) -> None:
    del vars(model)["logits_processor"]


async def test_a_head_of_another_kind_is_told_once(fake: FakeVllm) -> None:
    fake.change_worker = lambda worker: no_head(worker.model_runner.model)
    engine = fake.engine()
    warnings = await started(engine)
    assert list(warnings) == ["relevance_rounded"]
    assert await right(fake, engine)


def drop(path: str) -> Callable[[Any], None]:
    *parents, name = path.split(".")

    def change(llm: Any) -> None:
        of = llm
        for parent in parents:
            of = getattr(of, parent)
        delattr(of, name)

    return change


SUPERVISED = [
    "engine_core.get_output_async", "engine_core.resources", "engine_core.resources.ctx",
    "engine_core.resources.input_socket", "output_handler",
]  # fmt: skip


@pytest.mark.parametrize("path", SUPERVISED)
async def test_an_engine_without_an_attribute_is_supervised_less(fake: FakeVllm, path: str) -> None:
    fake.change_llm = drop(path)
    engine = fake.engine()
    warnings = await started(engine)
    assert list(warnings) == ["engine_unsupervised"]
    assert all(name.startswith(path) for name in warnings["engine_unsupervised"])
    assert engine.progress > 0
    assert await right(fake, engine)
    assert fake.processes[0].ended


async def test_an_engine_whose_process_is_not_found(fake: FakeVllm) -> None:
    fake.change_llm = lambda _: fake.processes.clear()
    engine = fake.engine()
    warnings = await started(engine)
    assert list(warnings["engine_unsupervised"]) == ["process"]
    assert engine.core_pid is None
    # It must not look as if it stood still.
    assert 0 < engine.effort < engine.effort
    assert await right(fake, engine)


async def test_closing_never_raises(fake: FakeVllm) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("vLLM's own end fails")

    def change(llm: Any) -> None:
        llm.shutdown = fails
        llm.engine_core.resources.ctx.term = fails

    fake.change_llm = change
    engine = fake.engine()
    await started(engine)
    await engine.close()
    await engine.close()
    assert fake.processes[0].ended
    assert not engine.healthy


def plan(folder: Path, wanted: matrices_module.Wanted = "auto") -> MatrixPlan:
    (folder / "config.json").write_text("{}")
    return MatrixPlan(
        wanted=wanted, model=folder, digest="d", packable=True, cache=folder / "cache", threads=1
    )


@pytest.fixture
def fast_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """float16 is the fastest, then bfloat16."""
    took = {"bfloat16": [2.0], "float32": [3.0], "float16": [1.0]}
    monkeypatch.setattr(matrices_module, "timed", lambda *_: took)


@pytest.mark.usefixtures("fast_float16")
async def test_packed_matrices_give_the_same_answers_also_after_a_restart(
    fake: FakeVllm, tmp_path: Path
) -> None:
    engine = fake.engine(matrices=plan(tmp_path))
    with capture_logs() as events:
        await engine.start()
    (event,) = [event for event in events if event["event"] == "engine_matrices"]
    assert (event["matrices"], event["source"]) == ("float16", "timed")
    assert event["apart"] < AGREE
    await engine.close()
    assert await started(engine) == {}
    assert engine.matrices == "float16"
    assert [llm.worker.matrices_packed for llm in fake.engines] == [True, True]
    assert fake.engines[0].dtype == "float32"
    assert await right(fake, engine)
    # The next process neither times nor asks.
    assert plan(tmp_path).choose().source == "cached"


def moves_tags(worker: Any) -> None:
    pack = worker.pack_matrices

    def pack_wrongly(kind: str) -> None:
        pack(kind)
        worker.model_runner.model.lm_head.cpu_linear = lambda rows, weight, bias: -rows @ weight.T

    worker.pack_matrices = pack_wrongly


def cannot_pack(worker: Any) -> None:
    def fail(_: str) -> None:
        raise LayoutChanged("half changed")

    worker.pack_matrices = fail


@pytest.mark.usefixtures("fast_float16")
@pytest.mark.parametrize(
    ("change", "reason"), [(moves_tags, "tags differ by"), (cannot_pack, "half changed")]
)
async def test_matrices_that_fail_are_replaced_by_vllms_own(
    fake: FakeVllm, tmp_path: Path, change: Callable[[Any], None], reason: str
) -> None:
    def first_alone(worker: Any) -> None:
        if not fake.engines:
            change(worker)

    fake.change_worker = first_alone
    engine = fake.engine(matrices=plan(tmp_path))
    assert reason in (await started(engine))["matrices_refused"]
    assert engine.matrices == "bfloat16"
    assert [llm.dtype for llm in fake.engines] == ["float32", "bfloat16"]
    assert not fake.engines[1].worker.matrices_packed
    assert await right(fake, engine)
    assert plan(tmp_path).choose().matrices == "bfloat16"
