"""Official files of networks that the tasks define, in a process that imports the network's class and nothing else."""

import sys
from pathlib import Path

import pytest

from tests.helpers import processes

ROOT = Path(__file__).parents[2]
SSD300 = """
import tasks.detection.models.register
from tasks.detection.mmdet import api as mm

def build():
    return mm.build(mm.load_config("configs/detection/mmdet/bidet_ssd300.py").to_dict()["model"])
"""
UNET = """
from tasks.super_resolution.unet import BIDiffSRUNet

def build():
    return BIDiffSRUNet(inner_channels=8, norm_groups=2, channel_mults=(1, 2, 4), res_blocks=1, real_resolutions=(256,))
"""
THERE_AND_BACK = """
import sys, torch
from esbnn_core.checkpoint.official import load_official, to_official

def there_and_back(declares, keys):
    assert declares not in sys.modules, "imported with the network"
    one, other = build(), build()
    for parameter in one.parameters():
        torch.nn.init.normal_(parameter)
    file = to_official(one)
    assert len(file) == keys and declares in sys.modules
    assert load_official(other, file).tensors == keys
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "declares", "keys"),
    [
        (SSD300, "tasks.detection.official", 212),
        (UNET, "tasks.super_resolution.official", 811),
    ],
    ids=["ssd300", "unet"],
)
def test_the_names_are_found_by_the_networks_class(network: str, declares: str, keys: int) -> None:
    code = f"{network}{THERE_AND_BACK}there_and_back({declares!r}, {keys})\n"
    done = processes.run([sys.executable, "-c", code], ROOT)
    assert done.returncode == 0, done.stderr
