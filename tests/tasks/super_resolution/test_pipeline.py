"""SuperResolutionPipeline: sampling by hand, any image, any scheduler, files, errors of one sentence."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from PIL import Image
from torch import Tensor

from esbnn_core import pack_
from esbnn_core.errors import DamagedError, InputError
from tasks.super_resolution.pipeline import SuperResolutionPipeline
from tasks.super_resolution.resize import cubic_upsample, imresize
from tasks.super_resolution.schedulers import Target, default_scheduler, make_scheduler
from tests.helpers.super_resolution.tiny import make_unet


def picture(height: int, width: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    return Image.fromarray(pixels[..., :3] if mode == "CMYK" else pixels).convert(mode)


def make_pipe(scheduler: Any = None, **options: Any) -> SuperResolutionPipeline:
    pipe = SuperResolutionPipeline(make_unet(**options), scheduler or default_scheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


class Oracle(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Knows the picture, `condition` turned upside down, and predicts the noise that separates `sample` from it."""

    @register_to_config
    def __init__(self, channel_mults: tuple[int, ...] = (1, 2)) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(()))
        self.first: Tensor | None = None

    def forward(self, sample: Tensor, timestep: Tensor, condition: Tensor) -> Any:
        self.first = sample if self.first is None else self.first
        alphas = default_scheduler().alphas_cumprod
        alpha = alphas[round(float(timestep))]
        noise = (sample - alpha.sqrt() * (1 - condition)) / (1 - alpha).sqrt()
        return diffusers.models.unets.unet_2d.UNet2DOutput(sample=noise)


def test_the_schedule_is_the_originals() -> None:
    scheduler = default_scheduler()
    scheduler.set_timesteps(50)
    assert scheduler.timesteps.tolist() == list(range(1960, -1, -40))
    # linear betas: the product in float64, by hand
    betas = np.linspace(1e-6, 1e-2, 2000)
    for t, published in ((1960, 6.47e-5), (1999, 4.39e-5)):
        got = float(scheduler.alphas_cumprod[t])
        assert got == pytest.approx(published, rel=1e-3)
        assert got == pytest.approx(np.prod(1 - betas[: t + 1]), rel=1e-4)
    config = scheduler.config
    assert (config.prediction_type, config.clip_sample, config.clip_sample_range) == ("epsilon", True, 1.0)
    assert float(scheduler.final_alpha_cumprod) == 1


@pytest.mark.parametrize("strength", [1.0, 0.5, 0.3])
@pytest.mark.parametrize(("height", "width", "scale"), [(5, 7, 2), (4, 6, 2), (3, 2, 3)])
def test_sampling_is_ddim_by_hand(height: int, width: int, scale: int, strength: float) -> None:
    """Noise of the generator, the condition mirrored to a multiple of 2, x0 clipped to [-1, 1], cropped and clamped."""
    unet = make_unet().double()
    pipe = SuperResolutionPipeline(unet, default_scheduler())
    image, steps = picture(height, width), 4
    got = pipe(image, scale, steps, seeded(3)[0:1], output_type="pt", strength=strength).images[0]
    high, wide = height * scale, width * scale
    condition = torch.from_numpy(cubic_upsample(np.array(image), scale)).permute(2, 0, 1)[None].double()
    if high % 2:
        condition = torch.cat([condition, condition[:, :, high - 2 : high - 1]], 2)
    if wide % 2:
        condition = torch.cat([condition, condition[:, :, :, wide - 2 : wide - 1]], 3)
    x = torch.randn(condition.shape, generator=seeded(3)[0]).double()
    bars = np.cumprod(1 - np.linspace(1e-6, 1e-2, 2000, dtype=np.float32).astype(np.float64))
    first = {1.0: 1500, 0.5: 500, 0.3: 0}[strength]
    if strength < 1:
        x = bars[first] ** 0.5 * condition + (1 - bars[first]) ** 0.5 * x
    for t in range(first, -1, -2000 // steps):
        bar, before = bars[t], bars[t - 2000 // steps] if t else 1.0
        with torch.no_grad():
            noise = unet(x, t, condition).sample
        x0 = ((x - (1 - bar) ** 0.5 * noise) / bar**0.5).clamp(-1, 1)
        x = before**0.5 * x0 + (1 - before) ** 0.5 * noise
    want = x[0, :, :high, :wide].clamp(0, 1)
    assert got.shape == want.shape and got.dtype == torch.float64
    # DDIM's own alphas are in float32
    assert torch.allclose(got, want, atol=1e-4)
    assert float(((want > 0) & (want < 1)).double().mean()) > 0.02  # clamping has not decided it all


@pytest.mark.parametrize(
    ("size", "mode", "scale", "result"),
    [
        ((1, 1), "RGB", 2, "RGB"),
        ((3, 7), "RGB", 1, "RGB"),
        ((8, 8), "RGBA", 4, "RGBA"),
        ((17, 5), "L", 2, "L"),
        ((5, 9), "LA", 3, "LA"),
        ((6, 4), "1", 2, "L"),
        ((4, 4), "P", 2, "RGB"),
        ((4, 5), "I;16", 2, "L"),
        ((4, 5), "CMYK", 2, "RGB"),
    ],
)
def test_any_size_and_mode(size: tuple[int, int], mode: str, scale: int, result: str) -> None:
    image = picture(*size, mode=mode)
    (got,) = make_pipe()(image, scale, 1).images
    assert (got.mode, got.size) == (result, (size[1] * scale, size[0] * scale))
    if mode in ("LA", "RGBA"):
        want = imresize(np.array(image.getchannel("A")), scale)
        assert np.array_equal(np.array(got.getchannel("A")), want)


def test_the_original_network_pads_to_eight_and_grey_is_coloured_alike() -> None:
    pipe = make_pipe(channel_mults=[1, 2, 4, 8])
    seen: list[tuple[int, ...]] = []
    pipe.unet.register_forward_hook(lambda module, args, output: seen.append(tuple(args[0].shape)))
    grey = picture(5, 9, mode="L")
    (as_grey,), (as_colour,) = (pipe(i, 2, 1, seeded(1)).images for i in (grey, grey.convert("RGB")))
    assert seen == [(1, 3, 16, 24)] * 2
    assert np.array_equal(np.array(as_grey), np.array(as_colour.convert("L"))) and as_colour.size == (18, 10)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "EulerAncestralDiscreteScheduler"])
def test_a_result_depends_on_its_image_and_generator_alone(name: str) -> None:
    """Alone, in a list of several sizes, in another order, in batches: also where the scheduler draws at every step."""
    pipe = make_pipe(make_scheduler(name)).to(torch.float64)
    images = [picture(5, 6, 0), picture(4, 7, 1), picture(5, 6, 2), picture(6, 6, 3), picture(5, 6, 4)]

    def run(order: list[int], batch_size: int | None) -> dict[int, Tensor]:
        found = pipe([images[i] for i in order], 2, 3, seeded(*order), batch_size, output_type="pt").images
        return dict(zip(order, found, strict=True))

    alone = {i: run([i], None)[i] for i in range(5)}
    for order, batch_size in (([0, 1, 2, 3, 4], None), ([4, 2, 3, 1, 0], 2), ([2, 0, 4, 3], 8)):
        for i, result in run(order, batch_size).items():
            assert result.shape == alone[i].shape and torch.allclose(result, alone[i], atol=1e-9), (order, i)
    assert not torch.equal(run([0], None)[0], pipe(images[0], 2, 3, seeded(9), output_type="pt").images[0])


def test_one_generator_seeds_the_images_in_turn() -> None:
    pipe, images = make_pipe(), [picture(4, 4), picture(4, 4), picture(4, 6)]

    def run(number: int, generator: torch.Generator | None) -> list[Any]:
        return [np.array(image) for image in pipe(images[:number], 2, 2, generator).images]

    three, two = run(3, seeded(5)[0]), run(2, seeded(5)[0])
    assert all(np.array_equal(a, b) for a, b in zip(three, two, strict=False))
    assert not np.array_equal(three[0], three[1])  # one image twice, from noise of its own
    torch.manual_seed(8)
    first = run(1, None)
    again = run(1, None)
    torch.manual_seed(8)
    assert np.array_equal(first, run(1, None)) and not np.array_equal(first, again)


@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler",
        "DDPMScheduler",
        "DPMSolverMultistepScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
    ],
)
def test_any_scheduler_finds_what_the_network_knows(name: str) -> None:
    """A network that predicts the very noise: each scheduler ends on the picture, from noise of deviation 1 inside."""
    oracle, image = Oracle(), picture(9, 8)
    pipe = SuperResolutionPipeline(oracle, make_scheduler(name))
    got = pipe(image, 2, 20, seeded(0), output_type="pt").images[0]
    want = (1 - torch.from_numpy(cubic_upsample(np.array(image), 2)).permute(2, 0, 1)).clamp(0, 1)
    assert (got - want).abs().max() < 0.01
    assert oracle.first is not None and 0.9 < float(oracle.first.std()) < 1.1


def test_a_scheduler_by_name_has_the_noise_of_training() -> None:
    scheduler: Any = make_scheduler("DPMSolverMultistepScheduler", {"solver_order": 3})
    assert torch.equal(scheduler.alphas_cumprod, default_scheduler().alphas_cumprod)
    assert scheduler.config.solver_order == 3
    with pytest.raises(InputError, match=r"scheduler 'Nope' is not one of diffusers'"):
        make_scheduler("Nope")
    with pytest.raises(
        InputError, match=r"an option of DDIMScheduler must be one of num_train_timesteps, .*, got 'steps'"
    ):
        make_scheduler("DDIMScheduler", {"steps": 3})
    with pytest.raises(InputError, match=r"DPMSolverMultistepScheduler cannot be made with .*'nope'"):
        make_scheduler("DPMSolverMultistepScheduler", {"algorithm_type": "nope"})


@pytest.mark.parametrize(
    ("name", "options", "target", "words"),
    [
        ("DDIMScheduler", {"beta_end": 0.012}, Target(), "has other betas"),
        ("DDPMScheduler", {"num_train_timesteps": 1000}, Target("sample"), "has other betas"),
        ("CogVideoXDDIMScheduler", {}, Target("v_prediction"), "has other betas"),
        ("EDMEulerScheduler", {}, Target(), "ends 1.* off an image"),
        ("IPNDMScheduler", {}, Target(), "ends 1.* off an image"),
        ("UniPCMultistepScheduler", {"predict_x0": False}, Target(), "ends nan off an image"),
        ("DDIMInverseScheduler", {}, Target("v_prediction"), r"gives the network 9\.81 times the noise"),
        (
            "DPMSolverMultistepScheduler",
            {"use_flow_sigmas": True},
            Target("sample"),
            r"gives the network 0\.719 times the noise",
        ),
        ("FlowMatchEulerDiscreteScheduler", {}, Target(), "fails at sampling"),
        ("EulerAncestralDiscreteScheduler", {}, Target("sample"), "fails at sampling .*not implemented"),
    ],
)
def test_a_scheduler_of_another_process_is_refused(
    name: str, options: dict[str, Any], target: Target, words: str
) -> None:
    """All of them were made and the first eight sampled, wrong without a word."""
    with pytest.raises(InputError, match=rf"{name} must sample from the noise of training .* but it {words}"):
        make_scheduler(name, options, target)
    pipe = make_pipe(getattr(diffusers, name)(**options))
    with pytest.raises(InputError):
        pipe(picture(3, 3), 2, 4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("DDIMScheduler", {"thresholding": True, "set_alpha_to_one": False, "steps_offset": 1}),
        ("DDPMScheduler", {"variance_type": "fixed_large", "timestep_spacing": "linspace"}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
        ("EulerDiscreteScheduler", {"use_exponential_sigmas": True}),
        ("LCMScheduler", {}),
        ("PNDMScheduler", {"skip_prk_steps": True}),
        ("SASolverScheduler", {}),
        ("TCDScheduler", {}),
    ],
)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_scheduler_of_the_same_process_is_taken(name: str, options: dict[str, Any], prediction: Any) -> None:
    assert make_scheduler(name, options, Target(prediction)).config.prediction_type == prediction


def test_a_number_of_steps_that_a_scheduler_cannot_take_is_refused() -> None:
    for name, steps in (("PNDMScheduler", 2), ("LCMScheduler", 60)):
        with pytest.raises(
            InputError, match=rf"num_inference_steps must be a number that {name} can take, got {steps}"
        ):
            make_pipe(make_scheduler(name))(picture(3, 3), 2, steps)


@pytest.mark.parametrize("options", [{}, {"tau": 2}, {"variant": "real"}], ids=["bi", "es", "real"])
def test_a_saved_pipeline_is_the_same(tmp_path: Path, options: dict[str, Any]) -> None:
    pipe = make_pipe(make_scheduler("DPMSolverMultistepScheduler"), **options)
    pipe.save_pretrained(tmp_path / "pipe")
    again = SuperResolutionPipeline.from_pretrained(tmp_path / "pipe")
    again.set_progress_bar_config(disable=True)
    assert type(again.scheduler) is type(pipe.scheduler)
    own, read = ({key: value for key, value in p.unet.config.items() if not key.startswith("_")} for p in (pipe, again))
    assert own == read and own["inner_channels"] == 8
    images = [picture(4, 5), picture(3, 3)]
    both = [p(images, 2, 3, seeded(1, 2)).images for p in (pipe, again)]
    for a, b in zip(*both, strict=True):
        assert np.array_equal(np.array(a), np.array(b))


@pytest.mark.parametrize(
    "name", ["unet/diffusion_pytorch_model.safetensors", "unet/config.json", "scheduler/scheduler_config.json"]
)
def test_a_damaged_file_of_a_pipeline_is_refused(tmp_path: Path, name: str) -> None:
    """One bit of a weight, which diffusers would not notice, and one digit of a number of channels or timesteps."""
    make_pipe().save_pretrained(tmp_path)
    whole = (tmp_path / name).read_bytes()
    place = -5 if name.endswith(".safetensors") else re.search(rb": \d*(\d)", whole).start(1)  # type: ignore[union-attr]
    changed = bytearray(whole)
    changed[place] ^= 1
    (tmp_path / name).write_bytes(changed)
    with pytest.raises(DamagedError, match=rf"{Path(name).name} does not have the sha256 in .*sha256\.json"):
        SuperResolutionPipeline.from_pretrained(tmp_path)
    (tmp_path / name).write_bytes(whole)
    SuperResolutionPipeline.from_pretrained(tmp_path)
    (tmp_path / "unet" / "sha256.json").write_text("[]")
    with pytest.raises(DamagedError, match=r"sha256\.json is damaged, it is not a json object"):
        SuperResolutionPipeline.from_pretrained(tmp_path)


def test_a_packed_network_upsamples_and_is_not_saved(tmp_path: Path) -> None:
    image, pipe = picture(4, 4), make_pipe()
    (latent,) = pipe(image, 2, 3, seeded(1), output_type="pt").images
    pack_(pipe.unet)
    (packed,) = pipe(image, 2, 3, seeded(1), output_type="pt").images
    assert torch.allclose(latent, packed, atol=1e-3)
    with pytest.raises(InputError, match="the network of the pipeline must be latent"):
        pipe.save_pretrained(tmp_path / "packed")
    assert not list(tmp_path.iterdir())


def test_a_network_in_training_does_not_drop_out() -> None:
    pipe, image = make_pipe(dropout=0.9), picture(4, 4)
    quiet = pipe(image, 2, 2, seeded(1), output_type="pt").images
    pipe.unet.train()
    assert torch.equal(pipe(image, 2, 2, seeded(1), output_type="pt").images, quiet)
    assert all(module.training for module in pipe.unet.modules())


def test_tensors_and_arrays() -> None:
    pipe, images = make_pipe(), [picture(4, 6, 0), picture(4, 6, 1)]
    tensor = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in images])
    as_tensor = pipe(tensor, 2, 2, seeded(1, 2), output_type="pt").images
    as_array = pipe(images, 2, 2, seeded(1, 2), output_type="np").images
    assert as_tensor.shape == (2, 3, 8, 12) and as_array.shape == (2, 8, 12, 3)
    assert np.allclose(as_tensor.permute(0, 2, 3, 1).numpy(), as_array, atol=1e-4)
    assert as_array.min() >= 0 and as_array.max() <= 1
    (as_pil,) = pipe(images, 2, 2, seeded(1, 2), return_dict=False)
    assert np.array_equal(np.array(as_pil[1]), np.rint(as_array[1] * 255))
    mixed = pipe([picture(4, 6), picture(2, 6)], 2, 1, output_type="np").images
    assert [array.shape for array in mixed] == [(8, 12, 3), (4, 12, 3)]


def test_the_progress_bar_counts_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = make_pipe()
    pipe(picture(4, 4), 2, 3)
    assert capsys.readouterr().err == ""
    pipe.set_progress_bar_config(desc="upsampling", mininterval=0)
    pipe([picture(4, 4), picture(4, 4), picture(4, 6)], 2, 3, batch_size=2)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("upsampling") and "6/6" in last


def bad_calls() -> Iterator[tuple[dict[str, Any], str]]:
    image = picture(4, 4)
    yield {"image": "manga.png"}, "image must be a PIL image, a list of them or a tensor .*, got a str"
    yield {"image": []}, "must be at least one PIL image, got an empty list"
    yield {"image": [image, None]}, "image 1 of the list must be a PIL image, got a NoneType"
    yield {"image": Image.new("RGB", (0, 3))}, "image 0 of the list must have pixels, got 0x3"
    yield {"image": Image.new("F", (3, 3))}, r"pixels of image 0 of the list must have 8 or 16 bits, got 32 \(mode F\)"
    yield {"image": torch.zeros(3, 4, 4)}, r"an image tensor must be .*, got \(3, 4, 4\) of torch.float32"
    yield {"image": torch.full((1, 3, 4, 4), 255.0)}, r"must be in \[0, 1\], got other values"
    yield {"image": torch.full((1, 3, 4, 4), float("nan"))}, r"must be in \[0, 1\], got other values"
    yield {"image": image, "scale": 0}, "scale must be a whole number of at least 1, got 0"
    yield {"image": image, "scale": 1.5}, r"scale must be .*, got 1\.5"
    yield {"image": image, "num_inference_steps": 2001}, "num_inference_steps must be .* at most 2000, got 2001"
    yield {"image": image, "batch_size": 0}, "batch_size must be .*, got 0"
    yield {"image": image, "strength": 1.5}, r"strength must be above 0, at most 1 .* num_inference_steps=1, got 1\.5"
    yield {"image": image, "strength": 0.5}, "leave a step of num_inference_steps=1, got 0.5"
    yield {"image": image, "output_type": "latent"}, "output_type must be one of pil, np, pt, got 'latent'"
    yield {"image": image, "generator": seeded(1, 2)}, "generator must be one, or one for each of 1 images, got 2"


@pytest.mark.parametrize(("call", "sentence"), bad_calls())
def test_a_bad_call_is_one_sentence(call: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        make_pipe()(**{"num_inference_steps": 1, **call})


def test_a_scheduler_without_a_place_to_begin_is_refused_below_full_strength() -> None:
    """PNDM's list of timesteps begins with those of Runge-Kutta: cut by steps, sampling began at the wrong noise."""
    pipe = SuperResolutionPipeline(make_unet(), make_scheduler("PNDMScheduler"))
    with pytest.raises(InputError, match=r"strength must be 1 with PNDMScheduler, .*, got 0\.5"):
        pipe(picture(4, 6), 2, 4, strength=0.5)
    assert len(pipe(picture(4, 6), 2, 4).images) == 1
