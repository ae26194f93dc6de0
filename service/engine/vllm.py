"""A model version served by vLLM. The only module that imports vllm, when an engine starts.

One code path serves CPU and GPU: :mod:`service.engine.loading` decides what differs and passes it
as engine arguments and environment variables.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import itertools
import multiprocessing
import os
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from copy import copy
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing.process import BaseProcess
from operator import attrgetter
from typing import Any

import structlog

from model_store.manifest import DecodingSpec
from model_store.prompt import PromptFormat
from service.engine.cpu_time import cpu_seconds
from service.engine.errors import EngineUnavailable
from service.engine.matrices import AGREE, Choice, MatrixPlan, processor
from service.engine.protocol import Candidate
from service.engine.scoring import read_candidate, relevance, within
from service.engine.worker.extension import WorkerExtension
from service.engine.worker.parent_watch import ParentWatch

_log = structlog.get_logger(component="engine")

OnTokens = Callable[[int, int], None]
"""Called for each finished engine request with its prompt tokens and its generated tokens."""

_WARM_UP_QUERY = "3/4 in. galvanized steel stake"
_WARM_UP_ROUNDS = 2
"""The first round meets code paths and allocations; the second runs as requests will."""
_TRIAL_PAIRS = tuple(
    (_WARM_UP_QUERY, rewrite) for rewrite in (_WARM_UP_QUERY, "steel stake", "led", "tent")
)
_AGREEMENT_PAIRS = tuple(
    (query, rewrite)
    for query in ("steele stake", "3/4 in. pvc pipe", "outdoor ceiling fan 52 inch white no light")
    for rewrite in (query, "cordless drill", "pvc pipe 3/4 inch", "outdoor fan", "steel tent stake")
)
"""Packed matrices must give the tags of float32 on these; some are hard to judge."""
_TRIAL_CANDIDATES = 8
"""Greedy, so that they stay equal: rows are shared at every step."""
_TRIAL_CLOSE = 0.1
"""Largest difference of a relevance with and without the extension. With logits in bfloat16 the
same pair differs by up to 0.03 between batches."""
_KILL_SECONDS = 10.0
"""How long to wait for a killed engine core to release its memory: the kernel may be busy."""
_PRIVATE = {
    "engine_core.get_output_async": "a hung engine is noticed later",
    "engine_core.resources.ctx": "a closed engine leaves sockets open",
    "engine_core.resources.input_socket": "a closed engine leaves sockets open",
    "engine_core.resources.output_socket": "a closed engine leaves sockets open",
    "output_handler": "closing an engine logs an error of vLLM's",
}
"""Private attributes of an ``AsyncLLM`` that are used, and what is lost without each."""

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
        extensions: use private attributes of vLLM: ``arguments`` then name
            :class:`service.engine.worker.extension.WorkerExtension` as the worker's extension, else
            :class:`service.engine.worker.parent_watch.ParentWatch`.
        on_tokens: see :data:`OnTokens`; warming up is not reported.
        matrices: chooses how matrices are multiplied, and so ``dtype`` of ``arguments``; ``None``
            leaves both as they are.
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
        extensions: bool = True,
        on_tokens: OnTokens | None = None,
        matrices: MatrixPlan | None = None,
    ) -> None:
        self._prompts = prompts
        self._decoding = decoding
        self._limit = max_prompt_tokens
        self._stop_ids = frozenset(stop_ids)
        self._arguments = dict(arguments)
        self._environment = dict(environment)
        self._extensions = extensions
        self._extended = extensions
        """Whether to extend the worker: not once an extended engine has failed."""
        self._on_tokens = on_tokens
        self._plan = matrices
        self._choice: Choice | None = None
        """Made once: an engine that is replaced has the same matrices."""
        self._started: _Started | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._ready = False
        self._progress = 0
        self._calls: set[asyncio.Task[Any]] = set()
        """Each waits for the answer to one engine request."""
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
        """Grows with every step whose tokens the engine core reports, and every request."""
        return self._progress

    @property
    def matrices(self) -> str | None:
        """See :attr:`service.engine.protocol.Engine.matrices`."""
        return None if self._choice is None else self._choice.matrices

    @property
    def effort(self) -> float:
        """CPU seconds that the engine core has used; without its process, time that has passed."""
        pid = self.core_pid
        if pid is not None:
            return cpu_seconds(pid)
        # A supervisor that cannot see the core compute must not take a busy one for hung.
        return 0.0 if self._started is None else time.monotonic()

    @property
    def core_pid(self) -> int | None:
        """Process id of the engine core, if there is one."""
        processes = () if self._started is None else self._started.processes
        return processes[0].pid if processes else None

    @property
    def _llm(self) -> Any:
        return None if self._started is None else self._started.llm

    async def start(self) -> None:
        """Load and warm up; a second call does nothing. Cancelling stops the load.

        The event loop stays free: importing and loading happen in a thread. An engine that fails
        with the extension, or tags otherwise than without, is started again without.

        Raises:
            EngineUnavailable: the weights or the device cannot be used.
        """
        if self._ready:
            return
        try:
            await self._launch_packed()
            if self._extended and (fault := await self._extend()):
                self._extended = False
                self._warn_slower({"all": fault})
                await self.close()
                await self._launch_packed()
            await self._warm_up()
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
        params = [_seeded(each, prompt, i) for i, each in enumerate(self._rewrite_params)]
        async with aclosing(self._each_as_done(prompt, params)) as outputs:
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
        """End outstanding requests, stop the engine core and free its memory; idempotent.

        The core is killed: asked to stop, it spends seconds on collecting garbage, and it never
        answers if it hangs. It has nothing to save, and its files are removed here.
        """
        started, self._started, self._ready = self._started, None, False
        scratch, self._scratch = self._scratch, None
        await asyncio.shield(_shut_down(started, scratch, tuple(self._calls)))

    async def _launch_packed(self) -> None:
        """Start the engine core, with other kernels for its matrices if those were chosen."""
        first = self._choice is None
        await self._launch()
        plan, choice = self._plan, self._choice
        if plan is None or choice is None:
            return
        if choice.packed:
            apart, fault = await self._pack(choice)
            choice = replace(choice, apart=apart)
            if fault:
                _log.warning(
                    "matrices_refused",
                    model=self._arguments.get("model"),
                    matrices=choice.matrices,
                    reason=fault,
                )
                choice = self._choice = plan.refuse(choice, apart)
                await self.close()
                await self._launch()
        if first:
            plan.remember(choice)
            _log.info(
                "engine_matrices",
                model=self._arguments.get("model"),
                matrices=choice.matrices,
                source=choice.source,
                milliseconds=choice.milliseconds,
                apart=choice.apart,
                processor=processor(),
            )

    async def _pack(self, choice: Choice) -> tuple[float | None, str]:
        """How far tags moved, and why the matrices cannot serve, if they cannot."""
        exact = await self.tag(_AGREEMENT_PAIRS)
        pack = WorkerExtension.pack_matrices.__name__
        try:
            await self._llm.collective_rpc(pack, args=(choice.matrices,))
            tags = await self.tag(_AGREEMENT_PAIRS)
        except Exception as error:
            if self._started is None:  # close() was called
                raise
            return None, f"{type(error).__name__}: {error}"
        apart = round(max(abs(tag - own) for tag, own in zip(tags, exact, strict=True)), 5)
        if apart <= AGREE:
            return apart, ""
        fault = f"tags differ by {apart:.3f} from those in float32"
        if choice.source == "set":
            _log.warning("matrices_rounded", model=self._arguments.get("model"), detail=fault)
            return apart, ""
        return apart, fault

    async def _launch(self) -> None:
        """Start the engine core, as vLLM has it but for the watch of its parent."""
        # vLLM leaves the sockets between the two processes behind, and a killed core leaves more
        # files: all of them live in this folder and go with it.
        self._scratch = tempfile.TemporaryDirectory(prefix="requery-")
        scratch = {"VLLM_RPC_BASE_PATH": self._scratch.name, "TMPDIR": self._scratch.name}
        self._started = await _construct(
            self._arguments,
            self._environment | scratch,
            private=self._extensions,
            choose=self._choose,
        )
        if self._extensions:
            self._supervise()
        await self._llm.collective_rpc(ParentWatch.end_with_parent.__name__)
        self._rewrite_params = [
            self._sampling(temperature, self._decoding.max_tokens)
            for temperature in self._decoding.temperatures
        ]
        self._tag_params = self._sampling(0.0, 1)

    def _choose(self) -> Mapping[str, Any]:
        """Arguments of vLLM that depend on the matrices; called once vLLM has been imported."""
        if self._plan is None:
            return {}
        if self._choice is None:
            self._choice = self._plan.choose()
        return {"dtype": self._choice.dtype}

    def _supervise(self) -> None:
        """Count the steps that the engine core reports; warn of what cannot be supervised."""
        lost = {name: loss for name, loss in _PRIVATE.items() if not _has(self._llm, name)}
        if self.core_pid is None:
            lost["process"] = "a hung engine is noticed later and may be left running"
        if lost:
            _log.warning("engine_unsupervised", model=self._arguments.get("model"), left_out=lost)
        if "engine_core.get_output_async" in lost:
            return
        core = self._llm.engine_core
        get_output = core.get_output_async

        async def counted() -> Any:
            outputs = await get_output()
            self._progress += 1
            return outputs

        core.get_output_async = counted

    async def _extend(self) -> str:
        """Add :class:`WorkerExtension` to the engine core and try it; why it failed, if it did."""
        labels, rpc = self._prompts.labels, self._llm.collective_rpc
        ids = [labels.relevant, labels.irrelevant]
        plain = await self.tag(_TRIAL_PAIRS)
        try:
            (left_out,) = await rpc(WorkerExtension.extend.__name__, args=(ids,))
            await self._try_candidates()
            tags = await self.tag(_TRIAL_PAIRS)
            (given_up,) = await rpc(WorkerExtension.given_up.__name__)
        except Exception as error:
            if self._started is None:  # close() was called
                raise
            return f"the extended engine fails: {type(error).__name__}: {error}"
        apart = max(abs(tag - own) for tag, own in zip(tags, plain, strict=True))
        if not apart <= _TRIAL_CLOSE:
            return f"tags differ by {apart:.2f} from those of the engine without the extension"
        if reason := left_out.get("exact_labels"):
            given_up.pop("exact_labels", None)
            _log.warning(
                "relevance_rounded",
                model=self._arguments.get("model"),
                reason=reason,
                detail="relevance is rounded to the steps of bfloat16: the same pair may get "
                "values up to 0.03 apart",
            )
        if given_up:
            self._warn_slower(given_up)
        _log.info("engine_extended", model=self._arguments.get("model"), left_out=left_out)
        return ""

    def _warn_slower(self, reasons: Mapping[str, str]) -> None:
        _log.warning(
            "engine_slower",
            model=self._arguments.get("model"),
            reason=reasons,
            detail="the model is served without these parts of the extension, which takes longer",
        )

    async def _try_candidates(self) -> None:
        """Have rows shared at every step."""
        prompt = self._prompts.rewrite_prompt(_WARM_UP_QUERY)
        greedy = self._sampling(0.0, self._decoding.max_tokens)
        async with aclosing(self._each_as_done(prompt, [greedy] * _TRIAL_CANDIDATES)) as outputs:
            async for _ in outputs:
                pass

    async def _warm_up(self) -> None:
        for _ in range(_WARM_UP_ROUNDS):
            async for _candidate in self.generate(_WARM_UP_QUERY):
                pass
            await self.tag([(_WARM_UP_QUERY, _WARM_UP_QUERY)])

    def _sampling(self, temperature: float, max_tokens: int) -> Any:
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        labels = self._prompts.labels
        return SamplingParams(
            temperature=temperature,
            top_p=self._decoding.top_p,
            max_tokens=max_tokens,
            # They include the base's end of text, which ends a rewrite as malformed, not as
            # finished: so vLLM's own handling of it is off.
            stop_token_ids=sorted(self._stop_ids),
            ignore_eos=True,
            # On every request: in a batch where only some set it, vLLM can give the others wrong
            # rows.
            logprob_token_ids=[labels.relevant, labels.irrelevant],
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            # All requests share it and nothing changes it, so no request needs a deep copy.
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
            # A copy of the prompt, because vLLM keeps the list.
            outputs = llm.generate(tokens_input([*prompt]), params, f"requery-{next(self._ids)}")
            async with aclosing(outputs):
                final = [output async for output in outputs][-1]
        except (EngineDeadError, EngineGenerateError) as error:
            raise EngineUnavailable("the engine has stopped; try again shortly") from error
        except asyncio.CancelledError:
            if self._llm is llm and call.cancelling():
                raise
            # Cancelled by close(), or by the end of one of vLLM's sockets.
            raise EngineUnavailable("the engine was stopped; try again shortly") from None
        finally:
            self._calls.discard(call)
        completion = final.outputs[0]
        if completion.finish_reason not in ("stop", "length"):
            raise EngineUnavailable("the engine dropped the request; try again shortly")
        self._progress += 1
        if self._on_tokens is not None and self._ready:
            self._on_tokens(len(prompt), len(completion.token_ids))
        return completion


def _seeded(params: Any, prompt: Sequence[int], number: int) -> Any:
    """``params`` with a seed of its own if it draws: the same query then gets the same texts.

    Args:
        params: of vLLM; not changed.
        prompt: token ids.
        number: of the candidate, so that candidates of one query differ.
    """
    if not params.temperature:
        return params
    text = repr((number, prompt)).encode()
    own = copy(params)
    own.seed = int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big")
    return own


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


@dataclass(frozen=True, slots=True)
class _Started:
    """An engine that has been constructed.

    Attributes:
        llm: vLLM's ``AsyncLLM``.
        processes: of its engine core.
        private: whether its private attributes may be used.
    """

    llm: Any
    processes: Sequence[BaseProcess]
    private: bool

    async def stop(self) -> None:
        """Kill the engine core and free its sockets; never raises."""
        if self.private:
            # It would report the core's intended end as a failure.
            handler = getattr(self.llm, "output_handler", None)
            if isinstance(handler, asyncio.Task):
                await _stop([handler])
        # Waits for the core process to end, which must not hold up the event loop.
        await asyncio.to_thread(self._kill)
        self.free_sockets()

    def shut_down(self) -> None:
        """Have vLLM end the engine core."""
        with suppress(Exception):
            self.llm.shutdown(timeout=0)

    def _kill(self) -> None:
        """Kill the engine core, a stopped one (SIGSTOP) too, and reap it."""
        self.shut_down()
        for process in self.processes:
            with suppress(ValueError):  # vLLM has closed it
                process.kill()
                process.join(_KILL_SECONDS)

    def free_sockets(self) -> None:
        """Free the ZeroMQ context and its I/O threads, which vLLM leaves to the collector."""
        if not self.private:
            return
        with suppress(Exception):
            resources = self.llm.engine_core.resources
            for each in (resources.input_socket, resources.output_socket):
                if each is not None:
                    each.close(linger=0)
            resources.ctx.term()


async def _shut_down(
    started: _Started | None,
    scratch: tempfile.TemporaryDirectory[str] | None,
    calls: Sequence[asyncio.Task[Any]],
) -> None:
    for call in calls:
        # vLLM would leave it waiting for ever.
        call.cancel()
    if started is not None:
        await started.stop()
    if scratch is not None:
        scratch.cleanup()
    await asyncio.gather(*calls, return_exceptions=True)


def _has(llm: Any, path: str) -> bool:
    try:
        attrgetter(path)(llm)
    except AttributeError:
        return False
    return True


async def _construct(
    arguments: Mapping[str, Any],
    environment: Mapping[str, str],
    *,
    private: bool,
    choose: Callable[[], Mapping[str, Any]],
) -> _Started:
    """Start an engine in a daemon thread, so that the process can end without waiting for it.

    If the caller is cancelled meanwhile, the half-started engine core is killed.
    """
    loop = asyncio.get_running_loop()
    made: asyncio.Future[None] = loop.create_future()
    load = _Load(arguments, environment, private=private, choose=choose)
    # Some libraries keep errors of imports, which keep the frames below, and with them the engine:
    # so no frame refers to it for longer than it must.
    engines: list[_Started] = []

    def settle(started: _Started | None, error: BaseException | None) -> None:
        if made.cancelled():
            if started is not None:
                started.shut_down()
                started.free_sockets()
        elif error is not None:
            made.set_exception(error)
        elif started is not None:
            engines.append(started)
            made.set_result(None)

    def run() -> None:
        started, error = None, None
        try:
            started = load()
        except BaseException as caught:  # noqa: BLE001 - raised where it is awaited
            error = caught
        with suppress(RuntimeError):  # the loop has been closed; the core goes with the process
            loop.call_soon_threadsafe(settle, started, error)
        started = error = None

    threading.Thread(target=run, name="engine-load", daemon=True).start()
    try:
        await made
    except asyncio.CancelledError:
        load.abandon()
        raise
    return engines.pop()


class _Load:
    """One attempt to start an engine, which another thread may give up.

    Args:
        arguments: of ``AsyncEngineArgs``.
        environment: variables in force meanwhile.
        private: see :class:`_Started`.
        choose: further arguments, asked for once vLLM has been imported; takes seconds.
    """

    def __init__(
        self,
        arguments: Mapping[str, Any],
        environment: Mapping[str, str],
        *,
        private: bool,
        choose: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._arguments = arguments
        self._environment = environment
        self._private = private
        self._choose = choose
        self._abandoned = False
        self._others: set[int | None] | None = None

    def __call__(self) -> _Started:
        with _constructing, _variables(self._environment), warnings.catch_warnings():
            # Deprecations among vLLM and its dependencies are not ours to fix.
            warnings.simplefilter("ignore")
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM

            _freeze_imports()

            class Llm(AsyncLLM):  # type: ignore[misc]
                """``AsyncLLM`` that only :meth:`VllmEngine.close` shuts down.

                Its own finaliser would shut it down again, and fails when the interpreter ends. The
                engine core ends with the process all the same: its client sees to that.
                """

                def __del__(self) -> None:
                    pass

            arguments = {**self._arguments, **self._choose()}
            self._others = {child.pid for child in multiprocessing.active_children()}
            if self._abandoned:
                raise RuntimeError("the load was given up")
            try:
                # No variable holds the engine: see _construct.
                return _Started(
                    Llm.from_engine_args(AsyncEngineArgs(**arguments)),
                    self._children(),
                    private=self._private,
                )
            except BaseException as error:
                # Its traceback would keep the half-made client and its sockets.
                traceback.clear_frames(error.__traceback__)
                gc.collect()
                raise

    def abandon(self) -> None:
        """Make the load fail soon."""
        self._abandoned = True
        for child in self._children():
            child.kill()

    def _children(self) -> list[BaseProcess]:
        """Processes that this load has started."""
        if self._others is None:
            return []
        return [c for c in multiprocessing.active_children() if c.pid not in self._others]


@cache
def _freeze_imports() -> None:
    """Exempt the million objects that came with vLLM, and stay, from garbage collection.

    Else each full collection visits all of them, in the middle of a request.
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
