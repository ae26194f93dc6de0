"""Examples of the OpenAPI document: a body for each schema, and the problems of each operation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from service.errors import TYPE_PREFIX, RequeryError

_ID = "7bd60683c1d14f0e8c2b3c1f6f0a9d52"
_REWRITES: dict[str, Any] = {
    "query": "steele stake",
    "rewrites": [{"text": "steel stake", "relevance": 0.9978}],
    "status": "ok",
    "source": "engine",
    "model_version": "general-1",
    "request_id": _ID,
}
_PAIR = {"query": "steele stake", "rewrite": "steel stake"}
_VERSION = {
    "name": "general-1",
    "description": "Rewrites for all departments.",
    "digest": "c8cdd044c50239e34d6b8318029975851e38fc23bcb3a8f6cb0c0d68a2e01827",
    "state": "ready",
    "reason": None,
    "default": True,
    "wanted": True,
    "weight": 1.0,
    "requests": 4812,
    "in_flight": 2,
    "latency_ms": {"p50": 1.2, "p95": 180.0},
    "catalogue": {"products": 20_000, "made_at": "2026-11-23T04:00:00+00:00"},
    "memory_bytes": 2_300_000_000,
    "matrices": "bfloat16",
}
_PLAN: dict[str, Any] = {"default": "general-1", "weights": {}, "salt": "autumn", "shadow": None}
_PIN = {"kind": "pin", "query": "steele stake", "rewrites": ["steel stake"], "reason": "typo"}
_OVERRIDE = _PIN | {
    "id": "a10a2dec90e7a4fd",
    "author": "ada",
    "created_at": "2026-11-23T11:28:37Z",
    "expires_at": None,
    "source": "api",
    "hits": 0,
}
_KILL = {"version": None, "reason": "odd rewrites"}
_CHANGE = {
    "time": "2026-11-23T11:28:37Z",
    "document": "routing",
    "action": "routing.set",
    "author": "ada",
    "reason": None,
    "revision": 2,
    "replaced": 1,
    "before": _PLAN | {"salt": "requery"},
    "after": _PLAN,
}
EXAMPLES: dict[str, Any] = {
    "RewriteRequest": {"query": "steele stake", "max_rewrites": 3, "deadline_ms": 2000},
    "RewriteResponse": _REWRITES,
    "BatchRequest": {"queries": ["steele stake"], "max_rewrites": 1},
    "BatchResponse": {"answers": [_REWRITES], "request_id": _ID},
    "RelevanceRequest": {"pairs": [_PAIR]},
    "RelevanceResponse": {"relevance": [0.9978], "model_version": "general-1", "request_id": _ID},
    "VersionInfo": _VERSION,
    "VersionsResponse": {
        "default": "general-1",
        "durable": True,
        "memory": {"limit_bytes": 6_000_000_000, "reserved_bytes": 2_300_000_000},
        "versions": [_VERSION],
    },
    "RoutingPlan": _PLAN,
    "RoutingResponse": _PLAN
    | {"kill": None, "local_kill": None, "revision": 1, "persistence": "redis"},
    "Kill": _KILL,
    "AuditResponse": {"entries": [_CHANGE], "next_offset": 1, "persistence": "redis"},
    "NewOverride": _PIN,
    "OverrideInfo": _OVERRIDE,
    "OverridesRequest": {"overrides": [_PIN], "reason": "start anew"},
    "OverridesResponse": {
        "overrides": [_OVERRIDE],
        "total": 1,
        "next_offset": None,
        "revision": 4,
        "persistence": "redis",
        "file_problem": None,
    },
    "PurgeRequest": {"query": "steele stake"},
    "PurgeResponse": {"memory": 1, "redis": 1, "replicas": "all"},
    "Liveness": {"status": "live"},
    "Readiness": {"status": "ready", "model_version": "general-1"},
}
"""By the name of the schema."""

_DOCUMENTS = {"Versions", "Routing", "Overrides"}
_ONLY_IN = {
    "invalid-query": {"Rewriting", "Cache"},
    "query-too-long": {"Rewriting"},
    "engine-unavailable": {"Rewriting"},
    "overloaded": {"Rewriting"},
    "unknown-version": {"Rewriting", "Versions", "Cache"},
    "version-not-loaded": {"Rewriting", "Versions", "Routing"},
    "version-in-use": {"Versions"},
    "version-draining": {"Versions"},
    "unknown-override": {"Overrides"},
    "override-conflict": {"Overrides"},
    "newer-schema": _DOCUMENTS,
    "unreadable-document": _DOCUMENTS,
    "control-unavailable": _DOCUMENTS,
    "cache-unavailable": {"Cache"},
    "not-ready": {"Rewriting", "Operations"},
}
"""Tags of the operations that have a problem; others can come of any operation."""


def _kinds(kind: type[RequeryError] = RequeryError) -> Iterator[type[RequeryError]]:
    yield kind
    for one in kind.__subclasses__():
        yield from _kinds(one)


def problems_of(status: int, tag: str) -> dict[str, Any]:
    """An example of each problem of a status that operations with a tag have, by its name."""
    return {
        kind.slug: {
            "summary": kind.title,
            "value": {
                "type": TYPE_PREFIX + kind.slug,
                "title": kind.title,
                "status": status,
                "detail": "What is wrong this time, and what to do.",
                "request_id": _ID,
            },
        }
        for kind in _kinds()
        if "slug" in vars(kind) and kind.status == status and tag in _ONLY_IN.get(kind.slug, {tag})
    }
