"""What `python -m tasks.evaluate` does for a detector: build it by its config, load the file strictly, test it."""

from collections.abc import Mapping
from typing import Any

from esbnn_core.errors import InputError
from esbnn_core.lit.evaluation import run_test
from esbnn_core.packed.layers import is_packed
from tasks.detection.cost import count_detector
from tasks.detection.data import VOCDataModule
from tasks.detection.module import DetectionModule

METRICS = ("map_11point", "map_area", "coco", "coco50", "coco75")


def evaluate(
    path: str,
    *,
    config: str,
    overrides: Mapping[str, Any],
    dataset: str,
    split: str,
    data: str | None = None,
    limit: int = 0,
    backend: str = "auto",
    device: str = "cpu",
    batch_size: int | None = None,
    workers: int = 0,
) -> dict[str, Any]:
    """Average precision of a detector's file, with its cost for one image.

    Args:
        path: .safetensors, latent or packed, or an official file.
        config: recipe of configs/detection.
        overrides: of its model.
        dataset: of an image list, e.g. VOC2007.
        split: of the image list, e.g. test.
        data: the VOCdevkit folder; default the config's.
        limit: evaluate only the first images, this many; 0 for all.
        backend: as run_test.
        device: as run_test.
        batch_size: default the config's.
        workers: processes that read images.

    Raises:
        InputError: a config, file or data set that does not fit.
    """
    options: dict[str, Any] = {"model.backbone": None, "model.from_scratch": False, "data.test_size": limit}
    options |= {"data.num_workers": workers, "data.test": [f"{dataset}/{split}"]}
    given = {"model.overrides": dict(overrides) or None, "data.root": data, "data.batch_size": batch_size}
    options |= {name: value for name, value in given.items() if value is not None}
    module, seconds = run_test(DetectionModule, VOCDataModule, path, config, options, backend=backend, device=device)
    scores = module.scores
    try:
        cost = count_detector(module.network, module.input_size)
        parts = [(1, cost.image), *([(cost.regions, cost.region)] if cost.region else [])]
        bops, flops = (sum(number * getattr(part, name) for number, part in parts) for name in ("bops", "flops"))
        counted = {"ops": cost.ops, "bops": bops, "flops": flops}
        counted |= {"params": cost.params, "binary_params": cost.binary_params}
    except InputError as error:
        print(f"OPs are not given: {error}")
        counted = dict.fromkeys(("ops", "bops", "flops", "binary_params"))
        counted["params"] = sum(p.numel() for p in module.network.parameters())
    return {
        "options": dict(overrides),
        **counted,
        "dataset": dataset,
        "split": split,
        "backend": "packed" if is_packed(module.network) else "latent",
        "device": device,
        "images": scores.images,
        "image_size": list(module.input_size[1:]),
        "seconds": seconds,
        "metrics": {name: getattr(scores, name) for name in METRICS},
        "classes": {row.name: row.ap_11point for row in scores.rows if row.objects},
        "warning": "",
    }
