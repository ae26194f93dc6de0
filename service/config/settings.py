"""Every option of the service, documented once, set as ``REQUERY_<NAME>`` in the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from model_store.text import MAX_QUERY_CHARS, normalise
from service.config.service_links import is_service_link
from service.telemetry.logging import QueryMode


class Settings(BaseSettings):
    """Options of one service process.

    Raises:
        pydantic.ValidationError: an option has a value that it cannot take.
    """

    model_config = SettingsConfigDict(
        env_prefix="REQUERY_", env_ignore_empty=True, frozen=True, extra="forbid"
    )

    host: Annotated[str, Field(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[
        int, Field(ge=0, le=65535, description="Port to listen on; 0 takes any free one.")
    ] = 8000

    default_version: Annotated[
        str, Field(description="Model version that serves requests without a pin.")
    ] = "general-1"
    model_sources: Annotated[
        str,
        Field(
            description="Paths or fsspec URLs of folders with versions, separated by commas, "
            "searched before the packaged ones."
        ),
    ] = ""
    cache_dir: Annotated[
        Path | None,
        Field(description="Folder of materialised models; default: the user's cache folder."),
    ] = None

    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        Field(description="Where engines run; auto takes an NVIDIA GPU if there is one."),
    ] = "auto"
    engine_kv_cache_bytes: Annotated[
        int | None, Field(ge=1, description="Keys and values of each engine; default by device.")
    ] = None
    engine_max_sequences: Annotated[
        int | None, Field(ge=1, description="Candidates decoded at a time; default by device.")
    ] = None
    engine_threads: Annotated[
        int | None, Field(ge=1, description="CPU only; default: the cores there are, at most 16.")
    ] = None
    cpu_matrices: Annotated[
        Literal["auto", "bfloat16", "float32", "float16", "int8"],
        Field(
            description="CPU only: how matrices are multiplied. auto: the fastest of the first "
            "three that gives the tags of float32, timed at the first start. int8 moves tags."
        ),
    ] = "auto"
    engine_compiled: Annotated[
        bool | None,
        Field(
            description="Compile the model; on a CPU this costs some 100 s at start. Default: on "
            "a GPU only."
        ),
    ] = None
    engine_extensions: Annotated[
        bool,
        Field(
            description="Use private attributes of vLLM, each tried at the start: faster, exact "
            "relevance, hangs noticed early; false: vLLM's public API alone."
        ),
    ] = True
    engine_log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"],
        Field(description="Least level of vLLM's own log lines, on standard error."),
    ] = "ERROR"

    engine_memory_bytes: Annotated[
        int | None,
        Field(
            ge=1,
            description="Bound on the memory of all engines, checked before a load; default: 0.8 "
            "of the machine's or container's memory, 0.9 of a GPU's.",
        ),
    ] = None
    load_timeout_s: Annotated[float, Field(gt=0, description="Bound on loading a version.")] = (
        1800.0
    )
    drain_timeout_s: Annotated[
        float,
        Field(ge=0, description="Bound on how long unloading waits for requests in flight."),
    ] = 30.0
    warm_queries: Annotated[
        str,
        Field(
            description="Queries, separated by semicolons, that a version answers before it is "
            "ready; ';' alone: none."
        ),
    ] = "steel stake; cieling fan with light; 2x4 lumber 8 ft; kids rain boots; batteries aa"

    default_deadline_ms: Annotated[
        int | None,
        Field(
            ge=1,
            description="Deadline of a /rewrite without one; default: 150 on a GPU, 2000 on a CPU.",
        ),
    ] = None
    max_deadline_ms: Annotated[
        int, Field(ge=1, description="Longer deadlines are cut to this.")
    ] = 30_000
    generation_timeout_s: Annotated[
        float,
        Field(gt=0, description="Bound on a generation without waiting callers."),
    ] = 30.0

    admission_target_ms: Annotated[
        float | None,
        Field(
            gt=0,
            description="Candidates are added to an engine's batch while a generation in it is "
            "done within this, by the measured speed; default: 0.7 of the default deadline.",
        ),
    ] = None
    admission_max_candidates: Annotated[
        int | None,
        Field(
            ge=1,
            description="Upper bound on the candidates under way with one engine; default: twice "
            "what the engine decodes at a time.",
        ),
    ] = None
    admission_max_waiting: Annotated[
        int,
        Field(
            ge=0,
            description="Generations for shoppers that may wait in line for one engine, each only "
            "if it is predicted to be done by its deadline.",
        ),
    ] = 256
    engine_stall_s: Annotated[
        float,
        Field(
            gt=0,
            description="An engine with work and no progress for this long is replaced.",
        ),
    ] = 10.0

    cache_memory_bytes: Annotated[
        int, Field(ge=0, description="Bound on the cache in this process; 0 turns it off.")
    ] = 128 * 1024 * 1024
    cache_redis_bytes: Annotated[
        int | None,
        Field(
            ge=1,
            description="Writes to Redis stop while all masters together use more memory than "
            "this, read every few seconds. For an exact bound set the server's "
            "maxmemory and maxmemory-policy allkeys-lru.",
        ),
    ] = None
    cache_ttl_s: Annotated[float, Field(gt=0, description="Lifetime of a cached answer.")] = (
        24 * 3600.0
    )
    cache_soft_ttl_s: Annotated[
        float,
        Field(
            gt=0,
            description="Age from which a cached answer is served and refreshed in the "
            "background; never if not below the lifetime.",
        ),
    ] = 6 * 3600.0
    cache_empty_ttl_s: Annotated[
        float,
        Field(gt=0, description="Lifetime of the answer that a query has no good rewrite."),
    ] = 3600.0
    cache_ttl_jitter: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="Share by which lifetimes are shortened, at most, by query, so that "
            "answers do not expire together.",
        ),
    ] = 0.1
    refresh_max_in_flight: Annotated[
        int,
        Field(
            ge=0,
            description="A stale answer is refreshed only while fewer generations than this are "
            "running; 0 turns refreshing off.",
        ),
    ] = 1
    redis_url: Annotated[
        SecretStr | None,
        Field(
            description="Redis for the shared cache and documents (redis://, rediss://, unix://, "
            "redis+sentinel://, redis+cluster://)."
        ),
    ] = None
    redis_read_budget_ms: Annotated[
        float, Field(gt=0, description="Bound on the time of a look-up in Redis.")
    ] = 15.0
    redis_write_budget_ms: Annotated[
        float, Field(gt=0, description="Bound on the time of a write to Redis, after the answer.")
    ] = 200.0
    redis_max_connections: Annotated[
        int, Field(ge=1, description="Bound on connections to Redis.")
    ] = 32

    exposures: Annotated[
        Literal["auto", "off", "log", "redis"],
        Field(
            description="Where exposure records go: a Redis stream, the log (level info) or "
            "nowhere; auto: the stream with Redis, else the log."
        ),
    ] = "auto"
    exposures_max_entries: Annotated[
        int, Field(ge=1, description="About how many records the Redis stream keeps.")
    ] = 100_000
    shadow_max_foreground: Annotated[
        int,
        Field(
            ge=0,
            description="Shadow traffic is generated only while at most this many shoppers' "
            "generations are running.",
        ),
    ] = 0

    console: Annotated[
        bool,
        Field(description="Serve the web console at '/'; its calls need the same keys as any."),
    ] = True

    admin_key: Annotated[
        SecretStr | None,
        Field(
            min_length=16,
            description="Key for every change ('Authorization: Bearer <key>'); without it only "
            "callers on this machine may change anything.",
        ),
    ] = None

    api_keys_file: Annotated[
        Path | None,
        Field(
            description="YAML or JSON file of hashed API keys with scopes, read again when it "
            "changes ('requery keys new' makes entries). With it every call but "
            "health checks needs a key; an admin key alone leaves rewriting open."
        ),
    ] = None
    serve_without_keys: Annotated[
        Literal["no", "to-anyone"],
        Field(
            description="Without keys the service listens on this machine only; 'to-anyone' "
            "allows other addresses."
        ),
    ] = "no"
    rate_limit_per_s: Annotated[
        float,
        Field(
            ge=0,
            description="Limit per key, or without keys per address, in this process; 0: none.",
        ),
    ] = 0.0
    rate_limit_burst: Annotated[
        int | None,
        Field(ge=1, description="Requests at once; default: those of two seconds."),
    ] = None

    overrides_file: Annotated[
        Path | None,
        Field(
            description="Read-only YAML or JSON file of overrides, read again when it changes; "
            "the API's entries precede it."
        ),
    ] = None
    batch_concurrency: Annotated[
        int,
        Field(
            ge=1,
            description="Concurrent queries of all batches.",
        ),
    ] = 8

    max_body_bytes: Annotated[int, Field(ge=256, description="Longest request body.")] = 256 * 1024
    max_header_bytes: Annotated[
        int, Field(ge=1024, description="Longest request line and headers together.")
    ] = 32 * 1024
    max_connections: Annotated[
        int, Field(ge=1, description="Connections open at a time; more are refused with a 503.")
    ] = 4096
    http_protocol: Annotated[
        Literal["bounded", "uvicorn"],
        Field(
            description="uvicorn: its own protocol class, without our bounds on connections, "
            "headers and slow requests, problem answers to bad HTTP and single-write answers."
        ),
    ] = "bounded"
    body_timeout_s: Annotated[float, Field(gt=0, description="Bound on reading one request.")] = (
        10.0
    )
    shutdown_delay_s: Annotated[
        float,
        Field(
            ge=0,
            description="After SIGTERM, how long /readyz is 503 while requests are still accepted.",
        ),
    ] = 2.0
    shutdown_grace_s: Annotated[
        float,
        Field(ge=0, description="After that delay: bound on finishing requests in flight."),
    ] = 10.0
    store_wait_s: Annotated[
        float,
        Field(
            ge=0,
            description="Bound on waiting at the start for a missing model source.",
        ),
    ] = 30.0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="Least level logged.")
    ] = "info"
    log_requests: Annotated[bool, Field(description="Log one line for each request.")] = True
    log_queries: Annotated[
        QueryMode,
        Field(description="How queries, which can be personal data, appear in logs."),
    ] = "hash"
    log_query_salt: Annotated[
        SecretStr,
        Field(description="Secret that keeps hashed queries from being guessed."),
    ] = SecretStr("")
    otlp_endpoint: Annotated[
        str | None,
        Field(
            pattern=r"^https?://[^/\s]",
            description="OTLP/HTTP collector for traces (http://host:4318); default: no traces. "
            "Needs the extra 'otel'; OTEL_* variables apply.",
        ),
    ] = None
    trace_sample: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Share of requests traced; a caller's traceparent decides for itself.",
        ),
    ] = 0.01

    def sources(self) -> list[str]:
        """Places of :attr:`model_sources`."""
        return [place.strip() for place in self.model_sources.split(",") if place.strip()]

    def warm_up(self) -> tuple[str, ...]:
        """Queries of :attr:`warm_queries`."""
        return tuple(query.strip() for query in self.warm_queries.split(";") if query.strip())

    @field_validator("port", mode="before")
    @classmethod
    def _not_a_service_link(cls, value: object) -> object:
        return cls.model_fields["port"].default if is_service_link(value) else value

    @field_validator("warm_queries")
    @classmethod
    def _can_be_asked(cls, value: str) -> str:
        for query in filter(None, map(str.strip, value.split(";"))):
            if not 1 <= len(normalise(query, fold_case=True)) <= MAX_QUERY_CHARS:
                raise ValueError(
                    f"{query[:20]!a} must have 1 to {MAX_QUERY_CHARS} printable characters"
                )
        return value

    def deadline_ms(self, *, gpu: bool) -> int:
        """Default deadline of /rewrite on this kind of device."""
        if self.default_deadline_ms is not None:
            return self.default_deadline_ms
        return 150 if gpu else 2000

    def target_ms(self, *, gpu: bool) -> float:
        """How long a generation should take at most."""
        if self.admission_target_ms is not None:
            return self.admission_target_ms
        return 0.7 * self.deadline_ms(gpu=gpu)

    def most_candidates(self, *, gpu: bool) -> int:
        """Bound on candidates under way with one engine."""
        if self.admission_max_candidates is not None:
            return self.admission_max_candidates
        return 2 * (self.engine_max_sequences or (256 if gpu else 64))
