"""SuperResolutionPipeline: BI-DiffSR in diffusers' manner, from an image to one `scale` times as large.

Source: papers.md#bi-diffsr-diffusion.
"""

import inspect
from collections.abc import Sequence
from typing import Any, Literal, get_args

import diffusers
import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from esbnn_core.errors import InputError
from esbnn_core.packed.layers import is_packed
from tasks.super_resolution.image_files import Picture, to_picture
from tasks.super_resolution.resize import cubic_upsample, imresize
from tasks.super_resolution.unet import BIDiffSRUNet

Pixels = NDArray[np.uint8]
Colours = Pixels | NDArray[np.float32]
Output = Literal["pil", "np", "pt"]
Images = Image.Image | Sequence[Image.Image] | Tensor


def default_scheduler() -> DDIMScheduler:
    """The sampler of the original: 2000 training steps, linear betas 1e-6 .. 1e-2, noise predicted.

    Source: papers.md#bi-diffsr-diffusion.

    The library's defaults spelt out: the predicted image is clipped to [-1, 1] although images live in [0, 1], 50 steps
    are t = 1960, 1920, ..., 0, the last alpha-bar is 1.
    """
    return DDIMScheduler(
        num_train_timesteps=2000,
        beta_start=1e-6,
        beta_end=1e-2,
        beta_schedule="linear",
        clip_sample=True,
        clip_sample_range=1.0,
        set_alpha_to_one=True,
        steps_offset=0,
        prediction_type="epsilon",
        timestep_spacing="leading",
        rescale_betas_zero_snr=False,
    )


def make_scheduler(name: str = "DDIMScheduler", options: dict[str, Any] | None = None) -> SchedulerMixin:
    """A scheduler of diffusers by class name, with the noise of default_scheduler and its own further `options`.

    Raises:
        InputError: a name that diffusers does not have, an option that the scheduler does not.
    """
    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, SchedulerMixin)):
        raise InputError(f"scheduler {name!r} is not one of diffusers': give a class name, e.g. DDIMScheduler")
    known = inspect.signature(found.__init__).parameters
    for option in options or {}:
        if option not in known:
            raise InputError(f"{name} has no option {option!r}, one of {', '.join(list(known)[1:])} was expected")
    inherited = {key: value for key, value in default_scheduler().config.items() if key in known}
    try:
        scheduler: SchedulerMixin = found(**{**inherited, **(options or {})})
    except (ImportError, NotImplementedError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"scheduler {name} cannot be made with {options or {}} ({reason})") from error
    return scheduler


class SuperResolutionPipeline(DiffusionPipeline):
    """Upsamples images with a BIDiffSRUNet and a scheduler of diffusers; `to`, `save_pretrained`, `from_pretrained`
    and `set_progress_bar_config` are diffusers' own.

    Args:
        unet: latent, or packed by esbnn_core.pack_ (a packed one is not saved here: see esbnn_core.save_checkpoint).
        scheduler: default_scheduler() is the original's.
    """

    model_cpu_offload_seq = "unet"

    def __init__(self, unet: BIDiffSRUNet, scheduler: SchedulerMixin) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    def __call__(
        self,
        image: Images,
        scale: int = 2,
        num_inference_steps: int = 50,
        generator: torch.Generator | list[torch.Generator] | None = None,
        batch_size: int | None = None,
        output_type: Output = "pil",
        return_dict: bool = True,
        strength: float = 1.0,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Images `scale` times as wide and high.

        Args:
            image: a PIL image, several of any sizes, or a tensor (N, 3, h, w) in [0, 1].
            scale: what the network was trained for, 2 or 4; any whole number from 1 runs.
            num_inference_steps: of the scheduler; fewer are faster.
            generator: one an image; a single one seeds one for each image in turn, and None takes these seeds from
                torch's global generator. Noise is drawn on the generator's device (the CPU but for a list of CUDA
                ones): the same seed starts alike on every device.
            batch_size: images of one size that run together, default 1. It changes nothing but the last bits of the
                real-valued layers' sums.
            output_type: "pil", or "np" (N, H, W, 3) or "pt" (N, 3, H, W) in [0, 1], a list of such without N where the
                sizes differ.
            strength: as in diffusers' image-to-image pipelines: 1 starts from noise alone, as the paper does; s in
                (0, 1) from the condition under the noise of the last s of the steps, and takes those steps alone. A
                network that is trained for minutes knows small noise long before it finds brightness in pure noise.

        Returns:
            ImagePipelineOutput, or a tuple of the images alone. PIL images have the mode of the one given, L for one
            bit a pixel and RGB or RGBA for a palette; alpha is upsampled by bicubic interpolation.

        Raises:
            InputError: what is not an image, an option out of its range, another number of generators than of images.
        """
        if output_type not in get_args(Output):
            raise InputError(
                f"output_type={output_type!r} was given, one of {', '.join(get_args(Output))} was expected"
            )
        pictures = _pictures(image)
        generators = _generators(generator, len(pictures))
        colours = [picture.rgb for picture in pictures]
        together = 1 if batch_size is None else batch_size
        tensors = self.sample(colours, scale, num_inference_steps, generators, together, strength)
        images: Any = tensors
        if output_type == "pil":
            images = [finish(t, p.mode, p.alpha, scale) for t, p in zip(tensors, pictures, strict=True)]
        elif output_type == "np":
            images = [t.permute(1, 2, 0).cpu().numpy() for t in tensors]
        if output_type != "pil" and len({t.shape for t in tensors}) == 1:
            images = torch.stack(images) if output_type == "pt" else np.stack(images)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @torch.no_grad()
    def sample(
        self,
        images: Sequence[Colours],
        scale: int,
        steps: int,
        generators: Sequence[torch.Generator],
        batch_size: int,
        strength: float = 1.0,
    ) -> list[Tensor]:
        """Images (h, w, 3) of any sizes -> (3, scale * h, scale * w) in [0, 1] on the network's device, in their order.

        Args:
            images: RGB, uint8 or float32 in [0, 1]. generators: one an image. The others as in __call__.

        Raises:
            InputError: an option out of its range.
        """
        most = int(self.scheduler.config.num_train_timesteps)
        for name, value, last in (
            ("scale", scale, None),
            ("num_inference_steps", steps, most),
            ("batch_size", batch_size, None),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1 or value > (last or value):
                upto = f" to {last}" if last else ""
                raise InputError(f"{name}={value!r} was given, a whole number from 1{upto} was expected")
        if not 0 < strength <= 1 or int(steps * strength) < 1:
            raise InputError(
                f"strength={strength!r} was given with num_inference_steps={steps}, a share above 0 and up to 1 that "
                f"leaves one step or more was expected"
            )
        skipped = steps - int(steps * strength)
        places: dict[tuple[int, int], list[int]] = {}
        for place, pixels in enumerate(images):
            height, width = pixels.shape[:2]
            places.setdefault(self._padded(height * scale, width * scale), []).append(place)
        chunks = [
            group[start : start + batch_size] for group in places.values() for start in range(0, len(group), batch_size)
        ]
        self.scheduler.set_timesteps(steps, device=self._execution_device)
        results: dict[int, Tensor] = {}
        training = self.unet.training
        self.unet.eval()  # a pipeline around a network in training would drop out
        try:
            taken = len(self.scheduler.timesteps) - skipped * self.scheduler.order
            with self.progress_bar(total=len(chunks) * taken) as bar:
                for chunk in chunks:
                    condition = torch.stack([self._condition(images[place], scale) for place in chunk])
                    upsampled = self._denoise(condition, steps, skipped, [generators[place] for place in chunk], bar)
                    for place, result in zip(chunk, upsampled, strict=True):
                        height, width = images[place].shape[:2]
                        results[place] = result[:, : height * scale, : width * scale].clamp(0, 1)
        finally:
            if training:
                self.unet.train()
        return [results[place] for place in range(len(images))]

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """diffusers' own, of a latent network.

        Raises:
            InputError: a packed one, which from_pretrained could not read.
        """
        if is_packed(self.unet):
            raise InputError(
                "the network of the pipeline is packed and diffusers could not read its file: save it before pack_, "
                "or with esbnn_core.save_checkpoint"
            )
        super().save_pretrained(save_directory, *args, **kwargs)

    def _denoise(
        self, condition: Tensor, steps: int, skipped: int, generators: list[torch.Generator], bar: Any
    ) -> Tensor:
        """Conditions (n, 3, H, W) on the CPU -> images of that shape, before clamping; one run of the scheduler but for
        its first `skipped` steps."""
        device, kind = self._execution_device, self.unet.dtype
        # the image under way stays in full precision also around a network in half
        work = torch.float64 if kind == torch.float64 else torch.float32
        shape = (1, *condition.shape[1:])
        noise = torch.cat([randn_tensor(shape, g, device, torch.float32) for g in generators]).to(work)
        start = condition.to(device, work)
        condition = condition.to(device, kind)
        extra = {}
        if "generator" in inspect.signature(self.scheduler.step).parameters:
            extra["generator"] = list(generators)
        # anew for every batch: schedulers of several steps remember the last ones
        self.scheduler.set_timesteps(steps, device=device)
        timesteps = self.scheduler.timesteps[skipped * self.scheduler.order :]
        if skipped:
            if hasattr(self.scheduler, "set_begin_index"):
                self.scheduler.set_begin_index(skipped * self.scheduler.order)
            sample = self.scheduler.add_noise(start, noise, timesteps[:1].expand(len(noise)))
        else:
            sample = noise * self.scheduler.init_noise_sigma
        for t in timesteps:
            given = self.scheduler.scale_model_input(sample, t).to(kind)
            predicted = self.unet(given, t, condition).sample.to(work)
            sample = self.scheduler.step(predicted, t, sample, **extra).prev_sample.to(work)
            bar.update()
        return sample

    def _padded(self, height: int, width: int) -> tuple[int, int]:
        """The size rounded up to what the network halves without a rest, 8 for the original's four levels."""
        multiple = 2 ** (len(self.unet.config.channel_mults) - 1)
        return -(-height // multiple) * multiple, -(-width // multiple) * multiple

    def _condition(self, pixels: Colours, scale: int) -> Tensor:
        """(h, w, 3) -> float32 (3, H, W): upsampled, right and bottom mirrored up to the padded size."""
        large = cubic_upsample(pixels, scale)
        height, width = large.shape[:2]
        bottom, right = (p - s for p, s in zip(self._padded(height, width), (height, width), strict=True))
        # numpy mirrors as often as it takes; torch refuses images smaller than their padding
        padded = np.pad(large, ((0, bottom), (0, right), (0, 0)), mode="reflect")
        return torch.from_numpy(np.ascontiguousarray(padded.transpose(2, 0, 1)))


def finish(tensor: Tensor, mode: str, alpha: Pixels | None, scale: int) -> Image.Image:
    """The PIL image of a result (3, H, W) in [0, 1], in 8 bits, of mode L, LA, RGB or RGBA, with the alpha (h, w) of
    the image that was upsampled."""
    image = Image.fromarray(to_pixels(tensor))
    if mode in ("L", "LA"):
        image = image.convert("L")
    if alpha is not None:
        image.putalpha(Image.fromarray(imresize(alpha, scale)))
    return image


def to_pixels(tensor: Tensor) -> Pixels:
    """(3, H, W) in [0, 1] -> uint8 (H, W, 3), rounded."""
    return (tensor.permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()


def _pictures(image: Images) -> list[Picture]:
    if isinstance(image, Tensor):
        return [Picture(pixels, "RGB") for pixels in _tensor_pixels(image)]
    given = [image] if isinstance(image, Image.Image) else image
    if not isinstance(given, list | tuple):
        raise InputError(
            f"image is a {type(image).__name__}, a PIL image, a list of them or a tensor (N, 3, h, w) was expected: "
            f"open a file with PIL.Image.open"
        )
    if not given:
        raise InputError("image is an empty list: give at least one PIL image")
    for place, one in enumerate(given):
        if not isinstance(one, Image.Image):
            raise InputError(f"image {place} of the list is a {type(one).__name__}, a PIL image was expected")
        if 0 in one.size:
            raise InputError(
                f"image {place} of the list is {one.width}x{one.height} pixels large: give one with pixels"
            )
    return [to_picture(one, f"image {place} of the list") for place, one in enumerate(given)]


def _tensor_pixels(images: Tensor) -> list[Any]:
    if images.dim() != 4 or images.shape[1] != 3 or 0 in images.shape or not images.is_floating_point():
        raise InputError(
            f"image is a tensor {tuple(images.shape)} of {images.dtype}, floating (N, 3, h, w) in [0, 1] was expected"
        )
    if not (images.amin() >= 0 and images.amax() <= 1):  # NaN compares as false
        raise InputError("image is a tensor with values outside of [0, 1]: give the pixels divided by 255")
    return list(images.detach().float().permute(0, 2, 3, 1).cpu().numpy())


def _generators(given: torch.Generator | list[torch.Generator] | None, number: int) -> list[torch.Generator]:
    if isinstance(given, list | tuple):
        if len(given) != number:
            raise InputError(f"{len(given)} generators were given for {number} images: give one an image, or one alone")
        return list(given)
    device = "cpu" if given is None else given.device
    # one draw an image: the first images of a list do not depend on how many follow
    seeds = [int(torch.randint(2**63 - 1, (), generator=given, device=device)) for _ in range(number)]
    return [torch.Generator().manual_seed(seed) for seed in seeds]
