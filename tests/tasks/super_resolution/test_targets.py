"""What a network predicts: training and sampling agree on it, files remember it, and a wrong pair is refused."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ModelMixin, UniPCMultistepScheduler
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor

from esbnn_core import InputError, pack_, save_checkpoint
from esbnn_core.files import ROOT
from esbnn_core.lit.recipes import read_config
from tasks.super_resolution.module import make_network
from tasks.super_resolution.pipeline import SuperResolutionPipeline
from tasks.super_resolution.schedulers import PAPER, Target, default_scheduler, make_scheduler
from tests.helpers.super_resolution.tiny import make_module, make_unet

CONFIGS = ROOT / "configs/super_resolution"
TARGETS = [Target(), Target("sample"), Target("v_prediction"), Target("sample", True), Target("v_prediction", True)]


def alphas(target: Target) -> list[float]:
    """alpha-bar of every step in float64, from the papers' sentences."""
    products, product = [], 1.0
    for t in range(2000):
        product *= 1 - (1e-6 + (1e-2 - 1e-6) * t / 1999)
        products.append(product)
    if not target.zero_terminal_snr:
        return products
    first, last = math.sqrt(products[0]), math.sqrt(products[-1])
    return [((math.sqrt(a) - last) * first / (first - last)) ** 2 for a in products]


def wanted(target: Target, a: float, image: Tensor, noise: Tensor) -> Tensor:
    if target.prediction_type == "v_prediction":
        return math.sqrt(a) * noise - math.sqrt(1 - a) * image
    return noise if target.prediction_type == "epsilon" else image


class Knower(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Knows the picture, the condition upside down, and predicts its target from any sample of it."""

    @register_to_config
    def __init__(self, channel_mults: tuple[int, ...] = (1, 2)) -> None:
        super().__init__()
        self.nothing, self.target = torch.nn.Parameter(torch.zeros(())), PAPER

    def forward(self, sample: Tensor, timestep: Tensor, condition: Tensor) -> Any:
        a, image = alphas(self.target)[round(float(timestep))], 1 - condition
        noise = (sample.double() - math.sqrt(a) * image) / math.sqrt(1 - a)
        return UNet2DOutput(sample=wanted(self.target, a, image, noise).to(sample))


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize("target", TARGETS)
def test_sampling_ends_on_the_picture_that_the_network_knows(target: Target, name: str) -> None:
    network = Knower()
    network.target = target
    spacing = "trailing" if target.zero_terminal_snr else "leading"
    scheduler: Any = make_scheduler(name, {"timestep_spacing": spacing}, target)
    exact = torch.tensor(alphas(target), dtype=torch.float64)
    trained: Any = default_scheduler(target)  # where training ended is where sampling begins without options
    trained.set_timesteps(10)
    assert (trained.timesteps[0] == 1999) == target.zero_terminal_snr
    # DPM-Solver cannot divide by 0 and keeps 2^-24 at the last step
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), exact, rtol=2e-4, atol=1e-7)
    pipe = SuperResolutionPipeline(network, scheduler)
    pipe.set_progress_bar_config(disable=True)
    small = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2
    got = pipe(small, 2, 10, torch.Generator().manual_seed(1), output_type="pt").images
    seen: list[Tensor] = []
    network.forward = lambda sample, t, condition: seen.append(condition) or UNet2DOutput(sample=sample)  # type: ignore[method-assign]
    pipe(small, 2, 1, torch.Generator().manual_seed(1), output_type="pt")
    torch.testing.assert_close(got, (1 - seen[0]).clamp(0, 1), rtol=0, atol=0.02)


@pytest.mark.parametrize("gamma", [None, 5.0, 0.3])
@pytest.mark.parametrize("target", TARGETS)
def test_the_loss_is_the_weighted_error_of_the_target(target: Target, gamma: float | None) -> None:
    module = make_module(unet=target._asdict(), min_snr=gamma)
    image, condition = torch.rand(2, 6, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    told = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    met: list[tuple[Tensor, Tensor]] = []
    module.forward = lambda noisy, t, condition: met.append((noisy, t)) or told  # type: ignore[method-assign]
    module.log = lambda *args, **options: None  # type: ignore[method-assign]  # no trainer
    loss = module.training_step({"hr": image, "condition": condition}, 0)
    ((noisy, times),) = met
    known, total = alphas(target), 0.0
    for sample, t, x, guess in zip(noisy.double(), times.tolist(), image.double(), told.double(), strict=True):
        a = known[t]
        error = (guess - wanted(target, a, x, (sample - math.sqrt(a) * x) / math.sqrt(1 - a))).abs().mean().item()
        snr = a / (1 - a)
        over = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1.0}[target.prediction_type]
        total += error * (1.0 if gamma is None else math.sqrt(min(snr, gamma) / over)) / 6
    assert loss.item() == pytest.approx(total, rel=2e-3)


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_remembers_it(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "weights.safetensors"
    network = make_unet(prediction_type="sample", zero_terminal_snr=True)
    save_checkpoint(pack_(network) if packed else network, path)
    options: dict[str, Any] = {"unet": {"prediction_type": "sample", "zero_terminal_snr": True}}
    assert make_module(weights=str(path), **options).network.target == Target("sample", True)
    for other in ({}, {"prediction_type": "sample"}, {"prediction_type": "v_prediction", "zero_terminal_snr": True}):
        with pytest.raises(InputError, match=r"must be of a network with the options .*'prediction_type': 'sample'"):
            make_module(weights=str(path), unet=other)
    save_checkpoint(make_unet(), path)
    with pytest.raises(InputError, match=r"got those of its paper: build the network"):
        make_module(weights=str(path), **options)


def test_a_pipeline_keeps_it(tmp_path: Path) -> None:
    target = Target("v_prediction", True)
    pipe = SuperResolutionPipeline(make_unet(**target._asdict()), default_scheduler(target))
    pipe.save_pretrained(tmp_path)
    again = SuperResolutionPipeline.from_pretrained(tmp_path)
    assert again.unet.target == target
    again.scheduler = UniPCMultistepScheduler.from_config(again.scheduler.config)
    again.set_progress_bar_config(disable=True)
    small = torch.rand(1, 3, 4, 4)
    assert again(small, 2, 2, output_type="pt").images.isfinite().all()
    again.scheduler = default_scheduler()
    with pytest.raises(InputError, match="v_prediction and True, got epsilon and False of DDIMScheduler"):
        again(small, 2, 2)


def test_the_quick_recipe_predicts_the_image_from_pure_noise() -> None:
    model = read_config(CONFIGS / "quick.yaml")["model"]
    network = make_network({**model["overrides"], "tau": 2})
    assert network.target == Target("sample") and "strength" not in model
    scheduler = make_scheduler("DDIMScheduler", model["sampler_options"], network.target)
    scheduler.set_timesteps(model["num_inference_steps"])
    # the first step is the one of most noise, which a leading schedule never visits
    assert scheduler.timesteps[0] == scheduler.config.num_train_timesteps - 1
    leading = default_scheduler(network.target)
    leading.set_timesteps(model["num_inference_steps"])
    assert leading.timesteps[0] < scheduler.timesteps[0]


def test_what_cannot_be_is_one_sentence() -> None:
    for options, words in (
        (
            {"unet": {"zero_terminal_snr": True}},
            "prediction_type must be sample or v_prediction with zero_terminal_snr",
        ),
        ({"unet": {"prediction_type": "x0"}}, "prediction_type must be one of"),
        ({"min_snr": 0.0}, "min_snr must be a finite number above 0, got 0.0"),
        ({"sampler_options": {"prediction_type": "sample"}}, "epsilon and False, got sample and False"),
        ({"unet": {"prediction_type": "sample"}, "weights": "official.pth"}, "must be a .safetensors file"),
    ):
        with pytest.raises(InputError, match=words):
            make_module(**options)
