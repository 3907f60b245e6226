"""Do packed networks predict what the latent ones predict? Logits of both on 256 real images at 224x224.

python -m benchmarks.speed.agreement --data /data/imagenet-mini [--images 256] [--names reactnet_resnet18 ...]

The networks are not trained: they have random weights, running statistics of these images, and shifts and affines that
differ between channels, as after training.
"""

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.functional import center_crop, normalize, resize

from benchmarks.command import positive, run_command
from benchmarks.speed.parts import warmed
from benchmarks.timing import write
from esbnn_core import create_model, pack_

NAMES = ("reactnet_resnet18", "es_reactnet_resnet18", "bnext_tiny", "es_bnext_tiny", "binaryvit", "es_binaryvit")
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def real_images(folder: Path, number: int) -> Tensor:
    """(number, 3, 224, 224), normalised: files of the folder in the order of their names, evenly spaced."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpeg", ".jpg", ".png"))
    if len(files) < number:
        raise SystemExit(f"{folder} must hold at least {number} images, got {len(files)}: change --data or --images")
    chosen = [files[i * len(files) // number] for i in range(number)]
    pixels = [decode_image(str(path), ImageReadMode.RGB).float() / 255 for path in chosen]
    return torch.stack([normalize(center_crop(resize(p, [224]), [224]), MEAN, STD) for p in pixels])


@torch.inference_mode()
def compare(name: str, images: Tensor) -> dict[str, Any]:
    """One row: predictions and logits of the latent, the packed and the packed bfloat16 network."""
    torch.manual_seed(0)
    latent = warmed(create_model(name), images[:16])
    packed = pack_(copy.deepcopy(latent))
    narrow = copy.deepcopy(packed).bfloat16()
    start = time.perf_counter()
    want = torch.cat([latent(x) for x in images.split(16)])
    middle = time.perf_counter()
    got = torch.cat([packed(x) for x in images.split(16)])
    end = time.perf_counter()
    half = torch.cat([narrow(x.bfloat16()) for x in images.split(16)]).float()
    return {
        "network": name,
        "images": len(images),
        "same predictions": int((got.argmax(1) == want.argmax(1)).sum()),
        "largest relative difference": float((got - want).abs().max() / want.abs().max()),
        "same predictions in bfloat16": int((half.argmax(1) == want.argmax(1)).sum()),
        "classes predicted": len(want.argmax(1).unique()),
        "seconds latent": round(middle - start, 1),
        "seconds packed": round(end - middle, 1),
    }


def main() -> None:
    """Run, print, and write benchmarks/results/agreement.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder of images, in folders of classes or not")
    parser.add_argument("--images", type=positive, default=256)
    parser.add_argument("--names", nargs="+", default=NAMES)
    args = parser.parse_args()
    images = real_images(args.data, args.images)
    rows = []
    for name in args.names:
        rows.append(compare(name, images))
        print(rows[-1], flush=True)
    print(write("agreement", {"rows": rows}))


if __name__ == "__main__":
    run_command(main)
