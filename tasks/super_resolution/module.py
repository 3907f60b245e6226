"""SuperResolutionModule: training by the diffusion loss, evaluation by PSNR, SSIM and LPIPS."""

import copy
import inspect
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from diffusers.training_utils import compute_snr
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.nn import functional as F

from esbnn_core.checkpoint.official import load_official
from esbnn_core.errors import InputError, check_choice, check_counts
from esbnn_core.lit.data import mix_seed
from esbnn_core.lit.distributed import from_all_processes
from esbnn_core.lit.finite_loss import check_finite
from esbnn_core.lit.image_files import check_none_replaced
from esbnn_core.lit.module import OnBits, TaskModule
from esbnn_core.lit.precision import load_weights
from esbnn_core.lit.weight_decay import DecayRule
from tasks.super_resolution.comparison_sheet import Strip, draw_sheet, make_strip, write_png
from tasks.super_resolution.cost import count_unet
from tasks.super_resolution.datasets import Item
from tasks.super_resolution.export import save_pipeline
from tasks.super_resolution.metrics import Lpips
from tasks.super_resolution.pipeline import SuperResolutionPipeline, check_sampling
from tasks.super_resolution.pipeline_images import to_pil, to_pixels
from tasks.super_resolution.schedulers import default_scheduler, make_scheduler
from tasks.super_resolution.scoring import ImageScores, Scores, score_image
from tasks.super_resolution.unet import BIDiffSRUNet

SHEET = "_sheet.png"
"""Name of the sheet that predict draws beside the images."""
SIDE = 256
"""Side of the image for which operations are published (papers.md#operations)."""


class SuperResolutionModule(TaskModule):
    """Trains and evaluates one BIDiffSRUNet.

    Args:
        unet: options of BIDiffSRUNet, e.g. {tau: 2}; none is the official network.
        overrides: further options of BIDiffSRUNet, over `unet`: a later config would replace `unet` as a whole.
        scale: of the images (linked to the data module on the command line).
        weights: file to start from or to evaluate: a .safetensors, latent or packed (a packed one cannot be trained),
            or an official .pth.
        train_on_bits: compute the sums of the binary layers by the packed operators in training too
            (esbnn_core.train_on_bits_): the same gradients from less memory; "bfloat16" also rounds them before
            backward's convolutions.
        optimizer: parameters -> optimizer.
        decay: weight decay by kind of parameter, in place of the optimizer's own.
        lr_scheduler: optimizer -> scheduler; ProgressLR receives the length of the run.
        lr_interval: whether the scheduler advances every step or every epoch.
        sampler: class name of a scheduler of diffusers, for evaluation; training is always that of the original.
        sampler_options: of the sampler, besides the noise that the network is trained on.
        num_inference_steps: of test and predict.
        val_steps: of validation, default num_inference_steps.
        min_snr: gamma of the weights of the loss (papers.md#min-snr), None for the paper's mean over all timesteps. The
            published weights are for squares; the loss is of absolute errors and has their square roots.
        strength: of validation, test and predict, as SuperResolutionPipeline's; 1 is the paper's.
        sample_batch: images of one size that are sampled together.
        eval_seed: of the noise that evaluation starts from; the noise of an image depends on it and on its name.
        channels_last: memory format of network and images; with train_on_bits on a CPU it saves copies of maps.
        predictions: folder that predict writes, default predictions in the run's own; each of several sets has a folder
            in it.

    Logs train_loss; val_psnr, val_ssim and val_lpips, means over the images of all validation sets; test_psnr_SET and
    so on for every test set. Every image counts once. PSNR and SSIM are those of the Y channel. LPIPS is measured if
    its weights are at hand.

    Differs from the paper: there one stream of noise, seeded with 10, runs through all images of a set. Here every
    image has its own, so that results depend on no order, batch size or number of processes.

    Raises:
        InputError: at construction an option or file that does not fit; at the start of fit packed weights.
    """

    monitor = "val_psnr"

    def __init__(
        self,
        unet: dict[str, Any] | None = None,
        overrides: dict[str, Any] | None = None,
        scale: int = 2,
        weights: str | None = None,
        train_on_bits: OnBits = False,
        optimizer: OptimizerCallable = torch.optim.Adam,
        decay: DecayRule | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "step",
        sampler: str = "DDIMScheduler",
        sampler_options: dict[str, Any] | None = None,
        num_inference_steps: int = 50,
        val_steps: int | None = None,
        min_snr: float | None = None,
        strength: float = 1.0,
        sample_batch: int = 1,
        eval_seed: int = 10,
        channels_last: bool = False,
        predictions: str | None = None,
    ) -> None:
        super().__init__()
        val_steps = num_inference_steps if val_steps is None else val_steps
        check_counts(
            scale=scale, num_inference_steps=num_inference_steps, val_steps=val_steps, sample_batch=sample_batch
        )
        self.network: Any = make_network({**(unet or {}), **(overrides or {})})
        self.noise_schedule: Any = default_scheduler(self.network.target)
        total, trained = self.network.config.total_steps, self.noise_schedule.config.num_train_timesteps
        if total != trained:
            raise InputError(f"total_steps of model.unet must be the {trained} of training, got {total}: leave it out")
        self.sampler = make_scheduler(sampler, sampler_options, self.network.target)
        for steps in (val_steps, num_inference_steps):
            check_sampling(steps, strength, trained)
        if min_snr is not None and not 0 < min_snr < math.inf:
            raise InputError(f"min_snr must be a finite number above 0, got {min_snr}: its paper has 5")
        self.min_snr = min_snr
        self.begun, self.started_from = weights is not None, weights
        if weights is not None:
            load_weights_(self.network, weights)
        self.train_on_bits(train_on_bits)
        self.lay_out(channels_last)
        self.make_optimizer, self.make_scheduler, self.lr_interval = optimizer, lr_scheduler, lr_interval
        self.decay, self.scale, self.predictions = decay, scale, predictions
        self.steps = {"val": val_steps, "test": num_inference_steps, "predict": num_inference_steps}
        self.sample_batch, self.eval_seed, self.strength = sample_batch, eval_seed, strength
        self.scored: list[ImageScores] = []
        self.strips: list[Strip] = []
        self.scores: Scores | None = None
        self.lpips: Lpips | str | None = None

    @property
    def pipeline(self) -> SuperResolutionPipeline:
        """diffusers' pipeline around the network and the sampler."""
        pipe = SuperResolutionPipeline(self.network, self.sampler)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def write_files(self, folder: Path, metric: Mapping[str, float], commit: str | None = None) -> list[str]:
        """Write the weights, and the pipeline of diffusers."""
        written = super().write_files(folder, metric, commit)
        return [*written, save_pipeline(self.pipeline, folder / "pipeline")]

    def check_data(self, data: L.LightningDataModule | None) -> None:
        """Raise InputError unless the data module upsamples by as much as the network."""
        scale = getattr(data, "scale", self.scale)
        if scale != self.scale:
            raise InputError(f"data.scale and model.scale must be equal, got {scale} and {self.scale}")

    def setup(self, stage: str) -> None:
        """Lightning's hook."""
        self.check_data(getattr(self.trainer, "datamodule", None))

    def on_fit_start(self) -> None:
        """Lightning's hook, after a checkpoint is loaded."""
        self.check_fit(resumes=False)
        self.begun = True

    def forward(self, sample: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        """Noisy images and conditions (N, 3, H, W), timesteps (N,) -> the noise (N, 3, H, W)."""
        sample, condition = (x.contiguous(memory_format=self.memory_format) for x in (sample, condition))
        noise: Tensor = self.network(sample, timestep, condition).sample
        return noise

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean absolute error of the prediction; stops the run at the first loss that is not finite."""
        image, condition = batch["hr"], batch["condition"]
        number = len(image)
        # drawn on the CPU, whose generator EpochSeed seeds for every step: equal on every device
        noise = torch.randn(image.shape).to(image)
        steps = self.noise_schedule.config.num_train_timesteps
        shared = self.network.config.group_rule == "first"
        t = torch.randint(steps, (1 if shared else number,)).expand(number).to(image.device)
        noisy = self.noise_schedule.add_noise(image, noise, t)
        errors = F.l1_loss(self(noisy, t, condition), self._target_of(image, noise, t), reduction="none")
        loss = errors.mean() if self.min_snr is None else (self._weights_of(t) * errors.flatten(1).mean(1)).mean()
        check_finite(loss, self.global_step, self.network, (noisy, condition), lambda: self(noisy, t, condition))
        self.log("train_loss", loss.detach(), prog_bar=True, batch_size=number)
        self.log("train_loss_epoch", loss.detach(), on_step=False, on_epoch=True, sync_dist=True, batch_size=number)
        return loss

    def _target_of(self, image: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should predict."""
        kind = self.network.target.prediction_type
        if kind == "v_prediction":
            velocity: Tensor = self.noise_schedule.get_velocity(image, noise, t)
            return velocity
        return noise if kind == "epsilon" else image

    def _weights_of(self, t: Tensor) -> Tensor:
        """Square roots of min(SNR, min_snr), over what the error of the prediction is to that of the image; (N,)."""
        snr = compute_snr(self.noise_schedule, t)
        error = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}
        return (snr.clamp(max=self.min_snr) / error[self.network.target.prediction_type]).sqrt()

    def validation_step(self, batch: Sequence[Item], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Lightning's hook."""
        self._score(batch, "val")

    def test_step(self, batch: Sequence[Item], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Lightning's hook."""
        self._score(batch, "test")

    def on_predict_start(self) -> None:
        """Lightning's hook; refuses a name that the sheet would take, and a folder where an image would be replaced."""
        super().on_predict_start()
        loaders = self.trainer.predict_dataloaders
        written, read = [], []
        for loader in loaders if isinstance(loaders, Sequence) else [loaders]:
            items = getattr(loader, "dataset", None)
            for pair in getattr(items, "pairs", ()):
                if f"{pair.name}.png" == SHEET:
                    raise InputError(
                        f"image {pair.lr or pair.hr} must not be named {pair.name}, as the sheet of predict is: rename "
                        f"it or take it out"
                    )
                sources = [source for source in (pair.lr, pair.hr) if source is not None]
                read += sources
                written += [(self._target(getattr(items, "name", ""), pair.name), source) for source in sources[:1]]
        check_none_replaced(written, read)

    def predict_step(self, batch: Sequence[Item], batch_idx: int, dataloader_idx: int = 0) -> list[Path]:
        """Write the upsampled images of a batch as PNG files; returns their paths."""
        items = [item for item in batch if not item.padded]
        paths = [self._target(item.dataset, item.name) for item in items]
        for item, path, tensor in zip(items, paths, self.upsample(items, "predict"), strict=True):
            write_png(path, to_pil(tensor, item.mode, item.alpha, self.scale, item.info))
            self.strips.append(make_strip(item.name, item.lr, to_pixels(tensor), item.hr, self.scale))
        return paths

    def upsample(self, items: Sequence[Item], stage: str) -> list[Tensor]:
        """A result (3, H, W) in [0, 1] for each item, from noise that its name and eval_seed determine."""
        seeds = [mix_seed(self.eval_seed, zlib.crc32(item.name.encode())) for item in items]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        images = [item.lr for item in items]
        return self.pipeline.sample(images, self.scale, self.steps[stage], generators, self.sample_batch, self.strength)

    def _score(self, batch: Sequence[Item], stage: str) -> None:
        items = [item for item in batch if not item.padded]
        for item in items:
            if item.hr is None:
                raise InputError(
                    f"image {item.path} must have an HR to compare with, got none: give data.hr, or use predict"
                )
        if self.lpips is None:
            self.lpips = Lpips.find()
        if isinstance(self.lpips, Lpips):
            self.lpips.to(self.device)
        for item, tensor in zip(items, self.upsample(items, stage), strict=True):
            self.scored.append(score_image(item, to_pixels(tensor), self.scale, self.lpips))

    def _target(self, dataset: str, name: str) -> Path:
        loaders = self.trainer.predict_dataloaders
        folder = self.prediction_folder
        if isinstance(loaders, Sequence) and len(loaders) > 1:
            # two sets may share an image name, and the name of a set may be a path to elsewhere
            home = Path(dataset)
            folder = folder.joinpath(*(part for part in home.parts if part not in (home.anchor, "..")))
        return folder / f"{name}.png"

    def on_validation_epoch_end(self) -> None:
        """Lightning's hook."""
        scores = self._gather()
        # every process has all images and the same numbers: their mean is each of them
        self.log_dict({f"val_{k}": v for k, v in scores.mean().items()}, prog_bar=True, sync_dist=True)

    def on_test_epoch_end(self) -> None:
        """Lightning's hook; the first process prints."""
        scores = self._gather()
        for name, part in scores.sets().items():
            self.log_dict({f"test_{k}_{name}": v for k, v in part.mean().items()}, sync_dist=True)
        if self.trainer.is_global_zero:
            print(scores.table())
            if isinstance(self.lpips, str):
                print(self.lpips)
            # counted in float32, whatever the run's precision
            single = self.network.dtype == torch.float32
            print(count_unet(self.network if single else copy.deepcopy(self.network).float(), SIDE).sentence())

    def on_predict_epoch_end(self) -> None:
        """Lightning's hook; the first process draws the sheet."""
        strips = from_all_processes(self.strips)
        self.strips = []
        if self.trainer.is_global_zero:
            sheet = self.prediction_folder / SHEET
            write_png(sheet, draw_sheet(strips))
            print(f"{self.prediction_folder}: {len(strips):,} images x{self.scale}, side by side in {sheet.name}")

    def _gather(self) -> Scores:
        self.scores, self.scored = Scores(from_all_processes(self.scored)), []
        return self.scores


def make_network(options: dict[str, Any]) -> BIDiffSRUNet:
    """The network of these options. Raises InputError for an unknown option."""
    known = list(inspect.signature(BIDiffSRUNet.__init__).parameters)[1:]
    for name in options:
        check_choice("an option of model.unet", name, known)
    return BIDiffSRUNet(**options)


def load_weights_(network: BIDiffSRUNet, path: str) -> None:
    """Load a file of this project, latent or packed, or an official one, in place. Raises InputError."""
    if Path(path).suffix == ".safetensors":
        load_weights(path, network).train()
        return
    if network.saved_options:
        raise InputError(
            f"weights of a network that predicts {network.target.prediction_type} must be a .safetensors file of this "
            f"project, got the official {path}, which predicts the noise"
        )
    load_official(network, path)
