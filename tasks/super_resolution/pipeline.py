"""SuperResolutionPipeline: a pipeline of diffusers from an image to one `scale` times as large.

See papers.md#bi-diffsr-diffusion.
"""

import inspect
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from diffusers import DiffusionPipeline, PNDMScheduler
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import NDArray
from torch import Tensor

from esbnn_core.errors import InputError, check_choice, check_counts, reason_of
from esbnn_core.packed.layers import is_packed
from tasks.super_resolution.checksums import check_sums, write_sums
from tasks.super_resolution.pipeline_images import Images, Pixels, read_pipeline_images, to_pil
from tasks.super_resolution.resize import cubic_upsample
from tasks.super_resolution.schedulers import PAPER, check_noise, check_target, default_scheduler
from tasks.super_resolution.unet import BIDiffSRUNet

__all__ = ["SuperResolutionPipeline", "default_scheduler"]

Colours = Pixels | NDArray[np.float32]
Output = Literal["pil", "np", "pt"]


class SuperResolutionPipeline(DiffusionPipeline):
    """Upsamples images with a BIDiffSRUNet and a scheduler of diffusers.

    `to`, `save_pretrained`, `from_pretrained` and `set_progress_bar_config` are those of diffusers.

    Args:
        unet: latent, or packed by esbnn_core.pack_; a packed one is saved by esbnn_core.save_checkpoint only.
        scheduler: default_scheduler(unet.target) is the original's.
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
        """Upsample images to `scale` times their width and height.

        Args:
            image: a PIL image, several of any sizes, or a tensor (N, 3, h, w) in [0, 1].
            scale: that the network was trained for, 2 or 4; any whole number of at least 1 runs.
            num_inference_steps: of the scheduler; fewer are faster.
            generator: one an image; a single one seeds one for each image in turn, and None draws these seeds from
                torch's global generator. Noise is drawn on the generator's device (the CPU except for a list of CUDA
                ones), so a seed starts equally on every device.
            batch_size: images of one size that run together, default 1. It changes only the last bits of the sums of
                real layers.
            output_type: "pil", or "np" (N, H, W, 3) or "pt" (N, 3, H, W) in [0, 1], a list without N if sizes differ.
            return_dict: False gives (images,) in place of ImagePipelineOutput.
            strength: as in diffusers' image-to-image pipelines. 1 starts from pure noise, as in the paper. s in (0, 1)
                starts from the condition under the noise of the last share s of the steps, and takes only those steps:
                a network trained for minutes learns small noise long before it finds brightness in pure noise.

        Returns:
            ImagePipelineOutput, or (images,). PIL images have the mode of their source, L for one bit a pixel and RGB
            or RGBA for a palette; alpha is upsampled by bicubic interpolation. Their `info` has the source's ICC
            profile, which saving keeps, and its dpi.

        Raises:
            InputError: something other than an image, an option out of its range, a number of generators that is
                not that of the images, or a scheduler that samples another prediction than the network's.
        """
        check_choice("output_type", output_type, get_args(Output))
        sources = read_pipeline_images(image)
        generators = _make_generators(generator, len(sources))
        pixels = [source.rgb for source in sources]
        batch_size = 1 if batch_size is None else batch_size
        tensors = self.sample(pixels, scale, num_inference_steps, generators, batch_size, strength)
        images: Any = tensors
        if output_type == "pil":
            images = [to_pil(t, s.mode, s.alpha, scale, s.info) for t, s in zip(tensors, sources, strict=True)]
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
            images: RGB, uint8 or float32 in [0, 1].
            scale: as in __call__.
            steps: num_inference_steps of __call__.
            generators: one an image.
            batch_size: as in __call__.
            strength: as in __call__.

        Raises:
            InputError: an option out of its range; a scheduler for another prediction, or that cannot begin there.
        """
        target = getattr(self.unet, "target", None)
        # a network of somebody else's that says nothing predicts the noise, and may have been trained with other noise
        check_target(self.scheduler, target or PAPER)
        if target is not None:
            check_noise(self.scheduler, target)
        check_counts(scale=scale, batch_size=batch_size)
        check_sampling(steps, strength, int(self.scheduler.config.num_train_timesteps))
        skipped = steps - int(steps * strength)
        if skipped and isinstance(self.scheduler, PNDMScheduler):
            # its list begins with Runge-Kutta's timesteps, or repeats one, so that no step has a fixed place in it
            raise InputError(
                f"strength must be 1 with PNDMScheduler, whose first steps cannot be left out, got {strength}: take "
                f"another scheduler, such as DDIMScheduler"
            )
        places: dict[tuple[int, int], list[int]] = {}
        for place, pixels in enumerate(images):
            height, width = pixels.shape[:2]
            places.setdefault(self._pad_size(height * scale, width * scale), []).append(place)
        chunks = [
            group[start : start + batch_size] for group in places.values() for start in range(0, len(group), batch_size)
        ]
        try:
            self.scheduler.set_timesteps(steps, device=self._execution_device)
        except (ValueError, IndexError) as error:
            kind = type(self.scheduler).__name__
            raise InputError(
                f"num_inference_steps must be a number that {kind} can take, got {steps} ({reason_of(error)}): take "
                f"another number, or another scheduler"
            ) from error
        results: dict[int, Tensor] = {}
        training = self.unet.training
        self.unet.eval()  # otherwise a network in training would apply dropout
        try:
            per_chunk = len(self.scheduler.timesteps) - skipped * self.scheduler.order
            with self.progress_bar(total=len(chunks) * per_chunk) as bar:
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
        """Save a latent network, as in diffusers.

        Raises:
            InputError: a packed network, which from_pretrained could not read.
        """
        if is_packed(self.unet):
            raise InputError(
                "the network of the pipeline must be latent, because diffusers could not read a packed one: save it "
                "before pack_, or with esbnn_core.save_checkpoint"
            )
        super().save_pretrained(save_directory, *args, **kwargs)
        write_sums(save_directory, "scheduler")  # the network's folder has its own

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As in diffusers.

        Raises:
            InputError: what BIDiffSRUNet.from_pretrained refuses.
            DamagedError: a file that is not what save_pretrained wrote.
        """
        check_sums(pretrained_model_name_or_path)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    def _denoise(
        self, condition: Tensor, steps: int, skipped: int, generators: list[torch.Generator], bar: Any
    ) -> Tensor:
        """Conditions (n, 3, H, W) on the CPU -> images of that shape, before clamping.

        It runs the scheduler once, without its first `skipped` steps.
        """
        device, kind = self._execution_device, self.unet.dtype
        # the sample stays in full precision even if the network is in half precision
        work = torch.float64 if kind == torch.float64 else torch.float32
        shape = (1, *condition.shape[1:])
        noise = torch.cat([randn_tensor(shape, g, device, torch.float32) for g in generators]).to(work)
        start = condition.to(device, work)
        condition = condition.to(device, kind)
        extra = {}
        if "generator" in inspect.signature(self.scheduler.step).parameters:
            extra["generator"] = list(generators)
        # again for every batch, because multistep schedulers keep their last steps
        self.scheduler.set_timesteps(steps, device=device)
        timesteps = self.scheduler.timesteps[skipped * self.scheduler.order :]
        if skipped:
            if hasattr(self.scheduler, "set_begin_index"):
                self.scheduler.set_begin_index(skipped * self.scheduler.order)
            sample = self.scheduler.add_noise(start, noise, timesteps[:1].expand(len(noise)))
        else:
            sample = noise * self.scheduler.init_noise_sigma
        for t in timesteps:
            model_input = self.scheduler.scale_model_input(sample, t).to(kind)
            predicted = self.unet(model_input, t, condition).sample.to(work)
            sample = self.scheduler.step(predicted, t, sample, **extra).prev_sample.to(work)
            bar.update()
        return sample

    def _pad_size(self, height: int, width: int) -> tuple[int, int]:
        """The size rounded up to a multiple that the network can halve, 8 for the original's four levels."""
        multiple = 2 ** (len(self.unet.config.channel_mults) - 1)
        return -(-height // multiple) * multiple, -(-width // multiple) * multiple

    def _condition(self, pixels: Colours, scale: int) -> Tensor:
        """(h, w, 3) -> float32 (3, H, W): upsampled, and mirrored at its right and bottom up to the padded size."""
        large = cubic_upsample(pixels, scale)
        height, width = large.shape[:2]
        bottom, right = (p - s for p, s in zip(self._pad_size(height, width), (height, width), strict=True))
        # numpy mirrors several times if needed; torch refuses images smaller than their padding
        padded = np.pad(large, ((0, bottom), (0, right), (0, 0)), mode="reflect")
        return torch.from_numpy(np.ascontiguousarray(padded.transpose(2, 0, 1)))


def check_sampling(steps: int, strength: float, most: int) -> None:
    """Raise InputError for options that no sampling can have.

    Args:
        steps: num_inference_steps.
        strength: as the pipeline's.
        most: steps of the noise that the network is trained on.
    """
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= most:
        raise InputError(f"num_inference_steps must be a whole number of at least 1 and at most {most}, got {steps!r}")
    if not 0 < strength <= 1 or int(steps * strength) < 1:
        raise InputError(
            f"strength must be above 0, at most 1 and leave a step of num_inference_steps={steps}, got {strength!r}"
        )


def _make_generators(given: torch.Generator | list[torch.Generator] | None, number: int) -> list[torch.Generator]:
    if isinstance(given, list | tuple):
        if len(given) != number:
            raise InputError(f"generator must be one, or one for each of {number} images, got {len(given)}")
        return list(given)
    device = "cpu" if given is None else given.device
    # one draw an image, so that an image does not depend on those after it
    seeds = [int(torch.randint(2**63 - 1, (), generator=given, device=device)) for _ in range(number)]
    return [torch.Generator().manual_seed(seed) for seed in seeds]
