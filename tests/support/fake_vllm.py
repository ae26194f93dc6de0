"""A vLLM in miniature, in this process: an ``AsyncLLM`` over the parts of :mod:`vllm_parts`.

Import it only where torch is there. Every private attribute that the service uses can be taken away
or changed, while the engine itself goes on working.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from model_store.manifest import DecodingSpec
from model_store.prompt import LabelIds
from service.engine.matrices import MatrixPlan
from service.engine.vllm import VllmEngine
from service.engine.worker.extension import WorkerExtension
from service.engine.worker.parent_watch import ParentWatch
from tests.support.vllm_parts import (
    HIDDEN,
    SEQUENCES,
    VOCABULARY,
    LlamaForCausalLM,
    Runner,
    kernels,
)

LABELS = LabelIds(relevant=7, irrelevant=3)


class TinyPrompts:
    """As much of a prompt format as an engine uses, for eleven tokens."""

    labels = LABELS

    def rewrite_prompt(self, query: str) -> list[int]:
        return [1, *(byte % VOCABULARY for byte in query.encode()[:4]), 2]

    def tag_prompt(self, query: str, rewrite: str) -> list[int]:
        return [*self.rewrite_prompt(query), *(byte % VOCABULARY for byte in rewrite.encode()[:4])]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


class View:
    """An object of which some attributes are missing, or give something else.

    Args:
        of: the object; what is set on the view is set on it.
        changes: what takes the place of attributes, by their path (``a.b``); ``None`` for nothing.
    """

    def __init__(self, of: Any, changes: dict[str, Callable[[Any], Any] | None]) -> None:
        vars(self).update(_of=of, _changes=changes)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._of, name)
        changes = self._changes
        if name in changes:
            if changes[name] is None:
                raise AttributeError(f"no attribute {name!r}")
            return changes[name](found)
        below = {
            path.partition(".")[2]: change
            for path, change in changes.items()
            if path.partition(".")[0] == name
        }
        return View(found, below) if below else found

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._of, name, value)


class EngineDeadError(Exception):
    """As vLLM's."""


class Process:
    """As much of the engine core's process as is used."""

    pid = os.getpid()

    def __init__(self) -> None:
        self.ended = False

    def kill(self) -> None:
        self.ended = True

    def join(self, timeout: float) -> None:
        assert self.ended


class AsyncLLM:
    """Batches what is asked, one step after the other, in a task ``output_handler``."""

    fake: FakeVllm

    def __init__(self, arguments: SimpleNamespace) -> None:
        self.errored = False
        self.shut_down = False
        self.dtype = getattr(arguments, "dtype", None)
        self.sockets = [SimpleNamespace(close=self._close_socket, open=True) for _ in range(2)]
        self._runner = Runner(self.fake.model())
        module, _, name = arguments.worker_extension_cls.rpartition(".")
        extension = getattr(import_module(module), name)
        self.worker = type("Worker", (_Unwatched, extension), {"model_runner": self._runner})()
        self.fake.change_worker(self.worker)
        self.engine_core: Any = SimpleNamespace(
            get_output_async=self._get_output,
            resources=SimpleNamespace(
                input_socket=self.sockets[0],
                output_socket=self.sockets[1],
                ctx=SimpleNamespace(term=lambda: None),
            ),
        )
        self.output_handler: Any = None
        self._asked: dict[str, _Request] = {}
        self.fake.processes.append(Process())
        self.fake.change_llm(self)
        self.fake.engines.append(self)

    @classmethod
    def from_engine_args(cls, arguments: SimpleNamespace) -> AsyncLLM:
        return cls(arguments)

    async def collective_rpc(self, name: str, args: Sequence[Any] = ()) -> list[Any]:
        return [getattr(self.worker, name)(*args)]

    async def generate(self, prompt: list[int], params: Any, name: str) -> AsyncIterator[Any]:
        if self.errored:
            raise EngineDeadError
        request = self._asked[name] = _Request(prompt, params)
        if self._steps is None or self._steps.done():
            self._steps = asyncio.create_task(self._run())
        yield await request.answer

    def shutdown(self, timeout: float) -> None:
        assert timeout == 0
        self.shut_down = True

    _steps: asyncio.Task[None] | None = None

    async def _run(self) -> None:
        try:
            while self._asked:
                await asyncio.sleep(0)  # so that what is asked together is one batch
                self._step(dict(list(self._asked.items())[:SEQUENCES]))
                await getattr(self.engine_core, "get_output_async", self._get_output)()
        except Exception:  # noqa: BLE001 - as an engine core, which dies of any
            self.errored = True
            for request in self._asked.values():
                request.answer.set_exception(EngineDeadError())

    def _step(self, batch: dict[str, _Request]) -> None:
        _, logits = self._runner.step({name: one.new() for name, one in batch.items()})
        asked = {row: one.params.logprob_token_ids for row, one in enumerate(batch.values())}
        temperatures = torch.ones(len(batch))
        drawn, found = self._runner.sampler(logits, temperatures, asked)
        for row, (name, one) in enumerate(batch.items()):
            ids, values = found.logprob_token_ids[row].tolist(), found.logprobs[row].tolist()
            if one.drew(int(drawn[row]), dict(zip(ids, values, strict=True))):
                self._runner.forget(name)
                del self._asked[name]

    async def _get_output(self) -> None:
        """The outputs of a step, which :meth:`_step` has handed out."""

    def _close_socket(self, linger: int) -> None:
        self.sockets.pop().open = False


class _Request:
    def __init__(self, prompt: list[int], params: Any) -> None:
        self.params = params
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._prompt = prompt
        self._drawn: list[int] = []
        self._logprobs: list[dict[int, Any]] = []

    def new(self) -> list[int]:
        return self._drawn[-1:] or self._prompt

    def drew(self, token: int, logprobs: dict[int, float]) -> bool:
        """Whether it has ended with this token."""
        self._drawn.append(token)
        self._logprobs.append({id_: SimpleNamespace(logprob=p) for id_, p in logprobs.items()})
        stopped = token in self.params.stop_token_ids
        if not stopped and len(self._drawn) < self.params.max_tokens:
            return False
        reason = "stop" if stopped else "length"
        completion = SimpleNamespace(
            token_ids=self._drawn, logprobs=self._logprobs, finish_reason=reason
        )
        self.answer.set_result(SimpleNamespace(outputs=[completion]))
        return True


class _Unwatched:
    """A worker that lives in the test's own process, whose signals are its own business."""

    def end_with_parent(self) -> None:
        pass


class FakeVllm:
    """What ``import vllm`` finds.

    Attributes:
        change_worker: called with each engine's worker.
        change_llm: called with each engine.
        engines: all that were started.
        processes: that they have started.
        context: of the forward pass.
    """

    def __init__(self) -> None:
        self.change_worker: Callable[[Any], object] = lambda _: None
        self.change_llm: Callable[[Any], object] = lambda _: None
        self.engines: list[AsyncLLM] = []
        self.processes: list[Process] = []
        self.context: Any = SimpleNamespace(attn_metadata=None)

    def model(self) -> LlamaForCausalLM:
        model = LlamaForCausalLM()
        vars(model)["logits_processor"] = SimpleNamespace(scale=1.0, soft_cap=None)
        # Tags that are well apart.
        model.lm_head.weight.mul_(4)
        # As of a version: numbers of bfloat16.
        model.to(torch.bfloat16).float()
        vars(model.lm_head)["embedding_dim"] = HIDDEN
        self.context = model.context
        return model

    def engine(self, *, extensions: bool = True, matrices: MatrixPlan | None = None) -> VllmEngine:
        """An engine that has not been started."""
        prompts: Any = TinyPrompts()
        extension = WorkerExtension if extensions else ParentWatch
        return VllmEngine(
            prompts=prompts,
            decoding=DecodingSpec(temperatures=(0.0, 0.0, 0.0), max_tokens=4),
            max_prompt_tokens=12,
            stop_ids=[LABELS.relevant, LABELS.irrelevant],
            arguments={"worker_extension_cls": f"{extension.__module__}.{extension.__qualname__}"},
            environment={},
            extensions=extensions,
            matrices=matrices,
        )

    def children(self) -> list[Process]:
        """As ``multiprocessing.active_children``."""
        return [process for process in self.processes if not process.ended]


def install(monkeypatch: pytest.MonkeyPatch) -> FakeVllm:
    """Have ``vllm`` be the fake, for a test."""
    fake = FakeVllm()
    contents: dict[str, dict[str, Any]] = {
        "vllm": {},
        "vllm.engine": {},
        "vllm.engine.arg_utils": {"AsyncEngineArgs": SimpleNamespace},
        "vllm.forward_context": {"get_forward_context": lambda: fake.context},
        "vllm.inputs": {},
        "vllm.inputs.engine": {"tokens_input": list},
        "vllm.sampling_params": {
            "SamplingParams": SimpleNamespace,
            "RequestOutputKind": SimpleNamespace(FINAL_ONLY=2),
        },
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.async_llm": {"AsyncLLM": type("AsyncLLM", (AsyncLLM,), {"fake": fake})},
        "vllm.v1.engine.exceptions": {
            "EngineDeadError": EngineDeadError,
            "EngineGenerateError": EngineDeadError,
        },
    }
    for name, attributes in contents.items():
        module = ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(torch.ops, "_C", kernels())
    monkeypatch.setattr(multiprocessing, "active_children", fake.children)
    return fake
