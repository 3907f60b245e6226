"""PSNR, SSIM and LPIPS of every image, and their means by set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks.super_resolution.datasets import Item
from tasks.super_resolution.metrics import LEAST, Lpips, Pixels, psnr_y, ssim_y
from tasks.super_resolution.resize import imresize


@dataclass(frozen=True)
class ImageScores:
    """The figures of one image.

    Attributes:
        dataset: its set.
        name: of the image.
        psnr: in dB.
        ssim: of the Y channel.
        lpips: None if it is not measured.
        bicubic_psnr: of bicubic interpolation.
        bicubic_ssim: of bicubic interpolation.
    """

    dataset: str
    name: str
    psnr: float
    ssim: float
    lpips: float | None
    bicubic_psnr: float
    bicubic_ssim: float


class Scores:
    """The figures of many images, each once, in the order of their sets and by name.

    Args:
        images: in any order.
    """

    def __init__(self, images: Sequence[ImageScores]) -> None:
        order = list(dict.fromkeys(image.dataset for image in images))
        self.images = sorted(images, key=lambda image: (order.index(image.dataset), image.name))

    def sets(self) -> dict[str, "Scores"]:
        """The scores of each set."""
        names = dict.fromkeys(image.dataset for image in self.images)
        return {name: Scores([image for image in self.images if image.dataset == name]) for name in names}

    def mean(self) -> dict[str, float]:
        """Means over the images of psnr, ssim and, if it was measured, lpips; empty without images."""
        found = {"psnr": self._mean("psnr"), "ssim": self._mean("ssim"), "lpips": self._mean("lpips")}
        return {name: value for name, value in found.items() if value is not None}

    def table(self) -> str:
        """A text table with a line for every set, with bicubic for comparison."""
        lines = ["set              images   PSNR dB     SSIM    LPIPS   bicubic PSNR dB     SSIM"]
        for name, part in self.sets().items():
            lpips = part._mean("lpips")
            shown = "-" if lpips is None else f"{lpips:.4f}"
            lines.append(
                f"{name:<16} {len(part.images):>6,} {part._mean('psnr'):>9.2f} {part._mean('ssim'):>8.4f} {shown:>8}"
                f" {part._mean('bicubic_psnr'):>17.2f} {part._mean('bicubic_ssim'):>8.4f}"
            )
        return "\n".join(lines)

    def _mean(self, name: str) -> float | None:
        values: list[Any] = [getattr(image, name) for image in self.images]
        return None if not values or None in values else sum(values) / len(values)


def score_image(item: Item, result: Pixels, scale: int, lpips: Lpips | str) -> ImageScores:
    """The figures of one result against the item's HR (papers.md#bi-diffsr-metrics).

    Args:
        item: with HR.
        result: uint8 (H, W, 3).
        scale: the HR side over the LR side.
        lpips: the metric, or why it is not measured; an image too small for it has none.
    """
    hr, bicubic = item.hr, imresize(item.lr, scale)
    assert hr is not None
    small = min(hr.shape[:2]) < LEAST + scale
    return ImageScores(
        item.dataset,
        item.name,
        psnr_y(result, hr, scale),
        ssim_y(result, hr, scale),
        None if small or isinstance(lpips, str) else lpips(result, hr, scale),
        psnr_y(bicubic, hr, scale),
        ssim_y(bicubic, hr, scale),
    )
