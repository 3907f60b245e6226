"""Arguments of the packed operators: layouts, and calls of all kinds drawn from a number."""

import random
from typing import Any

import torch
from torch import Tensor

from esbnn_core import kernels
from esbnn_core.kernels import reference

KINDS = (torch.float32, torch.bfloat16, torch.float16)


def layouts(x: Tensor) -> list[Tensor]:
    """(N, C, H, W) in five layouts: torch's two, part of wider pixels, gaps between rows, columns first."""
    wide = torch.cat([x, x], 1).to(memory_format=torch.channels_last)[:, : x.shape[1]]
    rows = torch.stack([x, x], 3).flatten(2, 3)[:, :, ::2]
    return [x, x.to(memory_format=torch.channels_last), wide, rows, x.transpose(2, 3).contiguous().transpose(2, 3)]


def drawn(number: int) -> dict[str, Any]:
    """Arguments of binary_conv2d, drawn: shapes of all kinds, and each later step there or not."""
    r, g = random.Random(number), torch.Generator().manual_seed(number)
    groups, copies, batch = r.choice((1, 1, 2, 4)), r.choice((1, 1, 2, 4)), r.randint(1, 3)
    inner, outer = r.choice((1, 16, 31, 32, 33, 64, 80, 96, 200)), r.choice((1, 5, 8, 16, 17, 32, 48))
    kernel = r.choice(((1, 1), (3, 3), (3, 3), (2, 2), (5, 1), (1, 4), (3, 5)))
    padding, stride = r.choice(((0, 0), (1, 1), (2, 1), (6, 6))), r.choice(((1, 1), (1, 1), (2, 2), (1, 3)))
    dilation = r.choice(((1, 1), (1, 1), (2, 2), (3, 1)))
    size = [d * (k - 1) + 1 + r.randint(0, 20) for k, d in zip(kernel, dilation, strict=True)]
    out = copies * groups * outer
    places = zip(size, padding, dilation, kernel, stride, strict=True)
    sides = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in places]

    def values(*shape: int) -> Tensor:
        x = torch.randn(*shape, generator=g)
        x.view(-1)[:: r.randint(3, 9)] = 0.0  # ties
        return x

    def maybe(*shape: int) -> Tensor | None:
        return values(*shape) if r.random() < 0.6 else None

    affine = r.random() < 0.9
    signs = r.choice([0, *(k for k in (1, 2, 4) if out % k == 0)]) if affine else 0
    residual = maybe(batch, out, *sides) if affine else None
    if residual is not None:
        residual = residual.to(r.choice(KINDS))
    if residual is not None and r.random() < 0.5:
        residual = residual.to(memory_format=torch.channels_last)
    x, shift = values(batch, groups * inner, *size), None
    if r.random() < 0.5:
        x, shift = layouts(x.to(r.choice(KINDS)))[r.randint(0, 4)], maybe(groups * inner)
    else:
        x = reference.pack_sign(x, None, groups, 1)
    return {
        "x": x,
        "weight": reference.pack_sign(values(groups * outer, inner, *kernel), None, 1, 1),
        "channels": groups * inner,
        "stride": stride,
        "padding": padding,
        "pad_value": r.choice((0, -1)),
        "dilation": dilation,
        "groups": groups,
        "copies": copies,
        "scale": values(out) if affine else None,
        "bias": values(out) if affine else None,
        "prelu": maybe(out) if affine else None,
        "residual": residual,
        "rprelu": maybe(3, out) if affine else None,
        "sign_shift": maybe(out) if affine else None,
        "sign_groups": signs,
        "shift": shift,
        "out_dtype": r.choice((None, *KINDS)) if affine else None,
    }


Args = dict[str, Any]


def in_words(number: int) -> Args:
    """Arguments as networks have them: filters in whole words, several tiles wide, every copy width of x."""
    r, g = random.Random(number), torch.Generator().manual_seed(number)
    groups, copies, outer = r.choice((1, 1, 2)), r.choice((1, 2)), r.choice((32, 64, 96, 160))
    inner, kernel = r.choice((32, 64, 96, 128, 256)), r.choice((1, 3, 3, 5))
    side, stride, batch = kernel + r.randint(1, 5), r.choice((1, 2)), r.randint(1, 3)
    out = copies * groups * outer
    after = (side + 2 * (kernel // 2) - kernel) // stride + 1

    def maybe(*shape: int) -> Tensor | None:
        return torch.randn(*shape, generator=g) if r.random() < 0.6 else None

    residual = maybe(batch, out, after, after)
    return {
        "x": reference.pack_sign(torch.randn(batch, groups * inner, side, side, generator=g), None, groups, 1),
        "weight": reference.pack_sign(torch.randn(groups * outer, inner, kernel, kernel, generator=g), None, 1, 1),
        "channels": groups * inner,
        "stride": (stride, stride),
        "padding": (kernel // 2, kernel // 2),
        "pad_value": r.choice((0, 0, -1)),
        "dilation": (1, 1),
        "groups": groups,
        "copies": copies,
        "scale": torch.randn(out, generator=g),
        "bias": torch.randn(out, generator=g),
        "prelu": maybe(out),
        "residual": None if residual is None else residual.to(r.choice(KINDS), memory_format=torch.channels_last),
        "rprelu": maybe(3, out),
        "sign_shift": maybe(out),
        "sign_groups": r.choice((0, 1, groups)),
        "shift": None,
        "out_dtype": r.choice(KINDS),
    }


ORDER = (
    "x", "weight", "channels", "stride", "padding", "pad_value", "dilation", "groups", "copies",
    "scale", "bias", "prelu", "residual", "rprelu", "sign_shift", "sign_groups",
)  # fmt: skip


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def conv_arguments(
    steps: str = "", channels: int = 40, filters: int = 6, groups: int = 2, copies: int = 2, seed: int = 0,
    dtype: torch.dtype = torch.float32, size: tuple[int, int, int] = (3, 7, 5), pad_value: int = 0, stride: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """Arguments by name; `steps` names the optional ones: a(ffine) p(relu) r(esidual) q (rprelu) s(ign) t (shift)."""
    g, out = gen(seed), copies * filters
    batch, height, width = size

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    sides = [(side + 2 - 3) // stride + 1 for side in (height, width)]
    return {
        "x": kernels.pack_sign(randn(batch, channels, height, width), None, groups, 1),
        "weight": kernels.pack_sign(randn(filters, channels // groups, 3, 3), None, 1, 1),
        "channels": channels,
        "stride": [stride, stride],
        "padding": [1, 1],
        "pad_value": pad_value,
        "dilation": [1, 1],
        "groups": groups,
        "copies": copies,
        "scale": randn(out) if "a" in steps else None,
        "bias": randn(out) if "a" in steps else None,
        "prelu": randn(out) if "p" in steps else None,
        "residual": randn(batch, out, *sides) if "r" in steps else None,
        "rprelu": randn(3, out) if "q" in steps else None,
        "sign_shift": randn(out) if "t" in steps else None,
        "sign_groups": 2 if "s" in steps else 0,
    }


def call(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    y, bits = torch.ops.esbnn.binary_conv2d.default(*(arguments[name] for name in ORDER))
    return y, bits


STEPS = ["", "a", "ap", "ar", "aq", "aprq", "as", "ast", "arqst", "aprqst"]
"""Letters for conv_arguments, as networks combine them."""


def linear_arguments(copies: int = 1, affine: bool = False) -> list[Any]:
    x = kernels.pack_sign(torch.randn(2, 3, 66, generator=gen(0)), None, 2, -1)
    weight = kernels.pack_sign(torch.randn(4, 33, generator=gen(1)), None, 1, -1)
    pair = [torch.randn(4 * copies, generator=gen(s)) if affine else None for s in (2, 3)]
    return [x, weight, 66, 2, copies, *pair]
