"""Both bicubic kernels: MATLAB's equal to the benchmarks' own LR images, OpenCV's equal to OpenCV's and torch's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from esbnn_core.errors import InputError
from tasks.super_resolution.resize import cubic_upsample, imresize
from tests.helpers.super_resolution.images import EMBEDDED

SET14 = Path(__file__).parents[4] / "shared" / "data" / "sr" / "Set14"


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.array(image)


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize(("folder", "images"), [(EMBEDDED, 5), (SET14, 13)], ids=["Set5", "Set14"])
def test_low_resolution_is_the_benchmarks_in_every_pixel(folder: Path, images: int, scale: int) -> None:
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: of the benchmarks Set5 alone is part of the repository")
    paths = sorted((folder / "HR").iterdir())
    assert len(paths) == images
    for path in paths:
        hr = pixels(path)
        height, width = (side - side % scale for side in hr.shape[:2])
        made = imresize(hr[:height, :width], 1 / scale)
        assert np.array_equal(made, pixels(folder / "LR_bicubic" / f"X{scale}" / f"{path.stem}x{scale}.png")), path


@pytest.mark.parametrize(("scale", "size"), [(1 / 2, (40, 62)), (1 / 3, (60, 33)), (2.0, (19, 30)), (3.0, (12, 17))])
def test_float_images_are_pillows_away_from_the_edge(scale: float, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).random(size).astype(np.float32)
    out = round(size[0] * scale), round(size[1] * scale)
    ours = imresize(image, scale)
    theirs = np.array(Image.fromarray(image).resize(out[::-1], Image.Resampling.BICUBIC))
    # Pillow cuts the kernel off at the edge, MATLAB repeats the pixels there
    edge = 2 if scale < 1 else round(2 * scale)
    inner = slice(edge, -edge), slice(edge, -edge)
    assert ours.shape == out and ours.dtype == np.float64
    assert np.abs(ours - theirs)[inner].max() < 1e-6
    assert np.abs(ours - theirs).max() > 1e-3


@pytest.mark.parametrize("scale", [2, 3, 4, 5, 6, 7, 8, 16])
def test_sides_are_rounded_up_and_no_further(scale: int) -> None:
    for side in (1, scale - 1, scale, 7 * scale, 25 * scale, 25 * scale + 1):
        made = imresize(np.full((side, 2 * side, 3), 77, np.uint8), 1 / scale)
        assert made.shape == (-(-side // scale), -(-2 * side // scale), 3) and (made == 77).all()


def test_eight_bits_are_rounded_half_up_after_each_pass() -> None:
    # two columns of weights that sum to exact halves: the mean of 4 equal rows of (0, 1) repeated is 0.5
    image = np.tile(np.array([0, 1], np.uint8), (8, 8))
    assert (imresize(image, 1 / 2)[:, 2:-2] == 1).all()
    assert np.allclose(imresize(image.astype(float), 1 / 2)[:, 2:-2], 0.5)
    # black and white overshoot beyond 8 bits, and are cut off there
    edge = np.repeat(np.array([0, 255], np.uint8), 16)[None].repeat(8, 0)
    whole, free = imresize(edge, 1 / 2), imresize(edge.astype(float), 1 / 2)
    assert free.min() < -1 and free.max() > 256
    assert whole.min() == 0 and whole.max() == 255


@pytest.mark.parametrize("scale", [2, 3, 4, 5])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (17, 16), (40, 31)])
def test_upsampling_is_torchs_and_opencvs(scale: int, size: tuple[int, int]) -> None:
    image = np.random.default_rng(scale).integers(0, 256, (*size, 3), dtype=np.uint8)
    ours = cubic_upsample(image, scale)
    assert ours.shape == (scale * size[0], scale * size[1], 3) and ours.dtype == np.float32
    x = torch.from_numpy(image).permute(2, 0, 1)[None].double() / 255
    theirs = F.interpolate(x, scale_factor=scale, mode="bicubic", align_corners=False)[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - theirs).max() < 1e-6
    cv2: Any = pytest.importorskip("cv2")
    high = cv2.resize(image.astype(np.float32) / 255, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    assert np.abs(ours - high).max() < 1e-6


def test_upsampling_neither_clips_nor_rounds() -> None:
    image = np.zeros((8, 8), np.uint8)
    image[:, 4:] = 255
    up = cubic_upsample(image, 2)
    assert up.shape == (16, 16) and up.min() < -0.05 and up.max() > 1.05
    assert np.array_equal(up, cubic_upsample(image.astype(np.float32) / 255, 2))
    assert np.array_equal(cubic_upsample(image, 1) * 255, image)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.int64), np.zeros(4, np.uint8), np.zeros((0, 4), np.uint8), np.zeros((1, 2, 3, 4))]
)
def test_no_image_is_one_sentence(image: NDArray[Any]) -> None:
    for resize in (imresize, cubic_upsample):
        with pytest.raises(InputError, match="an image must be"):
            resize(image, 2)


def test_a_wrong_scale_is_one_sentence() -> None:
    image = np.zeros((4, 4), np.uint8)
    with pytest.raises(InputError, match=r"scale must be a positive number, .*, got 0"):
        imresize(image, 0)
    for scale in (0, 1.5):
        with pytest.raises(InputError, match=rf"scale must be a whole number of at least 1, got {scale}"):
            cubic_upsample(image, scale)  # type: ignore[arg-type]
