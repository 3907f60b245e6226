"""Convolutions drawn by hypothesis."""

from dataclasses import dataclass

import torch
from hypothesis import HealthCheck
from hypothesis import strategies as st
from torch import Tensor

FUZZ = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}


@dataclass(frozen=True)
class Case:
    batch: int
    groups: int
    inner: int
    outer: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    pad_value: int
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    groups = draw(st.sampled_from((1, 2, 4)))

    def pair(values: st.SearchStrategy[int]) -> tuple[int, int]:
        return draw(values), draw(values)

    kernel, dilation = pair(st.sampled_from((1, 2, 3, 5))), pair(st.integers(1, 2))
    padding = pair(st.integers(0, 3))
    # the smallest image that the kernel fits on: nothing has to be thrown away
    least = [max(1, d * (k - 1) + 1 - 2 * p) for d, k, p in zip(dilation, kernel, padding, strict=True)]
    return Case(
        batch=draw(st.integers(1, 5)),
        groups=groups,
        inner=draw(st.integers(1, 260 // groups)),
        outer=draw(st.integers(1, 3)),
        size=(draw(st.integers(least[0], 17)), draw(st.integers(least[1], 17))),
        kernel=kernel,
        stride=pair(st.integers(1, 3)),
        padding=padding,
        dilation=dilation,
        pad_value=draw(st.sampled_from((0, -1))),
        seed=draw(st.integers(0, 2**31)),
    )


def signs(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randint(2, shape, generator=generator).double() * 2 - 1
