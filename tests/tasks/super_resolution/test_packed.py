"""The packed UNet predicts what the latent one does: every variant, copies, a timestep a sample, through a file."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from esbnn_core import pack_
from esbnn_core.layers.base import binary_layers
from esbnn_core.packed.layers import PackedLayer
from esbnn_core.packed.timestep import PackedTimestepUnit
from esbnn_core.transforms.pack import pack_layout_
from tasks.super_resolution.unet import BIDiffSRUNet
from tests.helpers.super_resolution.unet import pair, small

NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tau 2": {"tau": 2},
    "tau 2, two groups": {"tau": 2, "groups": 2},
    "carried real levels": {"tau": 2, "real_path": "carry"},
    "mixed copies": {"tau": 2, "copy_rule": "mix"},
    "one group a batch": {"group_rule": "first"},
    **{
        name: {"variant": name, "channel_mults": (1, 2)}
        for name in ("bnn", "dorefa", "xnor", "irnet", "reactnet", "bbcu")
    },
}


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_the_packed_network_predicts_the_same(name: str) -> None:
    unet = small(**NETWORKS[name]).float()
    packed = pack_(copy.deepcopy(unet))
    assert not binary_layers(packed)
    assert all(isinstance(m, PackedTimestepUnit) for m in packed.modules() if isinstance(m, PackedLayer))
    sample, condition = (t.float() for t in pair())
    for timestep in (0, 1960, torch.tensor([399, 400])):
        want = unet(sample, timestep, condition).sample
        got = packed(sample, timestep, condition).sample
        assert torch.equal(got, want)
    last = torch.channels_last
    got = packed.to(memory_format=last)(sample.to(memory_format=last), 800, condition.to(memory_format=last)).sample
    want = unet(sample, 800, condition).sample
    # real convolutions sum in another order in another layout, and a sign at the border of 0 may turn
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()


@torch.no_grad()
def test_maps_stay_channels_last_between_the_parts() -> None:
    for options in ({}, {"tau": 2}, {"tau": 2, "real_path": "carry"}):
        unet = pack_(small(**options).float()).to(memory_format=torch.channels_last)
        strays: list[str] = []
        hooks = [
            module.register_forward_hook(_stray(name, strays))
            for name, module in unet.named_modules()
            if isinstance(module, torch.nn.Conv2d | PackedLayer)
        ]
        sample, condition = (t.float().to(memory_format=torch.channels_last) for t in pair())
        unet(sample, 7, condition)
        for hook in hooks:
            hook.remove()
        assert len(hooks) > 20 and strays == []


def _stray(name: str, strays: list[str]) -> Any:
    """A hook that notes the module if its output has not its channels next to each other."""

    def note(module: torch.nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        if output.shape[1] > 1 and output.stride(1) != 1:
            strays.append(name)

    return note


@torch.no_grad()
def test_the_packed_state_goes_through_a_file(tmp_path: Path) -> None:
    unet = small(tau=2).float()
    packed = pack_(copy.deepcopy(unet))
    torch.save(packed.state_dict(), tmp_path / "packed.pt")
    other = pack_layout_(BIDiffSRUNet.from_config(unet.config))
    other.load_state_dict(torch.load(tmp_path / "packed.pt", weights_only=True))
    sample, condition = (t.float() for t in pair())
    assert torch.equal(other(sample, 42, condition).sample, unet(sample, 42, condition).sample)
