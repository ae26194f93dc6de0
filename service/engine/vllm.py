"""A model version served by vLLM. The only module that imports vllm, and only when one starts.

One code path serves CPU and GPU: what differs is decided in :mod:`service.engine.loading` and
arrives here as engine arguments and environment variables.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import multiprocessing
import os
import tempfile
import threading
import traceback
import warnings
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from functools import cache
from multiprocessing.process import BaseProcess
from typing import Any

import structlog

from model_store.manifest import DecodingSpec
from model_store.prompt import PromptFormat
from service.engine.cpu_time import cpu_seconds
from service.engine.errors import EngineUnavailable
from service.engine.protocol import Candidate
from service.engine.scoring import read_candidate, relevance, within
from service.engine.worker.extension import WorkerExtension

_log = structlog.get_logger(component="engine")

OnTokens = Callable[[int, int], None]
"""Told of each finished engine request: its prompt tokens and its generated tokens."""

_WARM_UP_QUERY = "3/4 in. galvanized steel stake"
_WARM_UP_ROUNDS = 2
"""The first round meets code paths and allocations; the second is what a shopper will see."""
_KILL_SECONDS = 10.0
"""How long to wait for a killed engine core to be gone, with its memory: the kernel may be busy."""

# Environment variables belong to the whole process: one engine is constructed at a time.
_constructing = threading.Lock()


class VllmEngine:
    """One loaded version (:class:`service.engine.protocol.Engine`).

    :meth:`start` after :meth:`close` loads it again, so that a supervisor can replace a dead
    engine core without touching anything that holds the engine.

    Args:
        prompts: the version's prompt format.
        decoding: one candidate is drawn for each of its temperatures.
        max_prompt_tokens: longest prompt, markers included.
        stop_ids: ids that end a generation: both labels and the base's other special tokens,
            which have no place in a rewrite. One that ends by those has no relevance.
        arguments: keyword arguments of vLLM's ``AsyncEngineArgs``.
        environment: variables for vLLM and its engine core, in force while it is constructed.
        on_tokens: see :data:`OnTokens`; warming up is not reported.
    """

    def __init__(
        self,
        *,
        prompts: PromptFormat,
        decoding: DecodingSpec,
        max_prompt_tokens: int,
        stop_ids: Sequence[int],
        arguments: Mapping[str, Any],
        environment: Mapping[str, str],
        on_tokens: OnTokens | None = None,
    ) -> None:
        self._prompts = prompts
        self._decoding = decoding
        self._limit = max_prompt_tokens
        self._stop_ids = frozenset(stop_ids)
        self._arguments = dict(arguments)
        self._environment = dict(environment)
        self._on_tokens = on_tokens
        self._llm: Any = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._ready = False
        self._progress = 0
        self._calls: set[asyncio.Task[Any]] = set()
        """Those that wait for an answer, each for one engine request."""
        self._ids = itertools.count()
        self._rewrite_params: list[Any] = []
        self._tag_params: Any = None

    @property
    def healthy(self) -> bool:
        """Whether it has started and its engine core lives."""
        return self._ready and not self._llm.errored

    @property
    def outstanding(self) -> int:
        """Engine requests that have been made and not answered."""
        return len(self._calls)

    @property
    def progress(self) -> int:
        """Grows with every step whose tokens the engine core reports."""
        return self._progress

    @property
    def effort(self) -> float:
        """CPU seconds that the engine core has used."""
        pid = self.core_pid
        return 0.0 if pid is None else cpu_seconds(pid)

    @property
    def core_pid(self) -> int | None:
        """Process id of the engine core, if there is one."""
        return None if self._llm is None else _core(self._llm).pid

    async def start(self) -> None:
        """Load and warm up; a second call does nothing. Cancelling stops the load.

        The event loop stays free: importing and loading happen in a thread.

        Raises:
            EngineUnavailable: the weights or the device cannot be used.
        """
        if self._ready:
            return
        try:
            # vLLM leaves the sockets between the two processes behind, and a core that had to be
            # killed leaves more: they live, and go, with this folder.
            self._scratch = tempfile.TemporaryDirectory(prefix="requery-")
            scratch = {"VLLM_RPC_BASE_PATH": self._scratch.name, "TMPDIR": self._scratch.name}
            self._llm = await _construct(self._arguments, self._environment | scratch)
            self._listen()
            await self._extend()
            self._rewrite_params = [
                self._sampling(temperature, self._decoding.max_tokens)
                for temperature in self._decoding.temperatures
            ]
            self._tag_params = self._sampling(0.0, 1)
            await self._warm_up()
            await self._check()
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            await self.close()
            raise EngineUnavailable(f"the engine could not start: {error}") from error
        except BaseException:
            await self.close()
            raise
        self._ready = True

    async def generate(self, query: str) -> AsyncGenerator[Candidate]:
        """See :meth:`service.engine.protocol.Engine.generate`."""
        prompt = within(self._limit, self._prompts.rewrite_prompt(query))
        async with aclosing(self._each_as_done(prompt, self._rewrite_params)) as outputs:
            async for output in outputs:
                yield read_candidate(
                    self._prompts, output.token_ids, _last_logprobs(output), self._stop_ids
                )

    async def tag(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """See :meth:`service.engine.protocol.Engine.tag`."""
        prompts = [
            within(self._limit, self._prompts.tag_prompt(query, rewrite))
            for query, rewrite in pairs
        ]
        return await self.tag_ids(prompts)

    async def tag_ids(self, prompts: Sequence[Sequence[int]]) -> list[float]:
        """Relevance in [0, 1] at the end of each prompt, given as token ids.

        Raises:
            EngineUnavailable: if the engine died.
        """
        tasks = [
            asyncio.create_task(self._complete(list(ids), self._tag_params)) for ids in prompts
        ]
        try:
            outputs = await asyncio.gather(*tasks)
        finally:
            await _stop(tasks)
        labels = self._prompts.labels
        return [relevance(labels, _last_logprobs(output)) for output in outputs]

    async def close(self) -> None:
        """End what is outstanding, stop the engine core and free its memory; idempotent.

        The core is killed rather than asked: asked, it spends seconds on collecting garbage, and
        never answers if it hangs. It has nothing to save, and its files are removed here.
        """
        llm, self._llm, self._ready = self._llm, None, False
        scratch, self._scratch = self._scratch, None
        await asyncio.shield(_shut_down(llm, scratch, tuple(self._calls)))

    def _listen(self) -> None:
        """Count what the engine core reports: it does so after every step with tokens."""
        core = self._llm.engine_core
        get_output = core.get_output_async

        async def heard() -> Any:
            outputs = await get_output()
            self._progress += 1
            return outputs

        core.get_output_async = heard

    async def _extend(self) -> None:
        """What :class:`WorkerExtension` adds to the engine core."""
        labels = self._prompts.labels
        ids = [labels.relevant, labels.irrelevant]
        for left_out in await self._llm.collective_rpc(
            WorkerExtension.extend.__name__, args=(ids,)
        ):
            if left_out["exact_labels"]:
                _log.warning(
                    "relevance_rounded",
                    model=self._arguments.get("model"),
                    reason=left_out["exact_labels"],
                    detail="relevance is rounded to the steps of bfloat16: the same pair may get "
                    "values up to 0.03 apart",
                )
            _log.info(
                "engine_extended",
                model=self._arguments.get("model"),
                left_out={name: reason for name, reason in left_out.items() if reason},
            )

    async def _check(self) -> None:
        """Say so if a part of the extension gave something else than the model itself."""
        for given_up in await self._llm.collective_rpc(WorkerExtension.given_up.__name__):
            if given_up:
                _log.warning(
                    "engine_slower",
                    model=self._arguments.get("model"),
                    reason=given_up,
                    detail="the model is served as vLLM has it, which takes longer",
                )

    async def _warm_up(self) -> None:
        on_tokens, self._on_tokens = self._on_tokens, None
        try:
            for _ in range(_WARM_UP_ROUNDS):
                async for _candidate in self.generate(_WARM_UP_QUERY):
                    pass
                await self.tag([(_WARM_UP_QUERY, _WARM_UP_QUERY)])
        finally:
            self._on_tokens = on_tokens

    def _sampling(self, temperature: float, max_tokens: int) -> Any:
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        labels = self._prompts.labels
        return SamplingParams(
            temperature=temperature,
            top_p=self._decoding.top_p,
            max_tokens=max_tokens,
            # The base's end of text is one of them: it must end a rewrite as malformed, not as
            # finished, so vLLM's own handling of it is off.
            stop_token_ids=sorted(self._stop_ids),
            ignore_eos=True,
            # On every request: in a batch where only some ask for it, vLLM can give the others
            # wrong rows.
            logprob_token_ids=[labels.relevant, labels.irrelevant],
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            # Shared by all requests and never changed, so it need not be copied deeply for each.
            skip_clone=True,
        )

    async def _each_as_done(self, prompt: list[int], params: Sequence[Any]) -> AsyncGenerator[Any]:
        tasks = [asyncio.create_task(self._complete(prompt, each)) for each in params]
        try:
            for finished in asyncio.as_completed(tasks):
                yield await finished
        finally:
            await _stop(tasks)

    async def _complete(self, prompt: list[int], params: Any) -> Any:
        """One engine request: its completion (``token_ids``, ``logprobs``)."""
        from vllm.inputs.engine import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        llm, call = self._llm, asyncio.current_task()
        if llm is None or call is None:
            raise EngineUnavailable("the engine is not running; try again shortly")
        self._calls.add(call)
        try:
            # A copy of the prompt, since vLLM keeps the list; a request id of our own, since
            # aborting goes by it.
            outputs = llm.generate(tokens_input([*prompt]), params, f"requery-{next(self._ids)}")
            async with aclosing(outputs):
                final = [output async for output in outputs][-1]
        except (EngineDeadError, EngineGenerateError) as error:
            raise EngineUnavailable("the engine has stopped; try again shortly") from error
        except asyncio.CancelledError:
            if self._llm is llm and call.cancelling():
                raise
            # Not by the caller: by close(), or by the end of a socket of vLLM's.
            raise EngineUnavailable("the engine was stopped; try again shortly") from None
        finally:
            self._calls.discard(call)
        completion = final.outputs[0]
        if completion.finish_reason not in ("stop", "length"):
            raise EngineUnavailable("the engine dropped the request; try again shortly")
        if self._on_tokens is not None:
            self._on_tokens(len(prompt), len(completion.token_ids))
        return completion


def _last_logprobs(completion: Any) -> dict[int, float]:
    """Raw log probability by token id (sampled, RELEVANT, IRRELEVANT) at the last position.

    With :mod:`service.engine.worker.label_logits` it is the labels' logits.
    """
    return {token: entry.logprob for token, entry in completion.logprobs[-1].items()}


async def _stop(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel, which makes vLLM abort, and wait until that is done."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _shut_down(
    llm: Any,
    scratch: tempfile.TemporaryDirectory[str] | None,
    calls: Sequence[asyncio.Task[Any]],
) -> None:
    for call in calls:
        # vLLM would leave it waiting for ever.
        call.cancel()
    if llm is not None:
        if llm.output_handler is not None:
            # It would report the core's end, which is meant, as a failure.
            await _stop([llm.output_handler])
        # Waits for the core process to end, which must not hold up the event loop.
        await asyncio.to_thread(_end, llm)
        _free_sockets(llm)
    if scratch is not None:
        scratch.cleanup()
    await asyncio.gather(*calls, return_exceptions=True)


def _end(llm: Any) -> None:
    """Kill the engine core, which a stopped one (SIGSTOP) heeds too, and reap it."""
    core = _core(llm)
    llm.shutdown(timeout=0)
    core.join(_KILL_SECONDS)


def _core(llm: Any) -> BaseProcess:
    core: BaseProcess = llm.engine_core.resources.engine_manager.processes[0]
    return core


def _free_sockets(llm: Any) -> None:
    """Free the ZeroMQ context and its I/O threads, which vLLM leaves to the garbage collector."""
    resources = llm.engine_core.resources
    for each in (resources.input_socket, resources.output_socket):
        if each is not None:
            each.close(linger=0)
    resources.ctx.term()


async def _construct(arguments: Mapping[str, Any], environment: Mapping[str, str]) -> Any:
    """An ``AsyncLLM``, made in a daemon thread so that a process told to end need not wait for it.

    If the caller is cancelled meanwhile, the half-started engine core is killed.
    """
    loop = asyncio.get_running_loop()
    made: asyncio.Future[None] = loop.create_future()
    load = _Load(arguments, environment)
    # Errors of imports that some library keeps would keep the frames below, and with them the first
    # engine after its end: so it leaves no trace there.
    engines: list[Any] = []

    def settle(llm: Any, error: BaseException | None) -> None:
        if made.cancelled():
            if llm is not None:
                llm.shutdown(timeout=0)
                _free_sockets(llm)
        elif error is not None:
            made.set_exception(error)
        else:
            engines.append(llm)
            made.set_result(None)

    def run() -> None:
        llm, error = None, None
        try:
            llm = load()
        except BaseException as caught:  # noqa: BLE001 - handed over to the caller
            error = caught
        with suppress(RuntimeError):  # the loop has been closed; the core goes with the process
            loop.call_soon_threadsafe(settle, llm, error)
        llm = error = None

    threading.Thread(target=run, name="engine-load", daemon=True).start()
    try:
        await made
    except asyncio.CancelledError:
        load.abandon()
        raise
    return engines.pop()


class _Load:
    """One attempt to construct an ``AsyncLLM``, which another thread may give up."""

    def __init__(self, arguments: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        self._arguments = arguments
        self._environment = environment
        self._abandoned = False
        self._others: set[int | None] | None = None

    def __call__(self) -> Any:
        with _constructing, _variables(self._environment), warnings.catch_warnings():
            # What vLLM and its dependencies deprecate among themselves is not ours to mend.
            warnings.simplefilter("ignore")
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM

            _keep_what_is_there()

            class Llm(AsyncLLM):  # type: ignore[misc]
                """``AsyncLLM`` that only :meth:`VllmEngine.close` shuts down.

                Its own finaliser would do so again, and fails when the interpreter ends. The
                engine core goes with the process all the same: its client sees to that.
                """

                def __del__(self) -> None:
                    pass

            self._others = {child.pid for child in multiprocessing.active_children()}
            if self._abandoned:
                raise RuntimeError("the load was given up")
            try:
                return Llm.from_engine_args(AsyncEngineArgs(**self._arguments))
            except BaseException as error:
                # Its traceback would keep the half-made client, sockets and all.
                traceback.clear_frames(error.__traceback__)
                gc.collect()
                raise

    def abandon(self) -> None:
        """Make the load fail soon."""
        self._abandoned = True
        if self._others is not None:
            for child in multiprocessing.active_children():
                if child.pid not in self._others:
                    child.kill()


@cache
def _keep_what_is_there() -> None:
    """Spare the garbage collector the million objects that came with vLLM, and stay; once.

    Else each of its full passes goes through all of them, in the middle of somebody's request.
    """
    gc.collect()
    gc.freeze()


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables in force for a block, for this process and those that it starts.

    What vLLM itself sets meanwhile (``LD_PRELOAD`` among others) is undone too.
    """
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)
