"""What a real Redis server with TLS needs: a build that has it, and a certificate."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.redis_server import redis_binaries


@dataclass(frozen=True)
class Tls:
    """A self-signed certificate for 127.0.0.1, and a server that can use it."""

    binary: str
    certificate: Path
    key: Path

    def options(self, *options: str) -> list[str]:
        """Command line of a server with this certificate; clients need none."""
        return [
            "--tls-cert-file", str(self.certificate), "--tls-key-file", str(self.key),
            "--tls-ca-cert-file", str(self.certificate), "--tls-auth-clients", "no", *options,
        ]  # fmt: skip


def tls(folder: Path) -> Tls:
    """All of it; skips the test where there is no such build or no ``openssl``."""
    # The option's name is compiled in only with TLS.
    able = [one for one in redis_binaries() if b"tls-cert-file" in Path(one).read_bytes()]
    if not able:
        pytest.skip("no redis-server with TLS here")
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl here to make a certificate with")
    certificate, key = folder / "redis.crt", folder / "redis.key"
    command = [
        openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        "-keyout", str(key), "-out", str(certificate), "-subj", "/CN=requery test",
        "-addext", "subjectAltName=IP:127.0.0.1",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return Tls(able[0], certificate, key)
