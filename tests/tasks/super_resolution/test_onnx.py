"""A packed UNet as an ONNX file: its noise at any batch, size and timestep."""

import json
import sys
import warnings
from pathlib import Path

import pytest
import torch

from esbnn_core import InputError, pack_, save_checkpoint
from tests.helpers.super_resolution.unet import SMALL, small

pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

from esbnn_core.onnx import operators_library, session
from tasks.super_resolution.onnx import export_unet, main


@pytest.mark.slow
@pytest.mark.usefixtures("exporter_repeats_nothing")
@torch.no_grad()
def test_the_noise_of_the_commands_file_is_the_packed_networks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        operators_library()
    except InputError as error:
        pytest.skip(str(error))
    unet = pack_(small(tau=2, channel_mults=(1, 2)).float())
    path, weights = tmp_path / "net.onnx", tmp_path / "packed.safetensors"
    save_checkpoint(unet, weights)
    options = json.dumps({**SMALL, "tau": 2, "channel_mults": [1, 2]})
    monkeypatch.setattr(sys, "argv", ["onnx"])  # LightningCLI warns of arguments beside those of the process
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter
        assert main([str(path), "--model.unet", options, "--model.weights", str(weights)]) == 0
    maps = "(batch, 3, height, width)"
    inputs = [f"  in  sample {maps}", "  in  timestep (1)", f"  in  condition {maps}"]
    *told, noise_told = capsys.readouterr().out.splitlines()[-4:]
    assert told == inputs and noise_told.startswith("  out noise (batch, 3, ")
    assert main([str(path), "--model.unet", options]) == 2
    assert "there are no trained weights to export" in capsys.readouterr().err
    runs = session(path, 1)

    def noise(sample: torch.Tensor, timestep: float, condition: torch.Tensor) -> torch.Tensor:
        feed = {"sample": sample.numpy(), "timestep": torch.tensor([timestep]).numpy(), "condition": condition.numpy()}
        return torch.from_numpy(runs.run(None, feed)[0])

    generator = torch.Generator().manual_seed(0)
    found = []
    for batch, height, width in ((1, 8, 8), (3, 12, 6)):
        sample = torch.randn(batch, 3, height, width, generator=generator)
        condition = torch.rand(batch, 3, height, width, generator=generator)
        for timestep in (0.0, 700.0, 1999.0):  # three groups of units
            want = unet(sample, torch.tensor([timestep]), condition).sample
            got = noise(sample, timestep, condition)
            assert got.shape == want.shape and (got - want).abs().max() < 1e-5 * want.abs().max()
            found.append(got.flatten()[:100])
    assert not torch.allclose(found[0], found[1]) and not torch.allclose(found[1], found[2])
    odd = torch.zeros(1, 3, 7, 8)
    with pytest.raises(InputError, match="cannot run on this input") as caught:
        noise(odd, 0.0, odd)
    assert "\n" not in str(caught.value)


def test_a_latent_unet_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="an ONNX file is written of a packed network, got a latent one") as caught:
        export_unet(small(channel_mults=(1, 2)).float(), tmp_path / "net.onnx")
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []
