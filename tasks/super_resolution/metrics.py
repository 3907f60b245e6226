"""PSNR, SSIM and LPIPS of one image in the papers' convention: 8 bits, Y channel, border cropped, float64.

Source: papers.md#bi-diffsr-metrics.

torchmetrics' own PSNR pools the error over a set and its SSIM keeps the border; the papers average over images.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from esbnn_core.errors import InputError

Pixels = NDArray[np.uint8]

WINDOW, SIGMA = 11, 1.5
"""Side of SSIM's Gaussian window, and its standard deviation."""
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
ALEXNET, ALEXNET_SHA256 = "alexnet-owt-7be5be79.pth", "7be5be79"
"""torchvision's file of AlexNet's ImageNet weights, and how its checksum begins."""
LEAST = 32
"""Smallest side that AlexNet has a last feature map for."""


def rgb_to_y(image: Pixels) -> NDArray[np.float64]:
    """Luma (H, W) of uint8 (H, W, 3), in 16 to 235: BT.601 as MATLAB's rgb2ycbcr, without rounding."""
    luma: NDArray[np.float64] = 16 + image.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255
    return luma


def psnr_y(sr: Pixels, hr: Pixels, border: int) -> float:
    """Peak signal-to-noise ratio in dB between the Y channels, infinite of equal images.

    Args:
        sr, hr: uint8 (H, W, 3), RGB. border: pixels left out on every side, in the papers the scale.

    Raises:
        InputError: images of another form, or so small that nothing is left.
    """
    a, b = _inner(sr, hr, border, 1)
    error = float(np.mean((a - b) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def ssim_y(sr: Pixels, hr: Pixels, border: int) -> float:
    """Structural similarity of the Y channels (Wang et al. 2004), averaged over the places where the whole window fits.

    Args:
        sr, hr: uint8 (H, W, 3), RGB. border: pixels left out on every side, in the papers the scale.

    Raises:
        InputError: images of another form, or with less than 11 pixels left in a side.
    """
    a, b = _inner(sr, hr, border, WINDOW)
    mean_a, mean_b = _blurred(a), _blurred(b)
    var_a, var_b = _blurred(a * a) - mean_a**2, _blurred(b * b) - mean_b**2
    covariance = _blurred(a * b) - mean_a * mean_b
    top = (2 * mean_a * mean_b + C1) * (2 * covariance + C2)
    return float(np.mean(top / ((mean_a**2 + mean_b**2 + C1) * (var_a + var_b + C2))))


class Lpips:
    """Perceptual distance of Zhang et al. (2018) by AlexNet, lower is closer; torchmetrics' network, weights from disk.

    Lpips.find() gives one, or the sentence that says why it is not measured: nothing is ever downloaded.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval()

    @classmethod
    def find(cls) -> "Lpips | str":
        """The metric, where torchvision and AlexNet's weights are at hand, or why it is not measured and what to do."""
        if find_spec("torchvision") is None:
            return "LPIPS is not measured: pip install torchvision, whose AlexNet it compares images by"
        path = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET  # where torchvision puts it
        get = "fetch them once: python -c \"from torchvision.models import alexnet; alexnet(weights='IMAGENET1K_V1')\""
        if not path.is_file():
            return f"LPIPS is not measured, AlexNet's weights are not at {path}, {get}"
        if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(ALEXNET_SHA256):
            return f"LPIPS is not measured, {path} is damaged, {get}"
        # here, for it brings torchvision in
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        return cls(LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True))

    def to(self, device: torch.device | str) -> "Lpips":
        """Move the network; images are moved to it."""
        self.network.to(device)
        return self

    @torch.no_grad()
    def __call__(self, sr: Pixels, hr: Pixels, scale: int = 1) -> float:
        """Distance of two images, uint8 (H, W, 3) in RGB, trimmed to multiples of the scale; the border counts.

        Raises:
            InputError: images of another form, or with a side below 32 pixels.
        """
        _inner(sr, hr, 0, LEAST)
        height, width = (side - side % scale for side in hr.shape[:2])
        device = next(self.network.parameters()).device
        a, b = (
            torch.from_numpy(np.ascontiguousarray(image[:height, :width].transpose(2, 0, 1))).to(device)[None].float()
            for image in (sr, hr)
        )
        return float(self.network(a / 255, b / 255))


def _inner(sr: Pixels, hr: Pixels, border: int, least: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both Y channels without the border. Raises InputError."""
    for image in (sr, hr):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.shape != hr.shape:
            raise InputError(
                f"images {sr.dtype} {sr.shape} and {hr.dtype} {hr.shape} were given to compare, two of uint8 (H, W, 3) "
                f"and of one size were expected"
            )
    height, width = (side - 2 * border for side in hr.shape[:2])
    if min(height, width) < least or border < 0:
        raise InputError(
            f"an image of {hr.shape[1]}x{hr.shape[0]} pixels was given to compare without its border of {border}, "
            f"{least} pixels or more were expected to be left in each side"
        )
    inside = slice(border, border + height), slice(border, border + width)
    return rgb_to_y(sr[inside]), rgb_to_y(hr[inside])


def _blurred(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaussian means (H - 10, W - 10) where the whole window fits."""
    weights = np.exp(-((np.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * SIGMA**2))
    weights /= weights.sum()
    for axis in (0, 1):
        length = image.shape[axis] - WINDOW + 1
        taps = (image.take(range(k, k + length), axis) * weights[k] for k in range(WINDOW))
        image = np.sum(list(taps), axis=0)
    return image
