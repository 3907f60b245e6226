"""Which narrow types a processor computes in, and that a packed network in another one says so once."""

from collections.abc import Iterator

import pytest
import torch

from esbnn_core import create_model, pack_
from esbnn_core.cli import main
from esbnn_core.kernels import cpu
from esbnn_core.kernels.cpu import narrow


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    for known in (narrow.is_native, narrow.mention):
        known.cache_clear()
    yield
    for known in (narrow.is_native, narrow.mention):
        known.cache_clear()


def features(monkeypatch: pytest.MonkeyPatch, **found: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, **found}, raising=False)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_packed_network_in_a_type_that_is_imitated_says_so_once(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if cpu.choose()[0] is None:
        pytest.skip("no native library")
    own = {"avx512_bf16": dtype is torch.float16, "amx_bf16": False, "avx512_fp16": dtype is torch.bfloat16}
    features(monkeypatch, **own)
    network, x = pack_(create_model("reactnet_resnet8").eval()), torch.randn(1, 3, 16, 16)
    network(x)
    assert "instructions" not in capsys.readouterr().err
    for _ in range(2):
        network.to(dtype)(x.to(dtype))
    name = str(dtype).removeprefix("torch.")
    assert capsys.readouterr().err.count(f"this processor has no {name} instructions") == 1


@pytest.mark.parametrize(
    ("found", "word"),
    [({"avx512_bf16": True}, "may be faster"), ({"avx512_bf16": False}, "are slower"), ({}, "may be faster or slower")],
)
def test_the_doctor_says_where_bfloat16_pays(
    found: dict[str, bool], word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    features(monkeypatch, **found)
    assert main(["doctor"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert f"bfloat16 {word} than in float32" in lines
