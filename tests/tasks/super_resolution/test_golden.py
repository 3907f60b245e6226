"""BI-DiffSR's UNet against records of the original (float64, closed-form weights by official names, relative 1e-9)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tasks.super_resolution.conv_variants import Moment
from tasks.super_resolution.unet import BIDiffSRUNet
from tests.helpers.golden import close, closed_form

RECORDS: dict[str, Any] = json.loads((Path(__file__).parents[2] / "golden" / "super_resolution.json").read_text())


def test_all_records_are_used() -> None:
    modules = ["downs.3(CP-Down)/g2", "ups.6(CP-Up)/g2", "ups.0(CS-Fusion)/g2"]
    names = [*(f"32/t{t}" for t in (0, 399, 400, 1960)), "posenc/t1960", *modules]
    assert set(RECORDS) == {f"bidiffsr/{name}" for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("t", [0, 399, 400, 1960])
def test_the_whole_network_on_both_sides_of_a_group_boundary(official: BIDiffSRUNet, t: int) -> None:
    noisy = closed_form("noisy", 3 * 32 * 32).view(1, 3, 32, 32)
    condition = (closed_form("cond", 3 * 32 * 32).view(1, 3, 32, 32) + 1) / 2
    with torch.no_grad():
        close(official(noisy, t, condition).sample, RECORDS[f"bidiffsr/32/t{t}"])


def test_the_time_code(official: BIDiffSRUNet) -> None:
    close(official.time_code(torch.tensor([1960]), torch.float64), RECORDS["bidiffsr/posenc/t1960"])


def test_the_ways_down_and_up_and_the_fusion(official: BIDiffSRUNet) -> None:
    def given(channels: int, side: int) -> Tensor:
        return closed_form(f"b{channels}", channels * side * side).view(1, channels, side, side)

    moment = Moment(torch.zeros(1, 64, dtype=torch.float64), torch.tensor([2]))
    with torch.no_grad():
        close(official.downs[2](given(64, 8), moment), RECORDS["bidiffsr/downs.3(CP-Down)/g2"])
        close(official.ups[6](given(512, 4), moment), RECORDS["bidiffsr/ups.6(CP-Up)/g2"])
        u, v = given(1024, 4).chunk(2, 1)
        close(official.ups[0](u, v, moment), RECORDS["bidiffsr/ups.0(CS-Fusion)/g2"])
