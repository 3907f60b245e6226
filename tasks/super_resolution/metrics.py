"""PSNR, SSIM and LPIPS of one image as in the papers: 8 bits, Y channel, border cropped, float64.

The papers average over images (papers.md#bi-diffsr-metrics). torchmetrics' own PSNR pools the error over a set, and its
SSIM keeps the border.
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
"""torchvision's file of AlexNet's ImageNet weights, and the beginning of its checksum."""
LEAST = 32
"""Smallest side of an image for which AlexNet has a last feature map."""


def rgb_to_y(image: Pixels) -> NDArray[np.float64]:
    """Luma (H, W) of uint8 (H, W, 3), in 16 to 235: BT.601 as MATLAB's rgb2ycbcr, without rounding."""
    luma: NDArray[np.float64] = 16 + image.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255
    return luma


def psnr_y(sr: Pixels, hr: Pixels, border: int) -> float:
    """Peak signal-to-noise ratio in dB between the Y channels, infinite for equal images.

    Args:
        sr: uint8 (H, W, 3), RGB.
        hr: uint8 (H, W, 3), RGB.
        border: pixels left out on every side, in the papers the scale.

    Raises:
        InputError: images of another form, or so small that nothing is left.
    """
    a, b = _crop_to_y(sr, hr, border, 1)
    error = float(np.mean((a - b) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def ssim_y(sr: Pixels, hr: Pixels, border: int) -> float:
    """Structural similarity of the Y channels (Wang et al. 2004), averaged over all whole windows.

    Args:
        sr: uint8 (H, W, 3), RGB.
        hr: uint8 (H, W, 3), RGB.
        border: pixels left out on every side, in the papers the scale.

    Raises:
        InputError: images of another form, or with fewer than 11 pixels left in a side.
    """
    a, b = _crop_to_y(sr, hr, border, WINDOW)
    mean_a, mean_b = _blur(a), _blur(b)
    var_a, var_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    top = (2 * mean_a * mean_b + C1) * (2 * covariance + C2)
    return float(np.mean(top / ((mean_a**2 + mean_b**2 + C1) * (var_a + var_b + C2))))


class Lpips:
    """Perceptual distance of Zhang et al. (2018) by AlexNet, lower is closer; torchmetrics' network, weights from disk.

    Lpips.find() returns one, or a sentence about why it is not measured. Nothing is downloaded.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval()

    @classmethod
    def find(cls) -> "Lpips | str":
        """The metric if torchvision and AlexNet's weights are at hand; otherwise why not, and what to do."""
        if find_spec("torchvision") is None:
            return "LPIPS is not measured because its AlexNet is missing: pip install torchvision"
        path = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET  # as torchvision stores it
        get = "fetch them once: python -c \"from torchvision.models import alexnet; alexnet(weights='IMAGENET1K_V1')\""
        if not path.is_file():
            return f"LPIPS is not measured because AlexNet's weights are not at {path}: {get}"
        if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(ALEXNET_SHA256):
            return f"LPIPS is not measured because {path} is damaged: {get}"
        # here, because it imports torchvision
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
        _crop_to_y(sr, hr, 0, LEAST)
        height, width = (side - side % scale for side in hr.shape[:2])
        device = next(self.network.parameters()).device
        a, b = (
            torch.from_numpy(np.ascontiguousarray(image[:height, :width].transpose(2, 0, 1))).to(device)[None].float()
            for image in (sr, hr)
        )
        return float(self.network(a / 255, b / 255))


def _crop_to_y(sr: Pixels, hr: Pixels, border: int, least: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both Y channels without the border. Raises InputError."""
    for image in (sr, hr):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.shape != hr.shape:
            raise InputError(
                f"images to compare must be two of uint8 (H, W, 3) and of one size, got {sr.dtype} {sr.shape} and "
                f"{hr.dtype} {hr.shape}"
            )
    height, width = (side - 2 * border for side in hr.shape[:2])
    if min(height, width) < least or border < 0:
        raise InputError(
            f"images to compare must have at least {least} pixels a side without their border of {border}, got "
            f"{hr.shape[1]}x{hr.shape[0]}"
        )
    inside = slice(border, border + height), slice(border, border + width)
    return rgb_to_y(sr[inside]), rgb_to_y(hr[inside])


def _blur(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaussian means (H - 10, W - 10) where the whole window fits."""
    weights = np.exp(-((np.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * SIGMA**2))
    weights /= weights.sum()
    for axis in (0, 1):
        length = image.shape[axis] - WINDOW + 1
        taps = (image.take(range(k, k + length), axis) * weights[k] for k in range(WINDOW))
        image = np.sum(list(taps), axis=0)
    return image
