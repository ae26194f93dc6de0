from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from service.engine.worker.errors import NotApplicable
from service.engine.worker.kernels import CAPACITY, Kernels


class Weight:
    """As much of a tensor as is used: its shape, and zeros that know theirs."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def new_zeros(self, *shape: int) -> Weight:
        return Weight(*shape)


@dataclass
class Linear:
    input_size_per_partition: int
    output_size_per_partition: int
    products: list[tuple[int, ...]] = field(default_factory=list)
    weight: Weight = field(default_factory=lambda: Weight(0))

    def cpu_linear(self, x: Weight, weight: Weight, bias: None) -> None:
        assert weight is self.weight
        self.products.append(x.shape)


class Head(Linear):
    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__(0, 0)
        del self.input_size_per_partition, self.output_size_per_partition
        self.embedding_dim, self.weight = width, Weight(vocabulary, width)


class Norm:
    weight = Weight(4)


class Model:
    def __init__(self, *layers: Any) -> None:
        self._layers = layers

    def modules(self) -> tuple[Any, ...]:
        return self._layers


class Worker(Kernels):
    def __init__(self, *layers: Any) -> None:
        self.model_runner = self
        self._model = Model(*layers)

    def get_model(self) -> Model:
        return self._model


def test_one_layer_of_each_size_multiplies_until_the_cache_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    up, twin, down, head = Linear(4, 8), Linear(4, 8), Linear(8, 4), Head(100, 4)
    monkeypatch.setenv(CAPACITY, "10")
    assert Worker(Norm(), up, twin, down, head).make_kernels() == 9
    # The commonest numbers of rows come last: the cache drops the least recently used.
    assert up.products == head.products == [(3, 4), (2, 4), (1, 4)]
    assert down.products == [(3, 8), (2, 8), (1, 8)]
    assert twin.products == []


def test_nothing_is_made_where_nothing_is_bounded_or_nothing_is_onednns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = Linear(4, 8)
    monkeypatch.delenv(CAPACITY, raising=False)
    with pytest.raises(NotApplicable):
        Worker(layer).make_kernels()
    monkeypatch.setenv(CAPACITY, "10")
    with pytest.raises(NotApplicable):
        Worker(Norm()).make_kernels()
    assert layer.products == []
