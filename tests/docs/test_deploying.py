"""The checks of commands that deploy can fail."""

from __future__ import annotations

import helm_python
import pytest
from pydantic import ValidationError

from tests.docs import shell

COMPOSE = "docker compose -f deploy/compose/compose.yaml"


def check(text: str) -> None:
    (command,) = shell.commands(text)
    shell.check(command)


@pytest.mark.parametrize(
    "text",
    [
        f"{COMPOSE} up --build -d",
        f"{COMPOSE} run --rm --entrypoint cat keys /keys/backend",
        "docker build --target nvidia -t requery:nvidia .",
        "docker run --read-only -e REQUERY_PORT=9000 requery:cpu",
        "helm install requery deploy/helm/requery --set device=nvidia --set image.tag=0.1.0",
        "kubectl create secret generic requery-keys --from-file=keys.yaml",
    ],
)
def test_what_could_be_run_passes(text: str) -> None:
    check(text)


@pytest.mark.parametrize(
    "text",
    [
        f"{COMPOSE} run --rm --entrypoint cat keeper /keys/backend",
        "docker compose -f compose.yaml up",
        "docker build --target tpu -t requery:tpu .",
        "docker run --read-only -e REQUERY_PORTS=9000 requery:cpu",
        "docker run --read-only -e REQUERY_PORT=http requery:cpu",
        "helm install requery deploy/helm/requery --set devices=nvidia",
        "helm install requery deploy/chart",
        "kubectl create secret generic keys --from-file=keys.yaml",
        "kubectl delete namespace shop",
        "docker push requery:cpu",
    ],
)
def test_what_could_not_fails(text: str) -> None:
    errors = (
        AssertionError,
        ValidationError,
        OSError,
        helm_python.HelmError,
        pytest.fail.Exception,
    )
    with pytest.raises(errors):
        check(text)
