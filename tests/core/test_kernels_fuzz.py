"""The packed sums against torch's convolution and matrix product as exact whole numbers, over drawn geometries.

Every implementation computes the same cases: their arguments and the expected sums are made once.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from esbnn_core import kernels
from esbnn_core.kernels import Geometry
from esbnn_core.kernels.reference import pack_bits, popcount_, unpack_bits
from tests.helpers import paths
from tests.helpers.fuzz import FUZZ, Case, cases, signs


@pytest.mark.slow
def test_packed_convolution_is_torchs_convolution() -> None:
    executed = 0
    tails = corners = 0

    @settings(max_examples=300, **FUZZ)
    @given(cases())
    def check(c: Case) -> None:
        nonlocal executed, tails, corners
        generator = torch.Generator().manual_seed(c.seed)
        x = signs(generator, c.batch, c.groups * c.inner, *c.size)
        weight = signs(generator, c.groups * c.outer, c.inner, *c.kernel)
        ring = F.pad(x, (c.padding[1], c.padding[1], c.padding[0], c.padding[0]), value=float(c.pad_value))
        want = F.conv2d(ring, weight, None, c.stride, 0, c.dilation, c.groups)
        for path in paths.usable():
            with paths.forced(path):
                bits = kernels.pack_sign(x, None, c.groups, 1)
                rows = kernels.pack_sign(weight, None, 1, 1)
                geometry = Geometry(c.groups * c.inner, c.stride, c.padding, c.pad_value, c.dilation, c.groups)
                got, signs_out = kernels.binary_conv2d(bits, rows, geometry)
            assert got.dtype == torch.int32 and signs_out.numel() == 0, path
            assert torch.equal(got.double(), want), path
        executed += 1
        tails += c.inner % 32 != 0
        corners += c.pad_value == 0 and max(c.padding) > 0

    check()
    assert executed >= 250 and tails >= 150 and corners >= 75


def test_packed_product_is_torchs_product() -> None:
    executed = 0

    @settings(max_examples=250, **FUZZ)
    @given(
        st.lists(st.integers(1, 5), max_size=3),
        st.sampled_from((1, 2, 4)),
        st.integers(1, 70),
        st.integers(1, 4),
        st.integers(1, 3),
        st.integers(0, 2**31),
    )
    def check(lead: list[int], groups: int, inner: int, outer: int, copies: int, seed: int) -> None:
        nonlocal executed
        generator = torch.Generator().manual_seed(seed)
        x = signs(generator, *lead, groups * inner)
        weight = signs(generator, groups * outer, inner)
        blocks = x.unflatten(-1, (groups, inner)).unsqueeze(-2) * weight.unflatten(0, (groups, outer))
        want = blocks.sum(-1).flatten(-2)
        for path in paths.usable():
            with paths.forced(path):
                bits, rows = kernels.pack_sign(x, None, groups, -1), kernels.pack_sign(weight, None, 1, -1)
                got = kernels.binary_linear(bits, rows, groups * inner, groups, copies, None, None)
            assert torch.equal(got.double(), torch.cat([want] * copies, -1)), path
        executed += 1

    check()
    assert executed >= 200


FLOATS = st.one_of(
    st.floats(width=32), st.sampled_from((0.0, -0.0, math.nan, math.inf, -math.inf, 1e-45, -1e-45)), st.just(1.0)
)


def test_bits_are_those_of_a_plain_python_packing() -> None:
    executed = 0

    @settings(max_examples=150, **FUZZ)
    @given(st.lists(FLOATS, min_size=1, max_size=100), st.sampled_from((1, 2, 3)), st.sampled_from((1, -1)))
    def check(values: list[float], groups: int, dim: int) -> None:
        nonlocal executed
        inner = -(-len(values) // groups)
        values = values + [-1.0] * (groups * inner - len(values))
        words = []
        for group in range(groups):
            run = values[group * inner : (group + 1) * inner]
            for start in range(0, inner, 32):
                word = sum(1 << i for i, v in enumerate(run[start : start + 32]) if v >= 0)
                words.append(word - 2**32 if word >= 2**31 else word)
        x = torch.tensor(values, dtype=torch.float32)
        x = x.view(1, -1, 1, 1).expand(2, -1, 3, 1) if dim == 1 else x.expand(2, 3, 1, -1)
        for path in paths.usable():
            with paths.forced(path):
                got = kernels.pack_sign(x, None, groups, dim)
            assert got.dtype == torch.int32 and got.is_contiguous(), path
            assert got.shape == (2, 3, 1, kernels.words_of(len(values), groups)), path
            assert got.view(6, -1).tolist() == [words] * 6, path
        executed += 1

    check()
    assert executed >= 125


def test_unpacking_is_the_inverse_and_tails_are_zero() -> None:
    executed = 0

    @settings(max_examples=150, **FUZZ)
    @given(st.integers(1, 140), st.lists(st.integers(1, 4), max_size=3), st.integers(0, 2**31))
    def check(channels: int, lead: list[int], seed: int) -> None:
        nonlocal executed
        bits = torch.randint(2, (*lead, channels), generator=torch.Generator().manual_seed(seed)).bool()
        words = pack_bits(bits)
        assert torch.equal(unpack_bits(words, channels), bits)
        whole = unpack_bits(words, 32 * words.shape[-1])
        assert not whole[..., channels:].any()
        executed += 1

    check()
    assert executed >= 100


def test_popcount_counts_bits() -> None:
    executed = 0
    word = st.one_of(st.integers(-(2**31), 2**31 - 1), st.sampled_from((0, -1, -(2**31), 2**31 - 1, 0x55555555)))

    @settings(max_examples=300, **FUZZ)
    @given(st.lists(word, min_size=1, max_size=40))
    def check(words: list[int]) -> None:
        nonlocal executed
        got = popcount_(torch.tensor(words, dtype=torch.int32))
        assert got.tolist() == [bin(w & 0xFFFFFFFF).count("1") for w in words]
        executed += 1

    check()
    assert executed >= 250
