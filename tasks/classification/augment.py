"""Augmentation of images: one frozen dataclass of options, and the transforms that it describes.

Transforms are torchvision's (v2) and timm's RandAugment; the lighting noise, which neither has, is ours. Images are
cropped and scaled as uint8 tensors: 1.4 to 2.3 times faster than PIL images, and different by one grey level at most.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from esbnn_core.errors import InputError

SMALL = 32
"""Datasets of at most this side are padded and cropped (CIFAR's way), larger ones resized and cropped (ImageNet's)."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet, for values in [0, 1]."""

_POLICY = re.compile(r"rand(-(m\d+|n\d+|p\d+(\.\d+)?|mstd\d+(\.\d+)?|mmax\d+|inc[01]|t(weights|3a|3aw)))*")
_LARGE_ONLY = ("crop_scale", "crop_ratio", "interpolation", "crop_pct", "eval_interpolation")

Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Augmentation:
    """Options of training and evaluation images; the defaults are random resized crop and mirror (papers.md#two-steps).

    crop_* and the interpolations are for images above 32 pixels; smaller ones are padded and cropped.

    Args:
        crop_scale: range of the cropped area, as a share of the image.
        crop_ratio: range of its width by height.
        interpolation: of that crop.
        flip: probability of a mirror.
        lighting: standard deviation of the colour noise (Lighting), 0 for none; colour images only.
        rand_augment: timm's policy, e.g. rand-m7-mstd0.5-inc1 (BNext, papers.md#bnext-data); none by default.
        erasing: probability that a rectangle is filled with noise (DeiT, papers.md#binaryvit-training).
        mixup: alpha of this mixture of a batch, 0 for none. Labels are then probabilities (B, num_classes).
        cutmix: likewise; with both, each batch gets one of them at random.
        repeats: how often an epoch shows an image, each time with a new augmentation; its length stays (repeated
            augmentation).
        crop_pct: evaluation resizes the shorter side to size / crop_pct and crops the centre.
        eval_interpolation: of that resize.
        mean: of the normalisation, default the dataset's own.
        std: of the normalisation, default the dataset's own.

    Raises:
        InputError: a value out of its range.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bilinear"
    flip: float = 0.5
    lighting: float = 0.0
    rand_augment: str | None = None
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    repeats: int = 1
    crop_pct: float = 224 / 256
    eval_interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        def check(name: str, fits: bool, want: str) -> None:
            if not fits:
                raise InputError(f"augmentation {name} must be {want}, got {getattr(self, name)}")

        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            check(name, 0 < low <= high, "two positive numbers, the smaller one first")
        for name in ("interpolation", "eval_interpolation"):
            check(name, getattr(self, name) in ("bilinear", "bicubic"), "bilinear or bicubic")
        for name in ("flip", "erasing"):
            check(name, 0 <= getattr(self, name) <= 1, "a probability")
        for name in ("lighting", "mixup", "cutmix"):
            check(name, 0 <= getattr(self, name) < math.inf, "0 or a positive number")
        check("repeats", self.repeats >= 1, "a whole number of at least 1")
        check("crop_pct", 0 < self.crop_pct <= 1, "a share of the image above 0 and at most 1")
        check("mean", self.mean is None or all(map(math.isfinite, self.mean)), "finite numbers")
        check("std", self.std is None or all(0 < value < math.inf for value in self.std), "positive numbers")
        # timm ignores what it does not know in a policy, or stops with an assertion
        known = self.rand_augment is None or _POLICY.fullmatch(self.rand_augment) is not None
        check("rand_augment", known, "timm's policy, e.g. rand-m7-mstd0.5-inc1")

    @property
    def mixes(self) -> bool:
        """Whether training batches are mixed."""
        return self.mixup > 0 or self.cutmix > 0

    def check(self, dataset: str, channels: int, side: int) -> None:
        """Raise InputError for an option that does not apply to images of these channels and this side."""
        if side <= SMALL:
            for name in _LARGE_ONLY:
                if getattr(self, name) != getattr(Augmentation, name):
                    raise InputError(
                        f"augmentation {name} must stay as it is for {dataset}, whose images of {side} pixels are "
                        f"padded and cropped, got {getattr(self, name)}: remove it"
                    )
        if self.lighting > 0 and channels != 3:
            raise InputError(f"augmentation lighting must be 0 for {dataset}, whose images have no colour: remove it")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and len(values) != channels:
                raise InputError(
                    f"augmentation {name} must have one number for each of the {channels} channels of {dataset}, got "
                    f"{len(values)}"
                )


class Lighting:
    """Colour noise along the principal axes of ImageNet's colours (AlexNet): one shift an image.

    Differs from the paper: the recipes add it to 8-bit images with an amplitude of hundredths of a grey level, so that
    rounding leaves at most one level of it (papers.md#two-steps, quirk c); here it is added to values in [0, 1], as
    AlexNet intends. Images are float (3, H, W), before the normalisation.

    Args:
        std: of the three normal draws that scale the axes.
    """

    VALUES = (0.2175, 0.0188, 0.0045)
    AXES = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))

    def __init__(self, std: float) -> None:
        self.std = std

    def __call__(self, image: Tensor) -> Tensor:
        drawn = torch.randn(3) * self.std * torch.tensor(self.VALUES)
        shift: Tensor = torch.tensor(self.AXES) @ drawn
        return image + shift.view(3, 1, 1)


def padding(side: int) -> int:
    """Pixels of black around a small training image before it is cropped to its side."""
    return side // 8


def train_transform(
    a: Augmentation, side: int, size: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> v2.Compose:
    """The transform PIL image -> float tensor (C, size, size), drawn from the global generators.

    SeededDataset fixes the generators.

    Args:
        a: the options.
        side: of the dataset's own images.
        size: of the result.
        mean: the dataset's own.
        std: the dataset's own.

    Raises:
        InputError: RandAugment is asked for and timm is not installed.
    """
    mean, std = a.mean or mean, a.std or std
    steps: list[Any] = [v2.ToImage()]
    if side > SMALL:
        mode = v2.InterpolationMode(a.interpolation)
        steps.append(v2.RandomResizedCrop(size, a.crop_scale, a.crop_ratio, interpolation=mode, antialias=True))
    else:
        steps.append(v2.RandomCrop(side, padding=padding(side)))
    steps.append(v2.RandomHorizontalFlip(a.flip))
    if side <= SMALL and size != side:
        steps.append(v2.Resize((size, size), antialias=True))
    if a.rand_augment is not None:
        steps += [v2.ToPILImage(), _rand_augment(a.rand_augment, mean, a.interpolation), v2.ToImage()]
    steps.append(v2.ToDtype(torch.float32, scale=True))
    if a.lighting > 0:
        steps.append(Lighting(a.lighting))
    steps.append(v2.Normalize(mean, std))
    if a.erasing > 0:
        # timm's "pixel" mode in its own ranges: noise of standard deviation 1 in normalised space
        steps.append(v2.RandomErasing(a.erasing, scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3), value="random"))
    return v2.Compose(steps)


def eval_transform(
    a: Augmentation, side: int, size: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> v2.Compose:
    """PIL image -> float tensor (C, size, size), nothing drawn; arguments as train_transform."""
    steps: list[Any] = [v2.ToImage()]
    if side > SMALL:
        mode = v2.InterpolationMode(a.eval_interpolation)
        # rounded down, as timm does: 235 for BNext's 224 / 0.95
        steps += [v2.Resize(math.floor(size / a.crop_pct), interpolation=mode, antialias=True), v2.CenterCrop(size)]
    elif size != side:
        steps.append(v2.Resize((size, size), antialias=True))
    return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(a.mean or mean, a.std or std)])


def _rand_augment(policy: str, mean: tuple[float, ...], interpolation: Interpolation) -> Callable[[Any], Any]:
    """timm's transform of PIL images as timm's own training composes it: what moves in is filled with the mean colour.
    It draws from python's and numpy's global generators."""
    try:
        from timm.data.auto_augment import rand_augment_transform
        from timm.data.transforms import str_to_pil_interp
    except ImportError as error:
        raise InputError('augmentation rand_augment needs timm: pip install "esbnn[classification]"') from error
    fill = tuple(min(255, round(255 * value)) for value in mean)
    options = {"img_mean": fill, "interpolation": str_to_pil_interp(interpolation)}
    transform: Any = rand_augment_transform(policy, options)
    for op in transform.ops:
        if op.name.startswith("Posterize"):
            op.aug_fn = partial(_posterize, op.aug_fn)
    return cast(Callable[[Any], Any], transform)


def _posterize(posterize: Callable[..., Image.Image], image: Image.Image, bits: int, **options: Any) -> Image.Image:
    """At full magnitude timm keeps 0 bits of a colour, which older Pillows made black and Pillow 13 refuses."""
    return Image.new(image.mode, image.size) if bits == 0 else posterize(image, bits, **options)


def batch_mixture(a: Augmentation, num_classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(images (B, C, H, W), labels int64 (B,)) -> both mixed, labels (B, num_classes); draws from torch's generator."""
    mixtures: list[Any] = []
    if a.mixup > 0:
        mixtures.append(v2.MixUp(alpha=a.mixup, num_classes=num_classes))
    if a.cutmix > 0:
        mixtures.append(v2.CutMix(alpha=a.cutmix, num_classes=num_classes))
    transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    transform = mixtures[0] if len(mixtures) == 1 else v2.RandomChoice(mixtures)
    return transform


def evaluation_recipe(network: str, dataset: str) -> Augmentation:
    """How the recipe of a network, by name, evaluates on a dataset.

    Source: papers.md#two-steps, #bnext-data, #recu, #binaryvit-training.
    """
    if dataset == "cifar10":
        if "recu" in network:
            return Augmentation(mean=IMAGENET[0], std=IMAGENET[1])  # ImageNet's numbers, as the original has them
        if "bnext" in network:
            return Augmentation(mean=(0.507, 0.487, 0.441), std=(0.267, 0.256, 0.276))
    elif dataset in ("imagenet", "generated"):
        if "bnext" in network:
            return Augmentation(crop_pct=0.95, eval_interpolation="bicubic")
        if "binaryvit" in network:
            return Augmentation(eval_interpolation="bicubic")
    return Augmentation()
