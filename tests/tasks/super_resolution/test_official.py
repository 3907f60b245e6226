"""Official files of BI-DiffSR: names and shapes, reading, writing, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

from esbnn_core import InputError
from esbnn_core.checkpoint.official import load_official, to_official
from tasks.super_resolution.unet import BIDiffSRUNet
from tests.helpers.super_resolution.unet import pair, small

LIST = Path(__file__).parents[4] / "shared" / "spec" / "state-keys" / "bidiffsr_state_keys.json"


@pytest.mark.slow
def test_names_and_shapes_are_those_of_the_file(official: BIDiffSRUNet) -> None:
    shapes = {key: list(tensor.shape) for key, tensor in to_official(official).items()}
    assert len(shapes) == len(official.state_dict()) == 1371
    assert sum(p.numel() for p in official.parameters()) == 51_280_387
    assert shapes["downs.0.weight"] == [64, 6, 3, 3] and shapes["mid.0.attn.qkv.weight"] == [1536, 512, 1, 1]
    assert shapes["downs.3.biconv1.TaR.dynamic_move_4.bias"] == [1, 32, 1, 1]
    assert shapes["ups.20.biconv2.binary_conv.weight"] == [128, 128, 3, 3]
    assert shapes["ups.12.res_block.block2.conv.TaA.dynamic_relu_3.pr_prelu.weight"] == [256]
    assert shapes["ups.26.res_block.block1.conv.bias"] == [64] and shapes["ups.14.biconv_1.weight"] == [128, 128, 1, 1]
    assert shapes["final_conv.block.3.weight"] == [3, 64, 3, 3]
    if LIST.is_file():
        assert shapes == json.loads(LIST.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("groups", [2, 5])
def test_a_file_is_read_back_in_every_bit(tmp_path: Path, groups: int) -> None:
    # the original's number of groups on two levels, which have every kind of tensor
    options = {"timestep_groups": groups, "channel_mults": (1, 2) if groups == 5 else (1, 2, 4)}
    one, other = small(**options), small(**options)
    for parameter in other.parameters():
        torch.nn.init.ones_(parameter)
    file = to_official(one)
    torch.save({"params": file}, tmp_path / "BI_DiffSR_x2.pth")
    report = load_official(other, tmp_path / "BI_DiffSR_x2.pth")
    assert report.tensors == len(file) == len(one.state_dict()) and report.zeros == 0
    assert all(torch.equal(value, one.state_dict()[key]) for key, value in other.state_dict().items())
    with torch.no_grad():
        noisy, condition = pair()
        assert torch.equal(one(noisy, 700, condition).sample, other(noisy, 700, condition).sample)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"downs.2.biconv2.binary_conv.weight": None}, r"downs\.2\.biconv2\.binary_conv\.weight is missing"),
        ({"downs.12.weight": torch.zeros(2)}, r"downs\.12\.weight is not expected"),
        ({"final_conv.block.3.bias": torch.zeros(4)}, r"head\.bias has shape \(4,\)"),
        ({"final_conv.block.3.bias": torch.full((3,), torch.nan)}, "NaN"),
    ],
)
def test_another_file_is_refused_by_name(change: dict[str, torch.Tensor | None], words: str) -> None:
    unet = small()
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    file = {key: value for key, value in {**to_official(unet), **change}.items() if value is not None}
    with pytest.raises(InputError, match=words):
        load_official(unet, {"params": {key: 2 * value for key, value in file.items()}})
    assert all(torch.equal(value, before[key]) for key, value in unet.state_dict().items())


def test_baselines_have_no_official_file_and_the_sentence_says_so() -> None:
    with pytest.raises(InputError, match="BIDiffSRUNet has no official files"):
        to_official(small(variant="bnn"))
    with pytest.raises(InputError, match="it looks like BI-DiffSR's UNet"):
        load_official(small(timestep_groups=4), to_official(small()))
