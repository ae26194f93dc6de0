"""What the chart asks of other people's operators, by models made from their own definitions.

The models are those of the packages ``cloudcoil-models-*``. They take fields that they do not know
without a word: so a manifest must also come out of them as it went in.
"""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from tests.deploy.charts import VALUE_SETS, Manifest, of_kind, render

# Making the models takes half a minute.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def models() -> dict[str, type[BaseModel]]:
    from cloudcoil.models.keda.v1alpha1 import ScaledObject
    from cloudcoil.models.prometheus_operator.v1 import PodMonitor, PrometheusRule

    return {m.__name__: m for m in (ScaledObject, PodMonitor, PrometheusRule)}


def check(models: dict[str, type[BaseModel]], manifest: Manifest) -> None:
    """Fail unless every field is one of the definition, with a value that it takes."""
    model = models[manifest["kind"]].model_validate(manifest)
    assert model.model_dump(mode="json", by_alias=True, exclude_unset=True) == manifest


def of_operators() -> list[Manifest]:
    manifests = render(VALUE_SETS["keda"])
    return [m for kind in ("ScaledObject", "PodMonitor", "PrometheusRule")
            for m in of_kind(manifests, kind)]  # fmt: skip


def test_they_are_what_the_operators_know(models: dict[str, type[BaseModel]]) -> None:
    manifests = of_operators()
    assert {m["kind"] for m in manifests} == models.keys()
    for manifest in manifests:
        check(models, manifest)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("ScaledObject", {"minReplicas": 1}),
        ("ScaledObject", {"triggers": [{"type": "prometheus"}]}),
        ("PodMonitor", {"endpoints": []}),
        ("PodMonitor", {"podMetricsEndpoints": [{"interval": "soon"}]}),
        ("PrometheusRule", {"groups": [{"name": "a", "rules": [{"alert": "b"}]}]}),
        ("PrometheusRule", {"rules": []}),
    ],
)
def test_what_is_wrong_would_be_found(
    models: dict[str, type[BaseModel]], kind: str, change: dict[str, Any]
) -> None:
    manifest = of_kind(of_operators(), kind)[0]
    manifest["spec"] |= change
    with pytest.raises((ValidationError, AssertionError)):
        check(models, manifest)
