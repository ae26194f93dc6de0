"""Variables that Kubernetes sets in each pod beside a Service whose name begins with ``requery``.

``REQUERY_PORT`` is one of them: it is then an address, and no port of ours.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import structlog

_log = structlog.get_logger(component="settings")

_ADDRESS = re.compile(r"(?:tcp|udp|sctp)://\S+:\d+", re.IGNORECASE)
_NAME = re.compile(
    r"REQUERY_(?:\w+_)?"
    r"(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
_PORT = re.compile(r"REQUERY_(?:\w+_)?PORT")


def is_service_link(value: object) -> bool:
    """Whether a port's value is the address of a Service, such as ``tcp://10.0.0.1:80``."""
    return isinstance(value, str) and _ADDRESS.fullmatch(value) is not None


def service_links(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Names of the variables that are service links; no setting is read from them."""
    return sorted(
        name
        for name, value in environment.items()
        if _NAME.fullmatch(name) or (_PORT.fullmatch(name) and is_service_link(value))
    )


def log_service_links() -> None:
    """Note in the log which variables are ignored, if any are."""
    if links := service_links():
        _log.info("service_links_ignored", variables=links)
