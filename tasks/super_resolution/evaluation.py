"""What `python -m tasks.evaluate` does for super-resolution: build the network by its config, load the file, test."""

from collections.abc import Mapping
from typing import Any

from esbnn_core.errors import InputError
from esbnn_core.lit.evaluation import run_test
from esbnn_core.packed.layers import is_packed
from tasks.super_resolution.cost import count_unet
from tasks.super_resolution.data import SRDataModule
from tasks.super_resolution.module import SIDE, SuperResolutionModule

METRICS = ("psnr", "ssim", "lpips")


def evaluate(
    path: str,
    *,
    config: str,
    overrides: Mapping[str, Any],
    dataset: str,
    split: str = "test",
    data: str | None = None,
    limit: int = 0,
    backend: str = "auto",
    device: str = "cpu",
    batch_size: int | None = None,
    workers: int = 0,
) -> dict[str, Any]:
    """PSNR, SSIM and LPIPS of a network's file on one set, with its cost for one denoising step of 256x256.

    Args:
        path: .safetensors, latent or packed, or an official file.
        config: recipe of configs/super_resolution.
        overrides: of its network.
        dataset: name of a set.
        split: "test"; the sets have no other.
        data: folder of the sets; default the config's.
        limit: evaluate only the first images, this many; 0 for all.
        backend: as run_test.
        device: as run_test.
        batch_size: default the config's.
        workers: processes that read images.

    Raises:
        InputError: a config, file or data set that does not fit.
    """
    if split != "test":
        raise InputError(f"split must be test, got {split!r}: {dataset} has no other")
    options: dict[str, Any] = {"data.test_size": limit, "data.num_workers": workers, "data.test": [dataset]}
    given = {"model.overrides": dict(overrides) or None, "data.root": data, "data.batch_size": batch_size}
    options |= {name: value for name, value in given.items() if value is not None}
    module, seconds = run_test(
        SuperResolutionModule, SRDataModule, path, config, options, backend=backend, device=device, links=("scale",)
    )
    cost = count_unet(module.network, SIDE)
    counted = {name: getattr(cost.layers, name) for name in ("ops", "bops", "flops", "params", "binary_params")}
    return {
        "options": dict(overrides),
        **counted,
        "dataset": dataset,
        "split": split,
        "backend": "packed" if is_packed(module.network) else "latent",
        "device": device,
        "images": len(module.scores.images),
        "image_size": [SIDE, SIDE],
        "seconds": seconds,
        "metrics": module.scores.mean(),
        "warning": "",
    }
