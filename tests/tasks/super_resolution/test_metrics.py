"""PSNR, SSIM and LPIPS against published numbers, closed forms, another library and loops over every window."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from torchmetrics.functional.image import structural_similarity_index_measure

from esbnn_core.errors import InputError
from tasks.super_resolution import metrics
from tasks.super_resolution.image_files import read_image
from tasks.super_resolution.metrics import Lpips, psnr_y, rgb_to_y, ssim_y
from tasks.super_resolution.resize import imresize
from tests.helpers.super_resolution.images import EMBEDDED

Pixels = NDArray[np.uint8]
# published.csv: Bicubic on Set5, as in Table 2 of the paper of BI-DiffSR
PUBLISHED = {2: (33.67, 0.9303), 4: (28.43, 0.8111)}


def noisy(seed: int, size: tuple[int, int]) -> tuple[Pixels, Pixels]:
    """A smooth image and the same with noise."""
    random = np.random.default_rng(seed)
    smooth = imresize(random.random((size[0] // 4 + 1, size[1] // 4 + 1, 3)), 4.0)[: size[0], : size[1]]
    image = np.clip(smooth * 255, 0, 255)
    return image.astype(np.uint8), np.clip(image + random.normal(0, 12, image.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("scale", PUBLISHED)
def test_bicubic_on_set5_scores_as_published(scale: int) -> None:
    scores = []
    for path in sorted((EMBEDDED / "HR").iterdir()):
        hr = read_image(path).rgb
        sr = imresize(read_image(EMBEDDED / f"LR_bicubic/X{scale}/{path.stem}x{scale}.png").rgb, scale)
        scores.append((psnr_y(sr, hr, scale), ssim_y(sr, hr, scale)))
    psnr, ssim = np.mean(scores, axis=0)
    assert len(scores) == 5
    assert abs(psnr - PUBLISHED[scale][0]) < 0.0051 and abs(ssim - PUBLISHED[scale][1]) < 0.000051


def test_luma_is_that_of_the_studio() -> None:
    colours = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    want = [16, 235, 16 + 65.481, 16 + 128.553, 16 + 24.966]
    assert np.allclose(rgb_to_y(colours)[0], want, atol=1e-12) and rgb_to_y(colours).dtype == np.float64


def test_psnr_of_a_constant_error_is_its_closed_form() -> None:
    hr = np.full((20, 31, 3), 100, np.uint8)
    for step in (1, 7):
        error = step * 219 / 255
        assert psnr_y(hr + np.uint8(step), hr, 2) == pytest.approx(20 * math.log10(255 / error), abs=1e-10)
    assert psnr_y(hr, hr, 4) == math.inf


def test_the_border_is_left_out_and_nothing_else() -> None:
    hr, sr = noisy(0, (40, 50))
    for border in (2, 4):
        spoiled = sr.copy()
        spoiled[:border], spoiled[-border:], spoiled[:, :border], spoiled[:, -border:] = 255, 0, 255, 0
        for score in (psnr_y, ssim_y):
            assert score(spoiled, hr, border) == score(sr, hr, border)
            assert score(spoiled, hr, border - 1) != score(sr, hr, border - 1)


@pytest.mark.parametrize("size", [(11, 11), (19, 32), (40, 27)])
def test_ssim_is_that_of_loops_over_every_window_and_of_torchmetrics(size: tuple[int, int]) -> None:
    hr, sr = noisy(1, (size[0] + 4, size[1] + 4))
    a, b = (rgb_to_y(image)[2:-2, 2:-2] for image in (sr, hr))
    axis = np.exp(-(np.arange(-5, 6) ** 2) / 4.5)
    window = np.outer(axis, axis) / axis.sum() ** 2
    values = []
    for y in range(size[0] - 10):
        for x in range(size[1] - 10):
            p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
            m, n = (window * p).sum(), (window * q).sum()
            v, w, c = (window * (p - m) ** 2).sum(), (window * (q - n) ** 2).sum(), (window * (p - m) * (q - n)).sum()
            top = (2 * m * n + 6.5025) * (2 * c + 58.5225)
            values.append(top / ((m * m + n * n + 6.5025) * (v + w + 58.5225)))
    ours = ssim_y(sr, hr, 2)
    assert ours == pytest.approx(np.mean(values), abs=1e-10) and 0.1 < ours < 0.99
    if min(size) > 11:
        x, y = (torch.from_numpy(image)[None, None] for image in (a, b))
        # torchmetrics mirrors the image at its border and counts that too: the inner part of its map is the papers'
        _, whole = structural_similarity_index_measure(x, y, data_range=255.0, return_full_image=True)
        assert ours == pytest.approx(float(whole[..., 5:-5, 5:-5].mean()), abs=1e-10)
    assert ssim_y(hr, hr, 2) == pytest.approx(1, abs=1e-12)


def test_scores_do_not_wrap_around_in_eight_bits() -> None:
    black, white = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)
    assert psnr_y(black, white, 1) == psnr_y(white, black, 1) == pytest.approx(20 * math.log10(255 / 219))
    # constant images: means alone are left of SSIM
    want = (2 * 16 * 235 + 6.5025) / (16**2 + 235**2 + 6.5025)
    assert ssim_y(black, white, 1) == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize(
    ("sr", "hr", "border", "sentence"),
    [
        (np.zeros((20, 20, 3), np.uint8), np.zeros((20, 22, 3), np.uint8), 2, r"of one size, got uint8 \(20, 20, 3\)"),
        (np.zeros((20, 20, 3)), np.zeros((20, 20, 3)), 2, "two of uint8 .*, got float64"),
        (np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8), 2, r"\(20, 20\)"),
        (
            np.zeros((14, 40, 3), np.uint8),
            np.zeros((14, 40, 3), np.uint8),
            2,
            "at least 11 pixels a side .* border of 2, got 40x14",
        ),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(sr: Pixels, hr: Pixels, border: int, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        ssim_y(sr, hr, border)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A torch hub folder of our own, empty; by the variable, which a folder that is set once would hide for good."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


def test_lpips_without_weights_says_how_to_get_them_and_gets_none(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("something was downloaded")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    found = Lpips.find()
    assert isinstance(found, str) and "not measured" in found and f"at {hub / metrics.ALEXNET}: fetch" in found
    hub.mkdir(parents=True)
    (hub / metrics.ALEXNET).write_bytes(b"half a file")
    found = Lpips.find()
    assert isinstance(found, str) and f"{hub / metrics.ALEXNET} is damaged" in found
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    assert "pip install torchvision" in str(Lpips.find())


def test_lpips_is_the_paper_s_formula(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    alexnet = models.alexnet(weights=None).eval()
    hub.mkdir(parents=True)
    # the classifier, which does not count, as one number a tensor: its 59 million would make a large file
    small = {k: torch.zeros(()).expand_as(v) if "classifier" in k else v for k, v in alexnet.state_dict().items()}
    torch.save(small, hub / metrics.ALEXNET)
    # weights of chance have a checksum of chance
    monkeypatch.setattr(metrics, "ALEXNET_SHA256", "")
    lpips = Lpips.find()
    assert isinstance(lpips, Lpips)
    hr, sr = noisy(2, (66, 83))
    # the part outside a multiple of the scale does not count, the border does
    got = lpips(sr, hr, 4)
    want = by_formula(sr[:64, :80], hr[:64, :80], alexnet.features, lpips.network)
    assert got == pytest.approx(want, rel=1e-4) and got > 1e-4
    assert lpips(sr, hr, 1) != got and lpips(hr, hr, 2) == 0
    sr[0] = 255 - sr[0]
    assert lpips(sr, hr, 4) > got
    with pytest.raises(InputError, match="at least 32 pixels a side"):
        lpips(sr[:31], hr[:31])


@torch.no_grad()
def by_formula(sr: Pixels, hr: Pixels, features: torch.nn.Sequential, network: torch.nn.Module) -> float:
    """LPIPS in the words of its paper: unit features after each ReLU, squared differences, weighted, averaged."""
    weights = [w for name, w in network.state_dict().items() if ".lin" in name and "lins" not in name]
    total = 0.0
    maps = []
    for image in (sr, hr):
        x = torch.from_numpy(image).permute(2, 0, 1)[None].double() / 127.5 - 1
        x = (x - torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)) / torch.tensor([0.458, 0.448, 0.450]).view(
            1, 3, 1, 1
        )
        found = []
        for layer in features.double():
            x = layer(x)
            if isinstance(layer, torch.nn.ReLU):
                found.append(F.normalize(x, dim=1))
        maps.append(found)
    features.float()
    assert len(weights) == len(maps[0]) == 5
    for a, b, weight in zip(*maps, weights, strict=True):
        total += float((((a - b) ** 2) * weight.double().view(1, -1, 1, 1)).sum(1).mean())
    return total
